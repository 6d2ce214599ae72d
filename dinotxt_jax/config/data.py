"""Data settings: the example source, image preparation, and text tokenization."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.ranges import Choice, Range, mistake
from dinotxt_jax.errors import UserError

MASK_SETS = (
    "ade20k_150",
    "cityscapes_19",
    "voc_20",
    "voc_21",
    "context_59",
    "context_60",
    "coco_stuff_171",
    "coco_stuff_27",
    "coco_object",
    "camvid_11",
    "msrc_v2",
)
# 256 bytes, padding, start, end, and one merge.
SMALLEST_VOCABULARY = 260
# 8192 x 8192 pixels, which take 200 MB in memory.
MAX_PIXELS = 2**26
CAPTIONS, LABELS, MASKS = "captions", "class labels", "masks"


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """The settings that a source allows; `data.sources` opens the source.

    Attributes:
        gives: `CAPTIONS`, `LABELS` or `MASKS`.
        needs: `DataConfig` fields that must not be empty; mask_needs: additional fields for masks.
        names, splits: the values allowed for `name` and `split`, if known in advance.
        smallest_image: minimum image side, pixels.
    """

    gives: tuple[str, ...]
    needs: tuple[str, ...] = ("path",)
    mask_needs: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    smallest_image: int = 1


SOURCE_SETTINGS: dict[str, SourceSettings] = {
    "scenes": SourceSettings(
        (CAPTIONS, MASKS), needs=(), splits=("train", "test"), smallest_image=32
    ),
    "jsonl": SourceSettings((CAPTIONS,)),
    "array_record": SourceSettings((CAPTIONS,)),
    "webdataset": SourceSettings((CAPTIONS,)),
    "parquet": SourceSettings((CAPTIONS, LABELS)),
    "hf_datasets": SourceSettings((CAPTIONS, LABELS)),
    "tfds": SourceSettings((CAPTIONS, LABELS), needs=("name", "split")),
    "karpathy": SourceSettings((CAPTIONS,)),
    "coco": SourceSettings((CAPTIONS,)),
    "folder": SourceSettings((CAPTIONS, LABELS)),
    "csv": SourceSettings((CAPTIONS, LABELS, MASKS), mask_needs=("classes",)),
    "masks": SourceSettings((MASKS,), needs=("name", "path"), names=MASK_SETS),
}


def sources_of(content: str) -> tuple[str, ...]:
    """Returns the sources that provide `content`: `CAPTIONS`, `LABELS` or `MASKS`."""
    return tuple(name for name, source in SOURCE_SETTINGS.items() if content in source.gives)


AUGMENTATIONS = ("random_resized_crop", "center_crop", "squash")
TOKENIZER_KINDS = ("clip", "bpe")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Example source and image preparation."""

    source: Annotated[
        str,
        Choice(SOURCE_SETTINGS),
        "data set type. Captions: scenes (synthetic drawings), jsonl, array_record, webdataset, "
        "parquet, hf_datasets (Hugging Face datasets on disk), csv (also TSV), tfds, karpathy or "
        "coco (published caption files). Class labels: folder (one folder per class), csv, "
        "parquet, hf_datasets or tfds. Masks: csv, masks (a published data set in its original "
        "folder layout) or scenes",
    ] = "scenes"
    path: Annotated[
        str,
        "jsonl, csv, karpathy, coco: the file; array_record, webdataset, parquet: file, folder or "
        "glob; folder: parent folder of the class folders; hf_datasets: folder of save_to_disk or "
        "of the cache; tfds: TFDS data_dir; masks: data set root folder",
    ] = ""
    image_root: Annotated[
        str,
        "jsonl, csv, parquet, karpathy, coco: base folder for relative image paths (empty: the "
        "folder that contains the file)",
    ] = ""
    name: Annotated[str, "tfds, masks: data set name"] = ""
    split: Annotated[
        str,
        'jsonl, array_record, csv: keep only examples whose "split" field equals this value '
        '(empty: all); karpathy: the same, with several splits joined by "+"; hf_datasets: split '
        "name (empty if there is only one); tfds: split name; "
        "scenes: train or test; masks: split name (empty: the split used for published "
        "results); coco: must be empty",
    ] = ""
    image_key: Annotated[str, "parquet, hf_datasets, tfds: image column or feature"] = "image"
    caption_key: Annotated[
        str,
        'tfds: caption feature; use "captions/text" for a nested feature; webdataset: key of the '
        'captions in KEY.json (default also: KEY.txt, or else the key "caption"); csv: caption '
        "column (default also: caption or title); parquet, hf_datasets: caption column (default "
        "also: caption or text)",
    ] = "captions"
    label_key: Annotated[
        str,
        'csv: class label column (numbers or names, several separated by ";"); parquet, '
        "hf_datasets, tfds: class label column or feature; use "
        '"objects/label" for a nested feature',
    ] = "label"
    classes: Annotated[
        str,
        "folder, csv, parquet, hf_datasets, tfds, masks: class names in label order: a list "
        "included with the project (`data/texts`) or a text file (empty: the names in the data "
        "set)",
    ] = ""
    only: Annotated[
        str,
        "folder, csv, parquet, hf_datasets, tfds: keep only the classes in this list, and their "
        "examples; present: only classes that have an example (empty: all)",
    ] = ""
    num_scenes: Annotated[int, Range(1, 2**32 - 1), "scenes: number of scenes"] = 4096
    image_size: Annotated[
        int, Range(1, 16_384), "side of the square backbone input image, pixels"
    ] = 224
    augmentation: Annotated[
        str,
        Choice(AUGMENTATIONS),
        "image preparation: random_resized_crop (with flips), center_crop, or squash (resize to "
        "a square without keeping the aspect ratio)",
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
    threads: Annotated[int, Range(0, 1024), "number of decoding threads (0: none)"] = 16
    prefetch: Annotated[int, Range(0, 1_000_000), "number of examples decoded in advance"] = 64
    workers: Annotated[
        int, Range(0, 1024), "number of additional decoding processes (0: threads only)"
    ] = 0

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        for name in ("crop_scale", "crop_ratio"):
            low, high = getattr(self, name)
            if low > high:
                yield (
                    f"{key}.{name} is ({low:g}, {high:g}), expected the smaller number first; "
                    f"set it to ({high:g}, {low:g})."
                )
        source = SOURCE_SETTINGS[self.source]
        for name in source.needs:
            if not getattr(self, name):
                yield (
                    f"{key}.{name} is empty, expected the {name} that {key}.source={self.source} "
                    f"reads; set {key}.{name}."
                )
        if source.names:
            yield from wrong_choice(f"{key}.name", self.name, source.names)
        if source.splits and self.split:
            yield from wrong_choice(f"{key}.split", self.split, source.splits)
        if self.image_size < source.smallest_image:
            yield (
                f"{key}.image_size is {self.image_size}, expected at least {source.smallest_image} "
                f"for {key}.source={self.source}, whose shapes cannot be seen in smaller images; "
                "raise it."
            )

    def content_conflicts(self, key: str, content: str, use: str) -> Iterator[str]:
        """Yields sentences if the source does not provide `content`, which `use` requires."""
        suitable = sources_of(content)
        if self.source not in suitable:
            yield (
                f"{key}.source is {self.source!r}, which has no {content}, expected "
                f"{Choice(suitable)} for {use}; set it to one of these."
            )
        elif content == MASKS:
            for name in SOURCE_SETTINGS[self.source].mask_needs:
                if not getattr(self, name):
                    yield (
                        f"{key}.{name} is empty, expected the {name} that the masks of "
                        f"{key}.source={self.source} hold; set {key}.{name}."
                    )

    def preparation_conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about whole-image preparation, which segmentation does not use."""
        if self.augmentation == "center_crop" and self.resize < self.image_size:
            yield (
                f"{key}.resize is {self.resize}, expected at least {key}.image_size="
                f"{self.image_size}, since the crop is cut out of the resized image; raise it, or "
                f"set {key}.augmentation=squash."
            )


def wrong_choice(key: str, value: str, names: tuple[str, ...]) -> Iterator[str]:
    """Yields an error sentence if `value` is not among `names`; yields nothing otherwise."""
    choice = Choice(names)
    if not choice.accepts(value):
        yield mistake(key, value, choice)


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """Caption tokenization."""

    kind: Annotated[
        str,
        Choice(TOKENIZER_KINDS),
        "clip (CLIP's BPE) or bpe (trained on the captions in `config.data`)",
    ] = "clip"
    vocabulary: Annotated[
        str, "clip: vocabulary file (empty: the official file, downloaded on first use)"
    ] = ""
    vocabulary_size: Annotated[
        int, Range(SMALLEST_VOCABULARY, 10_000_000), "bpe: vocabulary size, token IDs"
    ] = 8192
    context_length: Annotated[
        int,
        Range(3, 65_536),
        "tokens per row, including the start-of-sequence and end-of-sequence tokens",
    ] = 77


def check_image_size(size: int, patch_size: int, key: str = "config.data.image_size") -> None:
    """Raises `UserError` if prepared images do not divide into whole patches."""
    if size < patch_size or size % patch_size:
        lower = max(size // patch_size, 1) * patch_size
        raise UserError(
            f"{key} is {size}, expected a multiple of {patch_size}, the side of the backbone's "
            f"patches in pixels; set it to {lower} or {lower + patch_size}."
        )
