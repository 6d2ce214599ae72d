"""Parquet files with an image column (file bytes or paths) and caption columns.

Reading a row decodes the whole row group; decoded groups are cached up to a memory limit. Files in
a bucket are read by byte range: one range per row group and column.
"""

from __future__ import annotations

import collections
import functools
import json
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import image_bytes, nothing_left
from dinotxt_jax.data.file_lists import data_files
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.tables import TableSource, field_of, table_labels
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.progress import watched
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.byte_ranges import ByteRanges, raw_stream
from dinotxt_jax.storage.faults import is_passing

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

# Footers are read in several threads, because storage may have a high latency.
_THREADS = 8
_MOST_OPEN = 128
# Maximum bytes that a process caches in decoded columns.
_MOST_KEPT = 2**29
# Row groups with more bytes make reading in random order slow.
_LARGE_GROUP = 2**26


class _Footer(NamedTuple):
    """A Parquet file's metadata, stored at the end of the file.

    Attributes:
        version: the file's `size_and_version`.
        rows: number of rows in each row group.
        columns: the column names.
        features: column descriptions, if the Hugging Face `datasets` library wrote the file.
        largest: size of the largest row group in bytes.
    """

    version: tuple[int, str]
    rows: list[int]
    columns: tuple[str, ...]
    features: dict[str, Any]
    largest: int


class ParquetRows:
    """The rows in Parquet files, as `TableRows`.

    Args:
        path: a file, a folder (all `*.parquet`) or a glob; files are read in sorted name order.
        image_root: the folder that image paths are relative to; "" for the Parquet file's folder.
        section: command-line name for the data settings, for messages.

    Raises:
        UserError: a file is missing or damaged, the columns differ, or there are no rows.
    """

    def __init__(self, path: str, image_root: str, section: str) -> None:
        self._files = data_files(path, ".parquet", "Parquet", f"{section}.path")
        footers = _footers(self._files)
        self.name = str(path)
        self.columns: Sequence[str] = footers[0].columns
        self.features: Mapping[str, Any] = footers[0].features
        for file, footer in zip(self._files, footers, strict=True):
            if set(footer.columns) != set(self.columns):
                raise UserError(
                    f"{file} has the columns {', '.join(footer.columns)}, expected "
                    f"{', '.join(self.columns)} as in {self._files[0]}; write it again, or correct "
                    f"{section}.path."
                )
        self._versions = [footer.version for footer in footers]
        self._root = to_address(image_root) if image_root else self._files[0].parent
        # For each row group: (file number, group number), and the number of rows up to its end.
        self._places = [
            (number, group)
            for number, footer in enumerate(footers)
            for group in range(len(footer.rows))
        ]
        self._bounds = np.cumsum([rows for footer in footers for rows in footer.rows])
        self._first_rows = np.cumsum([0, *(sum(footer.rows) for footer in footers)])
        if not len(self):
            raise nothing_left(path, "", set(), section)
        largest = max(footer.largest for footer in footers)
        if largest > _LARGE_GROUP:
            logging.warning(
                "%s has row groups with up to %.0f MiB, and reading a row decodes its whole row "
                "group: reading in random order is fast with about 100 images per row group",
                *(path, largest / 2**20),
            )

    def __len__(self) -> int:
        return int(self._bounds[-1]) if len(self._bounds) else 0

    def key(self, index: int) -> str:
        """Returns a row's name: file name and row number in the file."""
        number = int(np.searchsorted(self._first_rows, index, "right")) - 1
        return f"{self._files[number].name}[{index - int(self._first_rows[number])}]"

    def value(self, index: int, column: str) -> Any:
        """Returns the value in a row and column; "a/b" names the field b in the column a.

        Raises:
            BadImageError: the row group cannot be decoded.
            UserError: the file has changed.
        """
        place = int(np.searchsorted(self._bounds, index, "right"))
        number, group = self._places[place]
        row = index - (int(self._bounds[place - 1]) if place else 0)
        opened = _opened(self._files[number], *self._versions[number])
        try:
            values = _KEPT.column(opened, group, column.split("/")[0])
            return field_of(values[row].as_py(), column)
        except UserError:
            raise
        except Exception as error:  # raised by Arrow, if bytes cannot be decoded
            if is_passing(error):
                raise
            raise BadImageError(
                f"{self.key(index)} cannot be read (row group {group}: {_short(error)}); write the "
                "file again."
            ) from error

    def image_file(self, path: str, key: str) -> bytes:
        return image_bytes(self._root / path, key)


def _footers(files: Sequence[Address]) -> list[_Footer]:
    threads = ThreadPoolExecutor(_THREADS)
    try:
        read = threads.map(_footer, files)
        return [footer for _, footer in zip(watched(files, "file", "opening"), read, strict=True)]
    finally:
        threads.shutdown(cancel_futures=True)


def _footer(file: Address) -> _Footer:
    opened = _OpenParquet(ByteRanges(file))
    metadata, schema = opened.file.metadata, opened.file.schema_arrow
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = described.get("info", {}).get("features", {}) if isinstance(described, dict) else {}
    return _Footer(
        (opened.ranges.size, opened.ranges.version),
        [group.num_rows for group in groups],
        tuple(schema.names),
        features,
        max((group.total_byte_size for group in groups), default=0),
    )


class _OpenParquet:
    """An open file; reading takes a lock, because Arrow's reader is not thread-safe."""

    def __init__(self, ranges: ByteRanges):
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise UserError(
                "Parquet files need pyarrow, which is not installed; run pip install pyarrow."
            ) from error
        self.ranges, self.lock = ranges, threading.Lock()
        try:
            self.file = pq.ParquetFile(
                pa.PythonFile(raw_stream(ranges, keep=True), mode="r"),
                page_checksum_verification=True,
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            if is_passing(error):
                raise
            reason = "it is empty" if not ranges.size else _short(error)
            raise UserError(
                f"{ranges.address} is not a readable Parquet file ({reason}); write it again, or "
                "remove it."
            ) from error


@functools.lru_cache(maxsize=_MOST_OPEN)
def _opened(file: Address, size: int, version: str) -> _OpenParquet:
    return _OpenParquet(ByteRanges(file, (size, version)))


class _Kept:
    """A least-recently-used cache with decoded row group columns."""

    def __init__(self) -> None:
        self._columns: collections.OrderedDict[tuple[int, int, str], Any] = (
            collections.OrderedDict()
        )
        self._bytes = 0
        self._lock = threading.Lock()

    def column(self, opened: _OpenParquet, group: int, name: str) -> Any:
        """Returns a decoded row group column."""
        place = (id(opened), group, name)
        with opened.lock:  # threads that need the same group decode it only once
            with self._lock:
                if place in self._columns:
                    self._columns.move_to_end(place)
                    return self._columns[place][1]
            values = opened.file.read_row_group(group, columns=[name], use_threads=False)[name]
            with self._lock:
                # Keeps the open file alive too, so that no other object can get the same `id`.
                self._columns[place] = (opened, values)
                self._bytes += values.nbytes
                while self._bytes > _MOST_KEPT and len(self._columns) > 1:
                    self._bytes -= self._columns.popitem(last=False)[1][1].nbytes
        return values


_KEPT = _Kept()


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def _rows(config: DataConfig, section: str) -> ParquetRows:
    return ParquetRows(config.path, config.image_root, section)


PARQUET = SourceKind(
    reads=("path", "image_root", "image_key", "caption_key", "label_key", "classes", "only"),
    captions=lambda config, section: TableSource(_rows(config, section), config, section),
    labels=lambda config, names, section: table_labels(
        _rows(config, section), config, names, section
    ),
)
