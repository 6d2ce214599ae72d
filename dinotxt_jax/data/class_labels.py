"""Types, label checks and class names shared by all sources that provide labelled images."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import logging
from jaxtyping import Shaped

from dinotxt_jax.data.bad_images import BadImageError, bad_in_evaluation
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.errors import UserError

_WNID = re.compile(r"n[0-9]{8}")


class LabelledImage(NamedTuple):
    """One image and the classes it shows.

    Attributes:
        image: location of the image in the source: a file, or a record number.
        labels: the class labels, one or more.
        key: the image name that reports use.
    """

    image: Any
    labels: tuple[int, ...]
    key: str


class LabelledImages(NamedTuple):
    """The labelled images of a source, as read by the source module.

    Attributes:
        images: every image that has a label.
        class_names: class names, ordered by label.
        load: returns the image of a `LabelledImage`, given the fields `image` and `key`.
    """

    images: Sequence[LabelledImage]
    class_names: Sequence[str]
    load: Callable[[Any, str], bytes | Shaped[np.ndarray, "..."]]


def is_number(text: str) -> bool:
    """Returns whether `int` can parse the text as a label, including a negative one."""
    return text.removeprefix("-").isdecimal()


def is_wnid(text: str) -> bool:
    """Returns whether the text looks like a WordNet id (ImageNet folder names): n01440764."""
    return _WNID.fullmatch(text) is not None


def checked_label(label: int, classes: int, where: str, section: str) -> int:
    """Returns the label, or raises a `UserError` that names `where` if no class has this label."""
    if not 0 <= label < classes:
        raise UserError(
            f"{where}: the label {label} is not one of the {classes} classes (0 to {classes - 1}); "
            f"correct it, or {section}.classes."
        )
    return label


class Records(Protocol):
    """Numbered records with a name for all of them and one for each."""

    name: str

    def __len__(self) -> int: ...

    def key(self, index: int, /) -> str:
        """Returns the name of a record."""


def labelled_records(
    records: Records, labels_of: Callable[[int], Sequence[int]], classes: int, section: str
) -> list[LabelledImage]:
    """Reads the labels of every record; records without a label are left out and counted.

    Args:
        records: the records.
        labels_of: returns the labels of a record; an image may show several objects of a class.
        classes: number of classes.
        section: the command-line name for the data settings, used in messages.

    Raises:
        UserError: a label that no class has, or a record that cannot be read.
    """
    images = []
    for number in range(len(records)):
        key = records.key(number)
        try:
            values = labels_of(number)
        except BadImageError as error:
            raise bad_in_evaluation(number, error) from error
        labels = dict.fromkeys(checked_label(label, classes, key, section) for label in values)
        if labels:
            images.append(LabelledImage(number, tuple(labels), key))
    if len(images) < len(records):
        logging.warning(
            "%s: %d of %d examples have no label and are skipped",
            *(records.name, len(records) - len(images), len(records)),
        )
    return images


def numbers_only(where: object, section: str) -> UserError:
    """Returns the error for data that has numbers where class names are needed."""
    return UserError(
        f"{where} stores labels as numbers, so class names are needed; set {section}.classes to "
        "a list of them."
    )


@functools.cache
def imagenet_labels() -> Mapping[str, int]:
    """Returns the ImageNet-1k labels, keyed by WordNet id."""
    wnids = read_list("imagenet1k_wnids", "data.classes")
    return MappingProxyType({wnid: label for label, wnid in enumerate(wnids)})


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """Returns the ImageNet-1k class names, ordered by label."""
    return read_list("imagenet1k", "data.classes")


def readable_names(names: Sequence[str], where: object, section: str) -> list[str]:
    """Converts class names from the data to a form for prompts.

    Underscores become spaces, and WordNet ids become ImageNet class names.

    Raises:
        UserError: the names are WordNet ids and one is not in ImageNet-1k.
    """
    if not all(map(is_wnid, names)):
        return [name.replace("_", " ") for name in names]
    labels = imagenet_labels()
    strange = [name for name in names if name not in labels]
    if strange:
        raise UserError(
            f"{where} has the class {strange[0]}, which is none of ImageNet's {len(labels)}, so "
            f"its name is unknown; set {section}.classes to a list of names."
        )
    return [imagenet_names()[labels[name]] for name in names]
