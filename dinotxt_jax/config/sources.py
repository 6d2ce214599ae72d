"""Settings of example sources: where examples lie, which are used, and with which captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.ranges import Choice, Range, mistake

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


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Example source: place, captions and filters."""

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
        "captions in KEY.json, or txt for KEY.txt (default also: KEY.txt, or else the key "
        '"caption"); csv: caption column (default also: caption or title); parquet, hf_datasets: '
        "caption column (default also: caption or text); jsonl: field of the captions (default "
        "also: caption); array_record: column that the captions come from (default: all). Several "
        'columns are separated by "+"',
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
    num_scenes: Annotated[int, Range(1, 2**40), "scenes: number of scenes"] = 4096
    kept: Annotated[
        str,
        "training: list of the examples to use, written by `python -m dinotxt_jax.curate` (empty: "
        "all)",
    ] = ""
    caption_weights: Annotated[
        tuple[float, ...],
        Range(0, 1_000_000, open_low=True),
        "training with several columns in `caption_key`: relative probability of each column "
        "(empty: equal); an example without a caption in the drawn column uses another one",
    ] = ()
    caption_templates: Annotated[
        str,
        "training: templates, one of which is filled with the caption at random: a list included "
        'with the project (`data/texts`), a text file, or a single template such as "a photo of a '
        '{}." (empty: the caption itself)',
    ] = ""
    min_caption_length: Annotated[
        int,
        Range(0, 1_000_000),
        "training: minimum caption length, characters; shorter captions are not used",
    ] = 0
    max_caption_length: Annotated[
        int,
        Range(0, 1_000_000),
        "training: maximum caption length, characters; longer captions are not used (0: no limit)",
    ] = 0
    min_side: Annotated[
        int,
        Range(0, 1_000_000),
        "training: minimum short side of an image, pixels; smaller images are not used",
    ] = 0
    max_aspect_ratio: Annotated[
        float,
        Range(1, 1_000_000, special=0),
        "training: maximum ratio between the long and the short side of an image; longer images "
        "are not used (0: no limit)",
    ] = 0.0

    def source_conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about source settings that cannot be combined."""
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
        yield from self._caption_conflicts(key)

    def _caption_conflicts(self, key: str) -> Iterator[str]:
        columns = self.caption_columns
        if not all(columns) or len(set(columns)) < len(columns):
            yield (
                f"{key}.caption_key is {self.caption_key!r}, expected different columns separated "
                "by +; correct it."
            )
        if self.caption_weights and len(self.caption_weights) != len(columns):
            yield (
                f"{key}.caption_weights has {len(self.caption_weights)} numbers, expected one for "
                f"each of the {len(columns)} columns in {key}.caption_key={self.caption_key}; set "
                "both."
            )
        if 0 < self.max_caption_length < self.min_caption_length:
            yield (
                f"{key}.max_caption_length is {self.max_caption_length}, expected at least "
                f"{key}.min_caption_length={self.min_caption_length}; raise it, or set it to 0."
            )

    @property
    def caption_columns(self) -> tuple[str, ...]:
        """The columns that `caption_key` names."""
        return tuple(self.caption_key.split("+"))

    def source_content_conflicts(self, key: str, content: str, use: str) -> Iterator[str]:
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


# Settings that choose images and captions in training; evaluation uses every example.
TRAINING_FIELDS = (
    "kept",
    "caption_weights",
    "caption_templates",
    "min_caption_length",
    "max_caption_length",
    "min_side",
    "max_aspect_ratio",
)


@dataclasses.dataclass(frozen=True)
class MixtureConfig(SourceConfig):
    """One of several sources that training mixes."""

    weight: Annotated[
        float,
        Range(0, 1_000_000),
        "share of this source in the training pairs, relative to the weights of the others (0 for "
        "all: proportional to the numbers of examples)",
    ] = 0.0

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        yield from self.source_conflicts(key)


def wrong_choice(key: str, value: str, names: tuple[str, ...]) -> Iterator[str]:
    """Yields an error sentence if `value` is not among `names`; yields nothing otherwise."""
    choice = Choice(names)
    if not choice.accepts(value):
        yield mistake(key, value, choice)
