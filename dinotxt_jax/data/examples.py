"""The interface for image-text example sources, and the checks that all sources share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import numpy as np
from jaxtyping import Shaped

from dinotxt_jax.data.bad_images import BadImageError, MissingImageError
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike, has_folders, to_address
from dinotxt_jax.storage.faults import is_passing
from dinotxt_jax.storage.retries import retried

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

# Other caption column names substitute for this default key only, never for a key set by the user.
DEFAULT_CAPTION_KEY = "captions"
SECTION = "config.data"  # settings name for training data; evaluation data uses other names


@dataclass(frozen=True, slots=True)
class Example:
    """An image and all its captions.

    Attributes:
        image: image file bytes, or uint8 [h w] or [h w c].
        captions: one or more texts.
        key: the example name in logs and reports.
    """

    image: bytes | Shaped[np.ndarray, "h w *c"]
    captions: tuple[str, ...]
    key: str


class ColumnCaptions(tuple[str, ...]):
    """An example's captions from several columns, such as alt text and synthetic captions.

    Attributes:
        columns: the column name for each caption.
    """

    columns: tuple[str, ...]

    @classmethod
    def of(cls, values: Mapping[str, object], where: str) -> ColumnCaptions:
        """Collects the captions in several columns; skips columns without a caption.

        Args:
            values: column -> a caption, a list of captions, or None.
            where: location in the data, for messages.

        Raises:
            UserError: no column has a caption, or a value is not a text.
        """
        present = {
            column: checked_captions(value, where)
            for column, value in values.items()
            if not _is_blank(value)
        }
        if not present:
            raise UserError(
                f"{where}: the columns {', '.join(values)} have no caption, expected a caption in "
                "at least one column; add it or remove the example."
            )
        captions = cls(text for texts in present.values() for text in texts)
        captions.columns = tuple(column for column, texts in present.items() for _ in texts)
        return captions


def _is_blank(value: object) -> bool:
    texts = value if isinstance(value, (list, tuple)) else [value]
    return all(t is None or (isinstance(t, (str, bytes)) and not t.strip()) for t in texts)


class Source(Protocol):
    """A finite, ordered example collection that any thread may read in any order.

    `__getitem__` raises `BadImageError` when the image cannot be read.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example: ...

    def captions(self, index: int, /) -> tuple[str, ...]:
        """Returns an example's captions, if possible without reading or drawing the image."""

    def key(self, index: int, /) -> str:
        """Returns an example's name, if possible without reading or drawing the image."""


