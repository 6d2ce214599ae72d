"""The table with all example sources, and functions that open sources for each content type.

A source is opened once, with all cheap checks, and then read by index from many threads (and, after
pickling, from worker processes). It returns images undecoded: `dinotxt_jax.data.transforms` decodes
them, so that broken images are handled in a single place.

To add a source, write a module with a `SourceKind` and add a row here.
"""

from __future__ import annotations

from absl import logging

from dinotxt_jax.config import DataConfig, TaskConfig
from dinotxt_jax.data.array_records import ARRAY_RECORD
from dinotxt_jax.data.class_folders import FOLDER
from dinotxt_jax.data.coco import COCO
from dinotxt_jax.data.csv_index import CSV
from dinotxt_jax.data.examples import SECTION, Source, nothing_left
from dinotxt_jax.data.hf_datasets import HF_DATASETS
from dinotxt_jax.data.jsonl import JSONL
from dinotxt_jax.data.karpathy import KARPATHY
from dinotxt_jax.data.kept import kept_examples
from dinotxt_jax.data.labelled import LabelledSource, with_classes
from dinotxt_jax.data.mask_folders import MASK_FOLDERS
from dinotxt_jax.data.masks import MaskSource
from dinotxt_jax.data.mixture import Mixture
from dinotxt_jax.data.parquet import PARQUET
from dinotxt_jax.data.scenes import SCENES
from dinotxt_jax.data.source_kind import CAPTIONS, LABELS, MASKS, SourceKind
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.data.tfds_records import TFDS
from dinotxt_jax.data.webdataset import WEBDATASET
from dinotxt_jax.errors import UserError

SOURCES: dict[str, SourceKind] = {
    "scenes": SCENES,
    "jsonl": JSONL,
    "array_record": ARRAY_RECORD,
    "webdataset": WEBDATASET,
    "parquet": PARQUET,
    "hf_datasets": HF_DATASETS,
    "tfds": TFDS,
    "karpathy": KARPATHY,
    "coco": COCO,
    "folder": FOLDER,
    "csv": CSV,
    "masks": MASK_FOLDERS,
}
"""All sources, keyed by the name used in `config.data.source`."""

_ALL_READ_KEYS = {key for kind in SOURCES.values() for key in kind.reads}


def open_source(config: DataConfig, section: str = SECTION) -> Source:
    """Opens a source's images and captions; for labelled images, class names are the captions.

    A mixture is opened source by source.

    Args:
        config: the data settings.
        section: the command-line name for these settings, used in messages.

    Raises:
        UserError: the source is unknown, the data is missing or empty, or an example is invalid.
    """
    if config.mixture:
        opened = [
            (key, open_source(config.of_source(settings), key))
            for key, settings in config.sources(section)
        ]
        return Mixture(opened, config)
    kind = _kind(config, CAPTIONS, section)
    source: Source | None = None if kind.captions is None else kind.captions(config, section)
    source = open_labelled(config, section) if source is None else source
    return kept_examples(source, config.kept, f"{section}.kept") if config.kept else source


def open_labelled(config: DataConfig, section: str = SECTION) -> LabelledSource:
    """Opens a source's images and class labels.

    `config.classes` names the classes by label (default: the class names in the data).
    `config.only` keeps the classes that a list names, renumbers them, and keeps the examples with
    at least one kept class; "present" keeps the classes that have an example.

    Raises:
        UserError: the data is missing or empty, or a label is outside the class names.
    """
    read = _kind(config, LABELS, section).labels
    assert read is not None  # `_kind` checked it
    names = read_list(config.classes, f"{section}.classes") if config.classes else ()
    labelled = with_classes(read(config, names, section), config.only, section)
    if not labelled.images:
        raise nothing_left(config.path or config.name, config.split, set(), section)
    return LabelledSource(labelled)


def open_masks(config: DataConfig, section: str = SECTION) -> MaskSource:
    """Opens a source's images and masks.

    Raises:
        UserError: the data is missing or empty, an image has no mask, or there are no class names.
    """
    open_kind = _kind(config, MASKS, section).masks
    assert open_kind is not None  # `_kind` checked it
    return open_kind(config, section)


def check_gives(config: DataConfig, content: str, section: str = SECTION) -> None:
    """Raises `UserError` unless `config.source` gives `CAPTIONS`, `LABELS` or `MASKS`.

    Args:
        config: the data settings.
        content: the constant for the required content type.
        section: the command-line name for these settings, used in the message.
    """
    kind = SOURCES.get(config.source)
    if kind is None or content not in kind.gives:
        reason = "is unknown" if kind is None else f"has no {content}"
        suitable = [name for name, kind in SOURCES.items() if content in kind.gives]
        raise UserError(
            f"{section}.source={config.source!r} {reason}; choose among {', '.join(suitable)}."
        )


def _kind(config: DataConfig, content: str, section: str) -> SourceKind:
    """Returns the table row for a source, after checking the content type and shared settings."""
    check_gives(config, content, section)
    kind = SOURCES[config.source]
    if kind.needs_path and not config.path:
        raise UserError(
            f"{section}.path is empty, expected the path that {section}.source={config.source} "
            "reads; set it."
        )
    for key in unread_settings(config):
        logging.warning(
            "%s.%s=%r is not read by %s.source=%s and has no effect",
            section,
            key,
            getattr(config, key),
            section,
            config.source,
        )
    return kind


def unread_settings(config: DataConfig) -> list[str]:
    """Returns the settings that differ from the defaults but are not read by `config.source`."""
    usual = DataConfig(), TaskConfig().data  # evaluation tasks have separate defaults
    return [
        key
        for key in sorted(_ALL_READ_KEYS - {*SOURCES[config.source].reads})
        if getattr(config, key) not in [getattr(defaults, key) for defaults in usual]
    ]
