"""Images with class labels: a folder a class, a CSV index, or TensorFlow Datasets.

Labels are indices into a list of class names, never names themselves: two classes may be called the
same (of ImageNet's 1000 names 998 are distinct).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.class_folders import read_class_folders
from dinotxt_jax.data.class_labels import (
    Entry,
    checked_label,
    is_number,
    numbers_only,
    readable_names,
)
from dinotxt_jax.data.csv_index import read_index
from dinotxt_jax.data.examples import (
    Example,
    folder_of_images,
    nothing_left,
    path_of,
    read_image,
    shortened,
)
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.data.tfds_records import TfdsRecords
from dinotxt_jax.errors import UserError

PRESENT = "present"
_SEPARATOR = ";"  # between the labels of one image


class LabelledSource:
    """Images and their labels; as a source of captions, the names of their classes.

    Attributes:
        class_names: one a class, in the order of the labels.

    Args:
        entries: the examples.
        class_names: as above.
        load: the image of an entry, from its `image` and `key`.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        class_names: Sequence[str],
        load: Callable[[Any, str], bytes | np.ndarray],
    ):
        self._entries = entries
        self._load = load
        self.class_names = tuple(class_names)

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Example:
        image, _, key = self._entries[index]
        return Example(self._load(image, key), self.captions(index), key)

    def captions(self, index: int) -> tuple[str, ...]:
        return tuple(self.class_names[label] for label in self.labels(index))

    def labels(self, index: int) -> tuple[int, ...]:
        """The classes of an example."""
        return self._entries[index].labels

    def key(self, index: int) -> str:
        """The name under which reports speak of an example."""
        return self._entries[index].key


def open_labelled(config: DataConfig) -> LabelledSource:
    """Opens `config.source` "folder" (a folder a class), "csv" or "tfds".

    `config.classes` names the classes by label (default: what the data says). `config.only` keeps
    the classes that a list names, numbered anew, and the examples that have one of them; "present"
    keeps the classes that have an example.

    Raises:
        UserError: missing or empty data, or a label outside the class names.
    """
    names: Sequence[str] = read_list(config.classes, "data.classes") if config.classes else ()
    load: Callable[[Any, str], bytes | np.ndarray] = read_image
    if config.source == "folder":
        entries, names = read_class_folders(path_of(config), names)
    elif config.source == "tfds":
        records = TfdsRecords(config.name, config.split, config.path, config.image_key)
        entries, names = _from_tfds(records, config.label_key, names)
        load = functools.partial(_record_image, records)
    else:
        entries, names = _from_csv(path_of(config), config, names)
    if config.only == PRESENT:
        present = {label for entry in entries for label in entry.labels}
        entries, names = _restricted(entries, names, present)
    elif config.only:
        wanted = _labels_of(read_list(config.only, "data.only"), names)
        entries, names = _restricted(entries, names, wanted)
    if not entries:
        raise nothing_left(config.path or config.name, config.split, set())
    return LabelledSource(entries, names, load)


def _record_image(records: TfdsRecords, number: int, key: str) -> bytes | np.ndarray:
    return records.image(records[number])


def _from_tfds(
    records: TfdsRecords, label_key: str, names: Sequence[str]
) -> tuple[list[Entry], Sequence[str]]:
    """Reads the labels of every record; records without one are left out."""
    names = _names_of_feature(records, label_key, names)
    entries = []
    for number in range(len(records)):
        key = records.key(number)
        found = np.ravel(records.value(records[number], label_key)).tolist()
        # An image may show several objects of one class.
        labels = tuple(dict.fromkeys(checked_label(label, len(names), key) for label in found))
        if labels:
            entries.append(Entry(number, labels, key))
    if len(entries) < len(records):
        logging.warning(
            "%s: %d of %d examples have no label and are left out",
            records.name,
            len(records) - len(entries),
            len(records),
        )
    return entries, names


def _names_of_feature(records: TfdsRecords, key: str, names: Sequence[str]) -> Sequence[str]:
    """The class names of a TFDS feature, those of `names` if there are any."""
    import tensorflow_datasets as tfds

    feature = records.feature(key, "label_key")
    where = f"{records.name}, feature {key},"
    if not isinstance(feature, tfds.features.ClassLabel):
        raise UserError(
            f"{where} is of type {type(feature).__name__}, expected class labels; correct "
            "config.data.label_key."
        )
    # TFDS takes a name of two lines for two names.
    if len(names or feature.names) != feature.num_classes:
        naming = "data.classes names" if names else "the data set names"
        raise UserError(
            f"{where} has {feature.num_classes} classes, but {naming} "
            f"{len(names or feature.names)}; name one a label, in their order, in data.classes."
        )
    if names:
        return names
    if all(map(is_number, feature.names)):
        raise numbers_only(where)
    return readable_names(feature.names, where)


def _from_csv(
    path: Path, config: DataConfig, names: Sequence[str]
) -> tuple[list[Entry], Sequence[str]]:
    rows = read_index(path, config.label_key, config.split, "data.label_key")
    labels = [[label.strip() for label in row.value.split(_SEPARATOR)] for row in rows]
    # Where the labels are the names of their classes, one that looks like a number is a name too.
    own_names = () if names else _names_in(path, labels)
    root = folder_of_images(path, config.image_root)
    entries = []
    for row, own in zip(rows, labels, strict=True):
        where = f"{path}:{row.number}"
        found = tuple(
            _label_named(label, own_names, where) if own_names else _label(label, names, where)
            for label in own
        )
        entries.append(Entry(root / row.file, found, row.file))
    return entries, names or own_names


def _names_in(path: Path, labels: Sequence[Sequence[str]]) -> list[str]:
    """The names that a CSV uses as labels, sorted; numbers cannot name their classes."""
    names = sorted({label for row in labels for label in row if label})
    if all(map(is_number, names)):
        raise numbers_only(path)
    return names


def _label(text: str, names: Sequence[str], where: str) -> int:
    if is_number(text):
        return checked_label(int(text), len(names), where)
    return _label_named(text, names, where)


def _label_named(text: str, names: Sequence[str], where: str) -> int:
    if list(names).count(text) != 1:
        found = "several classes" if text in names else "none of the classes"
        raise UserError(
            f"{where}: the label {shortened(text)} names {found}; use the number of a class."
        )
    return list(names).index(text)


def _labels_of(wanted: Sequence[str], names: Sequence[str]) -> set[int]:
    """The labels of the classes of some names, of all classes of one name."""
    strange = [name for name in wanted if name not in names]
    if strange:
        raise UserError(
            f"data.only names {shortened(strange[0])}, which is none of the {len(names)} classes; "
            "correct it."
        )
    return {label for label, name in enumerate(names) if name in set(wanted)}


def _restricted(
    entries: Sequence[Entry], names: Sequence[str], kept: Collection[int]
) -> tuple[list[Entry], list[str]]:
    """Only some classes, numbered anew, and the examples that have one of them."""
    numbers = {label: number for number, label in enumerate(sorted(kept))}
    left = []
    for image, labels, key in entries:
        own = tuple(numbers[label] for label in labels if label in numbers)
        if own:
            left.append(Entry(image, own, key))
    return left, [names[label] for label in numbers]
