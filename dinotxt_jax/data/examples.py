"""What a source of image-text examples is, and the checks that every source shares."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import numpy as np
from jaxtyping import Shaped

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.errors import UserError


@dataclass(frozen=True, slots=True)
class Example:
    """One image and everything that is said of it.

    Attributes:
        image: the bytes of an image file, or uint8 [h w] or [h w c].
        captions: one text or more.
        key: the name under which logs and reports speak of the example.
    """

    image: bytes | Shaped[np.ndarray, "h w *c"]
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


class Subset:
    """Some examples of a source, spread over it, as a source; what else it has is as before.

    Args:
        source: any source of examples, labels or masks.
        count: how many.
    """

    def __init__(self, source: Any, count: int):
        self._source = source
        self._rows = [number * len(source) // count for number in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._source[self._rows[index]]

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions of an example."""
        return self._source.captions(self._rows[index])

    def labels(self, index: int) -> tuple[int, ...]:
        """The classes of an example."""
        return self._source.labels(self._rows[index])

    def key(self, index: int) -> str:
        """The name of an example."""
        return self._source.key(self._rows[index])

    def load(self, index: int) -> Any:
        """An image and its mask."""
        return self._source.load(self._rows[index])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while being unpickled there is no source yet
            raise AttributeError(name)
        return getattr(self._source, name)


SizedT = TypeVar("SizedT", bound=Sized)


def limited(source: SizedT, count: int) -> SizedT:
    """A source, or `count` examples spread over it (0, or more than there are: all)."""
    if not 0 < count < len(source):
        return source
    return cast(SizedT, Subset(source, count))


def image_bytes(file: Path, key: str) -> bytes:
    """The bytes of an image file.

    Raises:
        BadImageError: it cannot be read; the message names `key`.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise BadImageError(f"{key} cannot be read: {error.strerror}") from error


def folder_of_images(index: Path, image_root: str | Path) -> Path:
    """The folder that the paths in an index are relative to: by default the index's own.

    Raises:
        UserError: it is not a folder.
    """
    root = Path(image_root) if image_root else index.parent
    if not root.is_dir():
        raise UserError(
            f"{root} is not a folder, expected the one that the image paths in {index} are "
            "relative to; correct config.data.image_root."
        )
    return root


_IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}


def images_below(folder: Path) -> list[Path]:
    """The image files in a folder and in those below it, by their endings, sorted."""
    return [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in _IMAGES]


def image_files(paths: Sequence[str]) -> list[Path]:
    """Image files: those named, and of folders all that are below them.

    Raises:
        UserError: a path that does not exist, or no image at all.
    """
    if not paths:
        raise UserError("no image is named, expected the paths of files or folders; add them.")
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.exists():
            raise UserError(f"{path} does not exist, expected an image or a folder; correct it.")
        found += images_below(path) if path.is_dir() else [path]
    if not found:
        raise nothing_left(", ".join(paths), "", set())
    return found


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
