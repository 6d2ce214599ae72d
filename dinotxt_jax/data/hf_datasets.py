"""Data sets of the library Hugging Face `datasets` on disk, read without that library.

`config.path` is a folder that `save_to_disk` wrote, or the folder of a data set in the library's
cache (with `dataset_info.json` and files `NAME-SPLIT.arrow`). The Arrow files are mapped into
memory and read at any position.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinotxt_jax.data.bad_images import BadImageError, MissingImageError
from dinotxt_jax.data.caption_files import filled_text, typed_field
from dinotxt_jax.data.class_labels import (
    LabelledImages,
    is_number,
    labelled_records,
    numbers_only,
    readable_names,
)
from dinotxt_jax.data.examples import (
    SECTION,
    Example,
    caption_columns,
    caption_or_bad,
    check_records,
    image_bytes,
    nothing_left,
    shortened,
)
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import read_json
from dinotxt_jax.storage.object_cache import local_copies

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

_CURE = "write or download the data set again"
# An Arrow stream ends with these bytes; without them, batches may be missing.
_END = b"\xff\xff\xff\xff\0\0\0\0"
_CAPTION_COLUMNS = ("caption", "text")


class ArrowRows:
    """The rows of one split, in the order of the files.

    Args:
        folder: the folder, see the module docstring.
        split: the split; "" if there is only one.
        section: command-line name for the data settings, for messages.

    Attributes:
        name: the folder and the split, for messages.
        columns: the names of the columns.
        features: the description of each column, as the library stores it.

    Raises:
        UserError: there is no such data set or split, or a file is damaged or not complete.
    """

    def __init__(self, folder: Address, split: str, section: str) -> None:
        files, self.features, count = _located(folder, split, section)
        self._files = local_copies(files, f"{section}.path")
        of_split = f"[{split}]" if split else ""
        self.name, self._key = f"{folder}{of_split}", f"{folder.name}{of_split}"
        self._section = section
        self._sizes = [file.stat().st_size for file in self._files]
        self._open()
        if count is not None and count != len(self):
            raise UserError(
                f"{self.name} has {len(self)} rows, expected {count} by its dataset_info.json; "
                f"{_CURE}."
            )
        if not len(self):
            raise nothing_left(folder, split, set(), section)

    def _open(self) -> None:
        self._batches = [
            (number, batch)
            for number, file in enumerate(self._files)
            for batch in _mapped_batches(file)
        ]
        self._checked: set[int] = set()
        self._bounds = np.cumsum([batch.num_rows for _, batch in self._batches])
        self.columns = tuple(self._batches[0][1].schema.names) if self._batches else ()

    def __len__(self) -> int:
        return int(self._bounds[-1]) if len(self._bounds) else 0

    def column(self, names: Sequence[str], setting: str) -> str:
        """Returns the first of these columns that exists; `setting` is the key that names it.

        Raises:
            UserError: there is none of them.
        """
        found = next((name for name in names if name.split("/")[0] in self.columns), None)
        if found is None:
            raise UserError(
                f"{self.name} has the columns {', '.join(self.columns)}, expected {names[0]}; set "
                f"{self._section}.{setting} to the correct column."
            )
        return found

    def value(self, index: int, column: str) -> Any:
        """Returns the value of a column in a row; "a/b" names the field b in the column a.

        Raises:
            UserError: the file has changed; reading a truncated map would end the process.
            BadImageError: the row cannot be read.
        """
        number = int(np.searchsorted(self._bounds, index, "right"))
        file, batch = self._batches[number]
        if os.stat(self._files[file]).st_size != self._sizes[file]:
            raise UserError(
                f"{self._files[file]} has changed since this command opened it; run the command "
                "again when the data set is complete."
            )
        row = index - (int(self._bounds[number - 1]) if number else 0)
        first, *inner = column.split("/")
        try:
            if number not in self._checked:  # a wrong offset would be followed without a check
                batch.validate(full=True)
                self._checked.add(number)
            value = batch.column(first)[row].as_py()
            for part in inner:
                value = value[part]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadImageError(f"{self.key(index)} cannot be read ({error}); {_CURE}.") from error
        return value

    def image(self, index: int, column: str) -> bytes:
        """Returns the bytes of the image in a row, which holds them or the path of an image file.

        Raises:
            BadImageError: the row has no image.
        """
        value = self.value(index, column)
        if isinstance(value, dict) and {"bytes", "path"} <= value.keys():
            value = value["path"] if value["bytes"] is None else value["bytes"]
        if isinstance(value, str):
            try:
                return image_bytes(Path(value), f"{value} of {self.key(index)}")
            except MissingImageError as error:
                raise BadImageError(
                    f"{error}; copy the files to the same paths, or save the data set with the "
                    "images inside."
                ) from error
        if not isinstance(value, bytes):
            raise BadImageError(
                f"{self.key(index)} has {shortened(value)} in the column {column}, expected an "
                f"image; correct {self._section}.image_key."
            )
        return value

    def key(self, index: int) -> str:
        """Returns the name of a row, which stays the same if the folder is moved."""
        return f"{self._key}[{index}]"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_batches"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


def _mapped_batches(file: Path) -> list[Any]:
    """Returns the record batches of an Arrow stream, which stay on disk until they are read."""
    try:
        import pyarrow as pa
    except ImportError as error:
        raise UserError(
            "Arrow files need pyarrow, which is not installed; run pip install pyarrow."
        ) from error
    try:
        with file.open("rb") as stream:
            stream.seek(max(-len(_END), -file.stat().st_size), os.SEEK_END)
            if stream.read() != _END:
                raise UserError(f"{file} is truncated, expected a complete Arrow file; {_CURE}.")
        return list(pa.ipc.open_stream(pa.memory_map(str(file))))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise UserError(f"{file} is no Arrow file that can be read ({error}); {_CURE}.") from error


def _located(
    folder: Address, split: str, section: str
) -> tuple[list[Address], dict[str, Any], int | None]:
    """Returns the Arrow files of a split, the columns' descriptions, and the count if known."""
    if (folder / "dataset_dict.json").is_file():
        file = folder / "dataset_dict.json"
        listed = typed_field(read_json(file, "the splits", _CURE), "splits", list, file, section)
        folder, split = folder / _chosen(folder, split, list(map(str, listed)), section), ""
    if (folder / "state.json").is_file():
        file = folder / "state.json"
        state = read_json(file, "the names of Arrow files", _CURE)
        saved = str(state.get("_split") or "")
        if split and split != saved:
            _chosen(folder, split, [saved] if saved else [], section)
        if state.get("_indices_data_files"):
            raise UserError(
                f"{folder} holds rows in an order of its own, which this version cannot read; save "
                "the result of flatten_indices()."
            )
        files = [
            folder / filled_text(entry, "filename", file, section)
            for entry in typed_field(state, "_data_files", list, file, section)
        ]
        count = None
    elif (folder / "dataset_info.json").is_file():
        splits = _dict_in(_info(folder), "splits")
        split = _chosen(folder, split, list(splits), section)
        pattern = re.compile(rf".*-{re.escape(split)}(-\d+-of-\d+)?\.arrow")
        files = sorted(file for file in folder.iterdir() if pattern.fullmatch(file.name))
        where = f"{folder / 'dataset_info.json'}, split {split}"
        count = typed_field(splits[split], "num_examples", int, where, section)
    else:
        raise UserError(
            f"{folder} holds no data set of the library datasets (neither state.json, "
            "dataset_dict.json nor dataset_info.json), expected a folder of save_to_disk or of its "
            f"cache; correct {section}.path."
        )
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        name = missing[0] if missing else folder / "*.arrow"
        raise UserError(f"there is no file {name}, expected the rows of the data set; {_CURE}.")
    return files, _dict_in(_info(folder), "features"), count


