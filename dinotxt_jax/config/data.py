"""Data settings: mixtures of example sources, image preparation, and text tokenization."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator
from typing import Annotated

from dinotxt_jax.config.ranges import Choice, Range
from dinotxt_jax.config.sources import (
    SOURCE_SETTINGS,
    TRAINING_FIELDS,
    MixtureConfig,
    SourceConfig,
)
from dinotxt_jax.errors import UserError

# 256 bytes, padding, start, end, and one merge.
SMALLEST_VOCABULARY = 260
# 8192 x 8192 pixels, which take 200 MB in memory.
MAX_PIXELS = 2**26
# Rules that resize an image for evaluation (`data.resizing`); all but naflex give a square.
_SQUARE_RULES = ("center_crop", "squash", "squash_bilinear", "squash_bilinear_plain")
RESIZE_RULES = (*_SQUARE_RULES, "naflex")
AUGMENTATIONS = ("random_resized_crop", *_SQUARE_RULES)
FAST, EXACT, OFFICIAL = "fast", "exact", "official"
TOKENIZER_KINDS = ("clip", "bpe", "sentencepiece")
# Rules that clean captions (`tokenizers.cleaning`).
CLEANINGS = ("canonicalize", "lower", "none", "clip")


@dataclasses.dataclass(frozen=True)
class DataConfig(SourceConfig):
    """Example source, or a mixture of several, and image preparation."""

    mixture: Annotated[
        dict[str, MixtureConfig],
        "training: several sources by name, which share the image preparation; the settings of a "
        "single source are then not used (docs/mixtures.md)",
    ] = dataclasses.field(default_factory=dict)
    image_size: Annotated[
        int, Range(1, 16_384), "side of the square backbone input image, pixels"
    ] = 224
    augmentation: Annotated[
        str,
        Choice(AUGMENTATIONS),
        "image preparation: random_resized_crop (with flips), center_crop, or squash (resize to "
        "a square without keeping the aspect ratio; squash_bilinear: bilinear, no longer bicubic; "
        "squash_bilinear_plain: also without antialiasing, as big_vision's SigLIP demo)",
    ] = "random_resized_crop"
    resize: Annotated[
        int, Range(1, 16_384), "center_crop: short side of the image before cropping, pixels"
    ] = 256
    crop_scale: Annotated[
        tuple[float, float],
        Range(0, 1, open_low=True),
        "random_resized_crop: minimum and maximum crop area, as a fraction of the image area",
    ] = (0.08, 1.0)
    crop_ratio: Annotated[
        tuple[float, float],
        Range(0.01, 100),
        "random_resized_crop: minimum and maximum crop aspect ratio (width / height)",
    ] = (3 / 4, 4 / 3)
    flip_probability: Annotated[
        float, Range(0, 1), "random_resized_crop: horizontal flip probability"
    ] = 0.5
    max_bad_fraction: Annotated[
        float,
        Range(0, 1),
        "maximum fraction of images that may fail to decode; training stops above it",
    ] = 0.01
    max_pixels: Annotated[
        int,
        Range(1, 2**31 - 1),
        "maximum number of pixels in an encoded image, to limit the memory of a thread: a larger "
        "JPEG is decoded at a reduced size, any other larger image counts as bad (not for masks, "
        "whose images keep their size)",
    ] = MAX_PIXELS
    accept_changed: Annotated[
        bool,
        "whether a training run may continue although the number, order or captions of the "
        "examples have changed: it continues at the same step and position, so that in the "
        "current epoch examples may be repeated or left out",
    ] = False
    decoder: Annotated[
        str,
        Choice((FAST, EXACT, OFFICIAL)),
        "fast: libjpeg-turbo at the size that the crop needs, SIMD resize (random crops from JPEG "
        "files only, otherwise exact); exact: Pillow, whole image; official: as exact, but EXIF "
        "orientation and transparency are ignored, as in the official evaluations of most models",
    ] = FAST
    threads: Annotated[
        int,
        Range(-1, 1024),
        "number of decoding threads, over all workers (0: none; -1: from the CPUs of the process)",
    ] = -1
    prefetch: Annotated[int, Range(0, 1_000_000), "number of examples decoded in advance"] = 64
    workers: Annotated[
        int,
        Range(-1, 1024),
        "number of additional decoding processes for training (0: threads only; -1: from the CPUs "
        "of the process)",
    ] = -1

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                yield (
                    f"{key}.{name} is ({low:g}, {high:g}), expected the smaller number first; "
                    f"set it to ({high:g}, {low:g})."
                )
        if self.mixture:
            yield from self._mixture_conflicts(key)
        else:
            yield from self.source_conflicts(key)
        for source_key, settings in self.sources(key):
            smallest = SOURCE_SETTINGS[settings.source].smallest_image
            if self.image_size < smallest:
                yield (
                    f"{key}.image_size is {self.image_size}, expected at least {smallest} for "
                    f"{source_key}.source={settings.source}, whose shapes cannot be seen in "
                    "smaller images; raise it."
                )

    def _mixture_conflicts(self, key: str) -> Iterator[str]:
        weights = [settings.weight for settings in self.mixture.values()]
        if any(weights) and not all(weights):
            name = next(name for name, settings in self.mixture.items() if not settings.weight)
            yield (
                f"{key}.mixture.{name}.weight is 0, expected weights for all sources or for none; "
                "set it, or remove the source."
            )
        for field in dataclasses.fields(SourceConfig):
            if getattr(self, field.name) != field.default:
                yield (
                    f"{key}.{field.name} is {getattr(self, field.name)!r}, but the sources of "
                    f"{key}.mixture are read instead; set it for a source, as "
                    f"{key}.mixture.{next(iter(self.mixture))}.{field.name}."
                )

    @property
    def view_rule(self) -> str:
        """The rule that resizes images in evaluation: a center crop instead of random crops."""
        return "center_crop" if self.augmentation == AUGMENTATIONS[0] else self.augmentation

    def sources(self, key: str) -> list[tuple[str, SourceConfig]]:
        """Returns the key and the settings of each source in the mixture, or of the only source.

        Args:
            key: the key of this group, such as "config.data".
        """
        mixed = [(f"{key}.mixture.{name}", settings) for name, settings in self.mixture.items()]
        return [*mixed] or [(key, self)]

    def of_source(self, settings: SourceConfig) -> DataConfig:
        """Returns these settings for a single source of the mixture."""
        fields = dataclasses.fields(SourceConfig)
        values = {field.name: getattr(settings, field.name) for field in fields}
        return dataclasses.replace(self, mixture={}, **values)

    def content_conflicts(self, key: str, content: str, use: str) -> Iterator[str]:
        """Yields sentences if a source does not provide `content`, which `use` requires."""
        for source_key, settings in self.sources(key):
            yield from settings.source_content_conflicts(source_key, content, use)

    def training_only(self, key: str, allowed: Collection[str] = ()) -> Iterator[str]:
        """Yields sentences about settings that only training uses, for other commands.

        Args:
            key: the key of this group.
            allowed: the settings among them that the command uses as well.
        """
        names = [(f"{key}.mixture", bool(self.mixture) and "mixture" not in allowed)]
        for source_key, settings in self.sources(key):
            for name in TRAINING_FIELDS:
                is_set = getattr(settings, name) != getattr(SourceConfig(), name)
                names.append((f"{source_key}.{name}", is_set and name not in allowed))
        for name, is_refused in names:
            if is_refused:
                yield (
                    f"{name} is set, expected its default, since only training mixes sources, "
                    f"filters them and chooses captions; remove {name}."
                )

    def preparation_conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about whole-image preparation, which segmentation does not use."""
        if self.augmentation == "center_crop" and self.resize < self.image_size:
            yield (
                f"{key}.resize is {self.resize}, expected at least {key}.image_size="
                f"{self.image_size}, since the crop is cut out of the resized image; raise it, or "
                f"set {key}.augmentation=squash."
            )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Caption tokenization."""

    kind: Annotated[
        str,
        Choice(TOKENIZER_KINDS),
        "clip (CLIP's BPE), bpe (trained on the captions in `config.data`) or sentencepiece (the "
        "pieces of an existing file)",
    ] = "clip"
    vocabulary: Annotated[
        str,
        "clip: vocabulary file (empty: the official file, downloaded on first use); sentencepiece: "
        "tokenizer.json, or a .model (needs `sentencepiece`)",
    ] = ""
    vocabulary_size: Annotated[
        int, Range(SMALLEST_VOCABULARY, 10_000_000), "bpe: vocabulary size, token IDs"
    ] = 8192
    context_length: Annotated[
        int,
        Range(3, 65_536),
        "tokens per row, including the start-of-sequence and end-of-sequence tokens (sentencepiece "
        "has no start)",
    ] = 77
    cleaning: Annotated[
        str,
        Choice(CLEANINGS),
        "sentencepiece: cleaning of captions: canonicalize (lower case, no punctuation), lower, "
        "none, or clip (mojibake and HTML repaired, lower case), which the other kinds always use",
    ] = "clip"

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        reads_pieces = self.kind == "sentencepiece"
        if reads_pieces and not self.vocabulary:
            yield (
                f"{key}.vocabulary is empty, expected a tokenizer.json or a .model for "
                f"{key}.kind=sentencepiece; set it."
            )
        if not reads_pieces and self.cleaning != "clip":
            yield (
                f"{key}.cleaning is {self.cleaning!r}, expected clip for {key}.kind={self.kind}; "
                f"set it to clip, or {key}.kind=sentencepiece."
            )


def check_image_size(size: int, patch_size: int, key: str = "config.data.image_size") -> None:
    """Raises `UserError` if prepared images do not divide into whole patches."""
    if size < patch_size or size % patch_size:
        lower = max(size // patch_size, 1) * patch_size
        raise UserError(
            f"{key} is {size}, expected a multiple of {patch_size}, the side of the backbone's "
            f"patches in pixels; set it to {lower} or {lower + patch_size}."
        )
