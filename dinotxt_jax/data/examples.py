"""What a source of image-text examples is, and the checks that every source shares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from dinotxt_jax.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """One image and everything that is said of it.

    Attributes:
        image: the bytes of an image file, or uint8 [h w c].
        captions: one text or more.
        key: the name under which logs and reports speak of the example.
    """

    image: bytes | np.ndarray
    captions: tuple[str, ...]
    key: str


class Source(Protocol):
    """A finite, ordered collection of examples that any thread may read in any order.

    `__getitem__` raises `BadImageError` when the image cannot be read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def captions(self, index: int, /) -> tuple[str, ...]:
        """The captions of an example alone, without reading or drawing its image if possible."""


def checked_captions(captions: object, where: str) -> tuple[str, ...]:
    """A caption or a list of them as a tuple, or a `UserError` that names `where`."""
    listed = [captions] if isinstance(captions, (str, bytes)) else captions
    if not isinstance(listed, (list, tuple)):
        raise UserError(
            f"{where}: the captions are {shortened(captions)}, expected a text or a list of "
            "texts; correct or remove the example."
        )
    texts = tuple(
        text.decode(errors="replace") if isinstance(text, bytes) else text for text in listed
    )
    if not texts:
        raise UserError(
            f"{where}: the list of captions is empty, expected at least one text; add a caption "
            "or remove the example."
        )
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{where}: caption {number} is {shortened(text)}, expected a text that is not "
                "blank; correct or remove it."
            )
    return texts


def shortened(value: object, width: int = 60) -> str:
    """A value and its type, short enough for an error message."""
    text = f"{value!r} ({type(value).__name__})"
    return text if len(text) <= width else f"{text[:width]}... ({type(value).__name__})"


def nothing_left(path: object, split: str, splits: set[str]) -> UserError:
    """The error of a source that has nothing to give, `splits` being those it has."""
    if not splits:
        return UserError(
            f"{path} holds no examples, expected at least one; fill it or name another."
        )
    named = ", ".join(sorted(name for name in splits if name)[:10]) or "no split at all"
    return UserError(
        f"{path} has no example of split {split!r}, its examples name {named}; correct "
        "config.data.split."
    )