def _info(folder: Address) -> dict[str, Any]:
    return read_json(folder / "dataset_info.json", "the columns of the data set", _CURE)


def _dict_in(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the dict at a key, empty if there is none."""
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _chosen(folder: Address, split: str, splits: Sequence[str], section: str) -> str:
    """Returns the split, or the only one; raises `UserError` if there is no such split."""
    if not split and len(splits) == 1:
        return splits[0]
    if split not in splits:
        raise UserError(
            f"{folder} has {'the splits ' + ', '.join(splits) if splits else 'no splits'}, but "
            f"{section}.split is {split!r}; set it to {'one of these' if splits else repr('')}."
        )
    return split


class HfDatasetSource:
    """Images and captions of a split (see the module docstring)."""

    def __init__(self, config: DataConfig, section: str = SECTION) -> None:
        self._rows = ArrowRows(to_address(config.path), config.split, section)
        self._image = self._rows.column((config.image_key,), "image_key")
        names = caption_columns(config.caption_key, _CAPTION_COLUMNS)
        self._captions = self._rows.column(names, "caption_key")
        check_records(self.captions, len(self))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Example:
        image = self._rows.image(index, self._image)
        return Example(image, self.captions(index), self.key(index))

    def captions(self, index: int) -> tuple[str, ...]:
        return caption_or_bad(self._rows.value(index, self._captions), self.key(index))

    def key(self, index: int) -> str:
        """Returns the name of an example."""
        return self._rows.key(index)


def _read_labels(config: DataConfig, names: Sequence[str], section: str) -> LabelledImages:
    rows = ArrowRows(to_address(config.path), config.split, section)
    image = rows.column((config.image_key,), "image_key")
    column = rows.column((config.label_key,), "label_key")
    names = names or _names_of_column(rows, column, section)

    def labels_of(number: int) -> list[int]:
        value = rows.value(number, column)
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(label, int) for label in values):
            raise UserError(
                f"{rows.key(number)} has {shortened(value)} in the column {column}, expected class "
                f"labels; correct {section}.label_key."
            )
        return values

    images = labelled_records(rows, labels_of, len(names), section)
    return LabelledImages(images, names, functools.partial(_image_of_row, rows, image))


def _names_of_column(rows: ArrowRows, column: str, section: str) -> list[str]:
    """Returns the class names that a `ClassLabel` defines."""
    description: Any = rows.features
    for part in column.split("/"):
        description = description.get(part, {}) if isinstance(description, dict) else {}
        description = _element_of(description)
    names = description.get("names") if isinstance(description, dict) else None
    if not names or not all(isinstance(name, str) for name in names) or all(map(is_number, names)):
        raise numbers_only(f"{rows.name}, column {column},", section)
    return readable_names(names, rows.name, section)


def _element_of(description: Any) -> Any:
    """Returns the description of the elements of a (possibly nested) list."""
    while True:
        if isinstance(description, list) and description:
            description = description[0]
        elif isinstance(description, dict) and "feature" in description:
            description = description["feature"]
        else:
            return description


def _image_of_row(rows: ArrowRows, column: str, number: int, key: str) -> bytes:
    return rows.image(number, column)


HF_DATASETS = SourceKind(
    reads=("path", "split", "image_key", "caption_key", "label_key", "classes", "only"),
    captions=HfDatasetSource,
    labels=_read_labels,
)
