"""Types, checks of labels and class names that all sources of labelled images share."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from dinotxt_jax.data.texts import read_list
from dinotxt_jax.errors import UserError

_WNID = re.compile(r"n[0-9]{8}")


class LabelledImage(NamedTuple):
    """One image and its classes.

    Attributes:
        image: where the source finds the image: a file, or the number of a record.
        labels: the classes of the image, one or more.
        key: the name under which reports speak of the image.
    """

    image: Any
    labels: tuple[int, ...]
    key: str


class LabelledImages(NamedTuple):
    """The labelled images of a source, as its module reads them.

    Attributes:
        images: every image that has a label.
        class_names: name of each class, in the order of the labels.
        load: returns the image of a `LabelledImage`, from its fields `image` and `key`.
    """

    images: Sequence[LabelledImage]
    class_names: Sequence[str]
    load: Callable[[Any, str], bytes | Shaped[np.ndarray, "..."]]


def is_number(text: str) -> bool:
    """Whether `int` reads the text as a label, if perhaps as a negative one."""
    return text.removeprefix("-").isdecimal()


def is_wnid(text: str) -> bool:
    """Whether the text has the form of a WordNet id, as ImageNet names its folders: n01440764."""
    return _WNID.fullmatch(text) is not None


def checked_label(label: int, classes: int, where: str, section: str) -> int:
    """The label, or a `UserError` that names `where` if no class has it."""
    if not 0 <= label < classes:
        raise UserError(
            f"{where}: the label {label} lies outside the {classes} classes (0 to {classes - 1}); "
            f"correct it, or {section}.classes."
        )
    return label


def numbers_only(where: object, section: str) -> UserError:
    """The error that data has numbers where names of classes are needed."""
    return UserError(
        f"{where} has numbers for labels, so that their names are needed; set {section}.classes to "
        "a list of them."
    )


@functools.cache
def imagenet_labels() -> Mapping[str, int]:
    """The labels of ImageNet-1k by WordNet id."""
    wnids = read_list("imagenet1k_wnids", "data.classes")
    return MappingProxyType({wnid: label for label, wnid in enumerate(wnids)})


@functools.cache
def imagenet_names() -> tuple[str, ...]:
    """The class names of ImageNet-1k in the order of the labels."""
    return read_list("imagenet1k", "data.classes")


def readable_names(names: Sequence[str], where: object, section: str) -> list[str]:
    """Class names that data gives, for prompts: without underscores, and words for WordNet ids.

    Raises:
        UserError: WordNet ids, of which one is not in ImageNet-1k.
    """
    if not all(map(is_wnid, names)):
        return [name.replace("_", " ") for name in names]
    labels = imagenet_labels()
    strange = [name for name in names if name not in labels]
    if strange:
        raise UserError(
            f"{where} has the class {strange[0]}, which is none of ImageNet's {len(labels)}, so "
            f"that its name is not known; set {section}.classes to a list of names."
        )
    return [imagenet_names()[labels[name]] for name in names]
