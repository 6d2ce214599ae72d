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
    """An image and the classes that it shows.

    Attributes:
        image: where the source stores the image: a file, or a record number.
        labels: one or more class labels.
        key: the image name that reports use.
    """

    image: Any
    labels: tuple[int, ...]
    key: str


class LabelledImages(NamedTuple):
    """A source's labelled images, as read by the source module.

    Attributes:
        images: every image that has a label.
        class_names: class names, ordered by label.
        load: loads the image, given the `LabelledImage` fields `image` and `key`.
    """

    images: Sequence[LabelledImage]
    class_names: Sequence[str]
    load: Callable[[Any, str], bytes | Shaped[np.ndarray, "..."]]


def is_number(text: str) -> bool:
    """Returns whether `int` can parse the text as a label, which may be negative."""
    return text.removeprefix("-").isdecimal()


def is_wnid(text: str) -> bool:
    """Returns whether the text looks like a WordNet ID (ImageNet folder names): n01440764."""
    return _WNID.fullmatch(text) is not None


def checked_label(label: int, classes: int, where: str, section: str) -> int:
    """Returns the label, or raises a `UserError` that names `where` if no class has this label."""
    if not 0 <= label < classes:
        raise UserError(
            f"{where}: the label {label} is outside the {classes} classes (0 to {classes - 1}); "
            f"correct it, or {section}.classes."
        )
    return label


class Records(Protocol):
    """Numbered records with a common name, and a key for each record."""

    name: str

    def __len__(self) -> int: ...

    def key(self, index: int, /) -> str:
        """Returns a record's name."""


def labelled_records(
    records: Records, labels_of: Callable[[int], Sequence[int]], classes: int, section: str
) -> list[LabelledImage]:
    """Reads every record's labels; skips records without a label, and logs their number.

    Args:
        records: the records.
        labels_of: returns a record's labels, possibly repeated (several objects in one class).
        classes: number of classes.
        section: the command-line name for the data settings, used in messages.

    Raises:
        UserError: a label is not a class, or a record cannot be read.
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
            "%s: skipped %d of %d examples, which have no label",
            *(records.name, len(records) - len(images), len(records)),
        )
    return images


def numbers_only(where: object, section: str) -> UserError:
    """Returns the error for data that has numbers where class names are needed."""
    return UserError(
        f"{where} stores labels as numbers, so class names are needed; set {section}.classes to "
        "a list of class names."
    )


@functools.cache
def imagenet_labels() -> Mapping[str, int]:
    """Returns the ImageNet-1k labels, keyed by WordNet ID."""
    wnids = read_list("imagenet1k_wnids", "data.classes")
    return MappingProxyType({wnid: label for label, wnid in enumerate(wnids)})


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """Returns the ImageNet-1k class names, ordered by label."""
    return read_list("imagenet1k", "data.classes")


def readable_names(names: Sequence[str], where: object, section: str) -> list[str]:
    """Converts class names from the data to a form for prompts.

    Underscores become spaces, and WordNet IDs become ImageNet class names.

    Raises:
        UserError: all names are WordNet IDs, and an ID is not in ImageNet-1k.
    """
    if not all(map(is_wnid, names)):
        return [name.replace("_", " ") for name in names]
    labels = imagenet_labels()
    unknown_ids = [name for name in names if name not in labels]
    if unknown_ids:
        raise UserError(
            f"{where} has the class {unknown_ids[0]}, which is not among ImageNet's {len(labels)}, "
            f"so the class name is unknown; set {section}.classes to a list of names."
        )
    return [imagenet_names()[labels[name]] for name in names]