class Subset:
    """A source with `count` evenly spaced examples from another source.

    All other attributes are forwarded to the original source.

    Args:
        source: any source of examples, labels or masks.
        count: number of examples.
    """

    def __init__(self, source: Any, count: int):
        self._source = source
        self._rows = [number * len(source) // count for number in range(count)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        return self._source[self._rows[index]]

    def captions(self, index: int) -> tuple[str, ...]:
        """Returns an example's captions."""
        return self._source.captions(self._rows[index])

    def labels(self, index: int) -> tuple[int, ...]:
        """Returns an example's class labels."""
        return self._source.labels(self._rows[index])

    def key(self, index: int) -> str:
        """Returns an example's name."""
        return self._source.key(self._rows[index])

    def load(self, index: int) -> Any:
        """Returns an image and its mask."""
        return self._source.load(self._rows[index])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # during unpickling, `_source` does not exist yet
            raise AttributeError(name)
        return getattr(self._source, name)


SizedT = TypeVar("SizedT", bound=Sized)


def limited(source: SizedT, count: int) -> SizedT:
    """Returns `count` evenly spaced examples; all examples if `count` is 0 or too large."""
    if not 0 < count < len(source):
        return source
    return cast(SizedT, Subset(source, count))


def image_bytes(file: Address, key: str) -> bytes:
    """Reads an image file's bytes, retrying after transient storage errors.

    Raises:
        BadImageError: the file cannot be read; the message names `key`.
        OSError: the storage failed repeatedly, so the image itself may be good.
    """
    try:
        return retried(file.read_bytes)
    except FileNotFoundError as error:
        raise MissingImageError(f"{key} cannot be read: {error.strerror}") from error
    except OSError as error:
        if is_passing(error):
            raise
        raise BadImageError(f"{key} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        raise BadImageError(f"{key!a} cannot be read: it is not a path ({error})") from error


def readable_captions(source: Source, index: int) -> tuple[str, ...]:
    """Returns an example's captions, or an empty tuple if the record is damaged."""
    try:
        return source.captions(index)
    except BadImageError:
        return ()


def check_records(read: Callable[[int], object], count: int) -> None:
    """Checks that at least one among a few evenly spaced records is readable.

    Raises:
        UserError: no tried record is readable, so the records probably have another format.
    """
    tried = min(_LOOKED_FOR, count)
    for number in range(tried):
        try:
            read(number * count // tried)
        except BadImageError as error:
            reason = error
        else:
            return
    raise UserError(str(reason))


def no_file(path: Address) -> str:
    """Returns a clause for error messages that says whether a path is missing or a folder."""
    return f"{path} is a folder" if path.is_dir() else f"there is no file {path}"


def folder_of_images(index: Address, image_root: AddressLike, section: str) -> Address:
    """Returns the base folder for the image paths in an index: by default the index file's folder.

    Raises:
        UserError: the path is not a folder.
    """
    root = to_address(image_root) if image_root else index.parent
    if has_folders(root) and not retried(root.is_dir):
        raise UserError(
            f"{root} is not a folder, expected the folder that the image paths in {index} "
            f"are relative to; correct {section}.image_root."
        )
    return root


_LOOKED_FOR = 8


def check_images_found(source: Any, config: DataConfig, section: str = SECTION) -> None:
    """Tries a few evenly spaced images in a source, and stops at the first that exists.

    Commands that read images call this first, to report a wrong folder before hours of work.
    Training from cached features does not call it, because it needs no images.

    Args:
        source: the source opened from `config`; `source[i]` reads example i.
        config: the data settings.
        section: the command-line name for these settings, used in the message.

    Raises:
        UserError: all tried images are missing; the message names the searched folder.
    """
    count, reason = min(_LOOKED_FOR, len(source)), ""
    for number in range(count):
        try:
            source[number * len(source) // count]
        except MissingImageError as error:
            reason = str(error)
        except BadImageError:
            return  # the file exists; bad images are counted later, while reading all images
        else:
            return
    root = config.image_root or to_address(config.path).parent
    raise UserError(
        f"none of {count} image paths tried from {config.path} exists in the folder {root} "
        f"({reason}), expected paths relative to that folder; set {section}.image_root to the "
        "folder that they are relative to."
    )


def checked_captions(captions: object, where: str) -> tuple[str, ...]:
    """Converts a caption or a list to a tuple; if invalid, raises a `UserError` naming `where`."""
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
            f"{where}: the caption list is empty, expected at least one text; add a caption or "
            "remove the example."
        )
    for number, text in enumerate(texts, 1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{where}: caption {number} is {shortened(text)}, expected a text that is not "
                "blank; correct or remove it."
            )
    return texts


def caption_columns(key: str, others: Sequence[str]) -> tuple[str, ...]:
    """Returns the columns in which to look for captions, most preferred first.

    Args:
        key: `config.caption_key`.
        others: column names that substitute for the default key.
    """
    return (key, *others) if key == DEFAULT_CAPTION_KEY else (key,)


def captions_of(values: Mapping[str, object], where: str) -> tuple[str, ...]:
    """Returns the captions in the columns that `caption_key` names.

    Args:
        values: column -> a caption, a list of captions, or None.
        where: location in the data, for messages.

    Raises:
        UserError: there is no caption, or a value is not a text.
    """
    if len(values) > 1:
        return ColumnCaptions.of(values, where)
    return checked_captions(next(iter(values.values())), where)


def captions_or_bad(values: Mapping[str, object], where: str) -> tuple[str, ...]:
    """Returns captions like `captions_of`, but raises `BadImageError` for invalid captions.

    Web data contains blank captions; these count as bad images instead of stopping a run.
    """
    try:
        return captions_of(values, where)
    except UserError as error:
        raise BadImageError(str(error)) from error


def shortened(value: object, width: int = 60) -> str:
    """Formats a value and its type, short enough for an error message."""
    text = f"{value!r} ({type(value).__name__})"
    return text if len(text) <= width else f"{text[:width]}... ({type(value).__name__})"


def nothing_left(path: object, split: str, splits: set[str], section: str) -> UserError:
    """Returns the error for a source without examples in `split`; `splits` lists its splits."""
    if not splits:
        return UserError(
            f"{path} is empty, expected at least one example; fill it, or correct {section}.path."
        )
    listed = ", ".join(sorted(name for name in splits if name)[:10])
    if not listed:
        return UserError(
            f"{path} has no example in the split {split!r}, its examples name no split; set "
            f"--{section}.split= to use all examples, or add the split to each example."
        )
    return UserError(
        f"{path} has no example in the split {split!r}, its examples name {listed}; correct "
        f"{section}.split."
    )
