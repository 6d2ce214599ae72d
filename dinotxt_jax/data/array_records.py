"""ArrayRecord files with one msgpack map per example.

    {image: bytes, captions: [str], key: str, split?: str, columns?: [str]}

`columns` lists the source column for each caption.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import logging
from jaxtyping import Shaped

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import (
    DEFAULT_CAPTION_KEY,
    SECTION,
    ColumnCaptions,
    Example,
    captions_or_bad,
    check_records,
    nothing_left,
    shortened,
)
from dinotxt_jax.data.file_lists import data_files
from dinotxt_jax.data.manifests import check_shard, expected_shards
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import AddressLike, size_and_version, to_address
from dinotxt_jax.storage.faults import is_passing
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.object_cache import local_copies
from dinotxt_jax.storage.retries import retried

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


class ArrayRecordSource:
    """ArrayRecord files with msgpack records (see the module docstring).

    `path` is a file, a folder (all files with `.array_record` in the name) or a glob; files are
    read in sorted name order. Selecting a `split` reads every record once on opening, which is
    slow for large data: write separate files per split instead. A damaged record counts as a bad
    image. Files in a bucket are first copied to a local cache (`storage.object_cache`), because the
    array_record library only opens local paths. Ingested files are compared with the manifest
    (`manifests`): which files exist, file sizes and record counts.
    """

    def __init__(
        self,
        path: AddressLike,
        *,
        split: str = "",
        caption_columns: Sequence[str] = (DEFAULT_CAPTION_KEY,),
        section: str = SECTION,
    ) -> None:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        self._path = str(path)
        self._caption_columns = tuple(caption_columns)
        try:
            files = data_files(path, ".array_record", "ArrayRecord", f"{section}.path")
            shards = expected_shards(path, files)
            copies = local_copies(files, f"{section}.path")
            self._versions = {str(file): size_and_version(file) for file in copies}
            self._records = ArrayRecordDataSource([str(file) for file in copies])
        except RuntimeError as error:
            raise UserError(
                f"{self._path} cannot be read as ArrayRecord ({error}), expected whole files "
                f"written by write_array_record; write them again or correct {section}.path."
            ) from error
        if shards:
            counts = [part.num_records for part in self._records._read_instructions]
            for file, copy, count in zip(files, copies, counts, strict=True):
                if file in shards:
                    check_shard(file, copy, count, shards[file])
        self._numbers = np.arange(len(self._records))
        if split:
            record_splits = [self._split(number) for number in range(len(self._records))]
            self._numbers = np.flatnonzero(np.asarray(record_splits, object) == split)
            if not len(self._numbers):
                raise nothing_left(self._path, split, set(record_splits), section)
        if not len(self._numbers):
            raise nothing_left(self._path, split, set(), section)
        check_records(self.captions, len(self))

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Opens the files in a worker process, where they must still be the same."""
        self.__dict__.update(state)
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        """Raises `UserError` if a file differs from the one whose records were counted."""
        for name, version in self._versions.items():
            file = to_address(name)
            if not file.exists() or size_and_version(file) != version:
                raise UserError(
                    f"{name} has changed since this command opened it, so that records are no "
                    "longer the same examples; run the command again, on files that stay."
                )

    def _split(self, number: int) -> str:
        try:
            return self._read(number).get("split", "")
        except BadImageError as error:
            logging.warning("skipped a record with an unknown split: %s", error)
            return ""

    def _read(self, number: int) -> Mapping[str, Any]:
        import msgpack

        where = f"{self._path}, record {number}"
        try:
            record = msgpack.unpackb(retried(lambda: self._records[number]))
        except (RuntimeError, ValueError) as error:  # raised by ArrayRecord and msgpack
            if is_passing(error):
                raise
            self._check_unchanged()
            raise BadImageError(
                f"{where}: this is not a msgpack map ({error}), expected records written by "
                "write_array_record; write the file again."
            ) from error
        if not isinstance(record, dict) or not {"image", "captions", "key"} <= set(record):
            raise BadImageError(
                f"{where}: this record is {shortened(record)}, expected a map with image, "
                "captions and key; write the file again."
            )
        return record

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> Example:
        record, captions = self._entry(index)
        return Example(record["image"], captions, record["key"])

    def captions(self, index: int) -> tuple[str, ...]:
        return self._entry(index)[1]

    def key(self, index: int) -> str:
        """Returns an example's name."""
        return self._entry(index)[0]["key"]

    def _entry(self, index: int) -> tuple[Mapping[str, Any], tuple[str, ...]]:
        """Returns an example's record and captions."""
        number = int(self._numbers[index])
        record = self._read(number)
        return record, self._captions(record, f"{self._path}, record {number}")

    def _captions(self, record: Mapping[str, Any], where: str) -> tuple[str, ...]:
        captions = captions_or_bad({DEFAULT_CAPTION_KEY: record["captions"]}, where)
        if self._caption_columns == (DEFAULT_CAPTION_KEY,):
            return captions
        columns = record.get("columns")
        if not isinstance(columns, list) or len(columns) != len(captions):
            raise UserError(
                f"{where}: the captions' columns are {shortened(columns)}, expected a column name "
                "for each caption; remove config.data.caption_key, or write the file again from "
                "data with these columns."
            )
        values = {
            name: [text for column, text in zip(columns, captions, strict=True) if column == name]
            for name in self._caption_columns
        }
        return captions_or_bad(values, where)


def write_array_record(path: AddressLike, examples: Iterable[Example], *, split: str = "") -> int:
    """Writes examples to an ArrayRecord file, which appears at `path` only when complete.

    Pixel arrays are stored as lossless PNG.

    Returns:
        The number of examples written.
    """
    with new_file(to_address(path)) as partial:
        return write_packed(partial, (packed(example, split) for example in examples))


def packed(example: Example, split: str = "") -> bytes:
    """Serializes an example as a msgpack record.

    Raises:
        UnicodeEncodeError: a caption or the key is not valid Unicode.
    """
    import msgpack

    record: dict[str, Any] = {
        "image": _encoded(example.image),
        "captions": list(example.captions),
        "key": example.key,
    }
    if isinstance(example.captions, ColumnCaptions):
        record["columns"] = list(example.captions.columns)
    if split:
        record["split"] = split
    return msgpack.packb(record)


def write_packed(file: Path, records: Iterable[bytes]) -> int:
    """Writes records to a local ArrayRecord file; equal records give identical files.

    Returns:
        The number of records written.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    # A group size of 1 gives random access; images are already compressed.
    writer = ArrayRecordWriter(str(file), "group_size:1,uncompressed")
    count = 0
    try:
        for record in records:
            writer.write(record)
            count += 1
    finally:
        writer.close()
    return count


def _encoded(image: bytes | Shaped[np.ndarray, "h w *c"]) -> bytes:
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    decode_image(image).save(buffer, "PNG")
    return buffer.getvalue()


def _open(config: DataConfig, section: str) -> ArrayRecordSource:
    return ArrayRecordSource(
        config.path, split=config.split, caption_columns=config.caption_columns, section=section
    )


ARRAY_RECORD = SourceKind(reads=("path", "split", "caption_key"), captions=_open)
