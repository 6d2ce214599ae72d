"""Reads Hugging Face `datasets` data sets from disk, without that library.

`config.path` is a folder that `save_to_disk` wrote, or a data set's folder in the library's cache
(with `dataset_info.json` and files `NAME-SPLIT.arrow`). Arrow files are memory-mapped and read at
random positions.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinotxt_jax.data.bad_images import BadImageError, MissingImageError
from dinotxt_jax.data.caption_files import filled_text, typed_field
from dinotxt_jax.data.examples import image_bytes, nothing_left
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.tables import TableSource, field_of, table_labels
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import read_json
from dinotxt_jax.storage.object_cache import local_copies

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

_CURE = "write or download the data set again"
# An Arrow stream ends with these bytes; if they are missing, batches may be missing too.
_END = b"\xff\xff\xff\xff\0\0\0\0"


class ArrowRows:
    """The rows in a split, in file order.

    Args:
        folder: the folder, see the module docstring.
        split: the split; "" if there is a single split.
        section: command-line name for the data settings, for messages.

    Attributes:
        name: the folder and the split, for messages.
        columns: the column names.
        features: the library's description for each column.

    Raises:
        UserError: the data set or split does not exist, or a file is damaged or incomplete.
    """

    def __init__(self, folder: Address, split: str, section: str) -> None:
        files, features, count = _located(folder, split, section)
        self.features: Mapping[str, Any] = features
        self._files = local_copies(files, f"{section}.path")
        suffix = f"[{split}]" if split else ""
        self.name, self._key = f"{folder}{suffix}", f"{folder.name}{suffix}"
        self._sizes = [file.stat().st_size for file in self._files]
        self._open()
        if count is not None and count != len(self):
            raise UserError(
                f"{self.name} has {len(self)} rows, expected {count} as in dataset_info.json; "
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
        names = self._batches[0][1].schema.names if self._batches else ()
        self.columns: Sequence[str] = tuple(names)

    def __len__(self) -> int:
        return int(self._bounds[-1]) if len(self._bounds) else 0

    def value(self, index: int, column: str) -> Any:
        """Returns the value in a row and column; "a/b" names the field b in the column a.

        Raises:
            UserError: the file has changed; reading a truncated memory map would kill the process.
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
        first = column.split("/")[0]
        try:
            if number not in self._checked:  # Arrow follows wrong offsets in unvalidated batches
                batch.validate(full=True)
                self._checked.add(number)
            return field_of(batch.column(first)[row].as_py(), column)
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise BadImageError(f"{self.key(index)} cannot be read ({error}); {_CURE}.") from error

    def image_file(self, path: str, key: str) -> bytes:
        try:
            return image_bytes(Path(path), key)
        except MissingImageError as error:
            raise BadImageError(
                f"{error}; copy the files to the same paths, or save the data set with embedded "
                "images."
            ) from error

    def key(self, index: int) -> str:
        """Returns a row's name, which does not depend on the parent folder."""
        return f"{self._key}[{index}]"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_batches"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open()


def _mapped_batches(file: Path) -> list[Any]:
    """Returns an Arrow file's record batches, which stay on disk until they are read."""
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
        raise UserError(f"{file} is not a readable Arrow file ({error}); {_CURE}.") from error


def _located(
    folder: Address, split: str, section: str
) -> tuple[list[Address], dict[str, Any], int | None]:
    """Returns a split's Arrow files, the column descriptions, and the row count if known."""
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
                f"{folder} stores its rows through an index mapping, which this version cannot "
                "read; save the result of flatten_indices()."
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
            f"{folder} holds no Hugging Face data set (neither state.json, dataset_dict.json nor "
            "dataset_info.json), expected a folder from save_to_disk or from the datasets cache; "
            f"correct {section}.path."
        )
    missing = [file for file in files if not file.is_file()]
    if missing or not files:
        name = missing[0] if missing else folder / "*.arrow"
        raise UserError(f"there is no file {name}, expected the data set's rows; {_CURE}.")
    return files, _dict_in(_info(folder), "features"), count


def _info(folder: Address) -> dict[str, Any]:
    return read_json(folder / "dataset_info.json", "the columns of the data set", _CURE)


def _dict_in(holder: dict[str, Any], key: str) -> dict[str, Any]:
    """Returns the dict at a key, or an empty dict if there is no dict."""
    value = holder.get(key)
    return value if isinstance(value, dict) else {}


def _chosen(folder: Address, split: str, splits: Sequence[str], section: str) -> str:
    """Returns `split`, or the only existing split if "".

    Raises:
        UserError: the split does not exist, or "" with several splits.
    """
    if not split and len(splits) == 1:
        return splits[0]
    if split not in splits:
        raise UserError(
            f"{folder} has {'the splits ' + ', '.join(splits) if splits else 'no splits'}, but "
            f"{section}.split is {split!r}; set it to {'one of these' if splits else repr('')}."
        )
    return split


def _rows(config: DataConfig, section: str) -> ArrowRows:
    return ArrowRows(to_address(config.path), config.split, section)


HF_DATASETS = SourceKind(
    reads=("path", "split", "image_key", "caption_key", "label_key", "classes", "only"),
    captions=lambda config, section: TableSource(_rows(config, section), config, section),
    labels=lambda config, names, section: table_labels(
        _rows(config, section), config, names, section
    ),
)
