"""Finds exact duplicates by content hash, with bounded memory.

Each input range writes its hashes to a file, sorted by partition; the highest bits of a hash select
the partition. A partition collected from all ranges fits in memory and is sorted there. When
several examples share a hash, the earliest in source order is kept.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Int64, UInt64

from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.job import HASHES, IngestionJob
from dinotxt_jax.storage.byte_ranges import ByteRanges
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.retries import retried

# Maximum bytes per partition, summed over all ranges; sorting needs about 4 times as much memory.
_PARTITION = 2**25
# Rows are (high half of the hash, low half, source index).
_NUMBER = np.dtype("<u8")
_COLUMNS = 3
_ROW_BYTES = _COLUMNS * _NUMBER.itemsize
_AGAIN = "remove it and run the same command again"


def partition_bits(examples: int) -> int:
    """Returns the number of hash bits that select the partition."""
    return max(0, (examples * _ROW_BYTES - 1) // _PARTITION).bit_length()


def write_hashes(job: IngestionJob, shard: int, hashes: Iterable[tuple[bytes, int]]) -> None:
    """Writes the hashes for one input range: partition start rows, then the sorted rows.

    Args:
        job: the job.
        shard: shard number, which is also the number of the input range.
        hashes: (content hash, source index) pairs.
    """
    packed = b"".join(content + index.to_bytes(8, "little") for content, index in hashes)
    rows = _sorted(np.frombuffer(packed, _NUMBER).reshape(-1, _COLUMNS))
    bits = partition_bits(job.examples)
    ends = np.cumsum(np.bincount(_partition(rows[:, 0], bits), minlength=2**bits))
    starts = np.concatenate([[0], ends]).astype(_NUMBER)
    with new_file(job.hashes_file(shard)) as partial:
        partial.write_bytes(starts.tobytes() + rows.tobytes())


def _sorted(rows: UInt64[np.ndarray, "n 3"]) -> UInt64[np.ndarray, "n 3"]:
    """Sorts rows by hash, then by index."""
    return rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]


def _partition(high: UInt64[np.ndarray, " n"], bits: int) -> Int64[np.ndarray, " n"]:
    # With 0 bits the shift would be 64, which is undefined for uint64.
    return (high >> np.uint64(64 - bits) if bits else high * np.uint64(0)).astype(np.int64)


def find_duplicates(job: IngestionJob) -> Iterator[None]:
    """Writes the duplicates file for every shard; yields after each partition, for progress bars.

    Raises:
        UserError: a hashes file is damaged.
    """
    # A bitmap with one bit per example is the only memory that grows with the input.
    is_duplicate = np.zeros(-(-job.examples // 8), np.uint8)
    files = [_HashFile(job, shard) for shard in job.shards]
    for partition in range(2 ** partition_bits(job.examples)):
        rows = np.concatenate([file.read(partition) for file in files])
        indices = _repeated(rows)
        np.bitwise_or.at(is_duplicate, indices // 8, (128 >> (indices % 8)).astype(np.uint8))
        yield
    for shard in job.shards:
        span = job.span(shard)
        first = span.start // 8
        bits = np.unpackbits(is_duplicate[first : -(-span.stop // 8)])
        positions = np.flatnonzero(bits[span.start - 8 * first :][: len(span)])
        write_duplicates(job, shard, positions)


class _HashFile:
    """Reads the hashes file that one input range wrote."""

    def __init__(self, job: IngestionJob, shard: int):
        self._file = job.hashes_file(shard)
        self._header = (2 ** partition_bits(job.examples) + 1) * _NUMBER.itemsize

    def read(self, partition: int) -> UInt64[np.ndarray, "n 3"]:
        """Returns the rows in a partition.

        Opens the file on every call, since there may be more files than the open-file limit allows.
        """
        ranges = ByteRanges(self._file, watch=False)
        place = partition * _NUMBER.itemsize
        first, end, last = (
            int(np.frombuffer(ranges.read(at, at + _NUMBER.itemsize, keep=False), _NUMBER)[0])
            for at in (place, place + _NUMBER.itemsize, self._header - _NUMBER.itemsize)
        )
        if ranges.size != self._header + last * _ROW_BYTES:
            raise UserError(f"{self._file} is damaged ({ranges.size} bytes); {_AGAIN}.")
        start, stop = (self._header + row * _ROW_BYTES for row in (first, end))
        content = ranges.read(start, stop, keep=False)
        return np.frombuffer(content, _NUMBER).reshape(-1, _COLUMNS)


def _repeated(rows: UInt64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " k"]:
    """Returns the source indices whose hash also occurs at a smaller index."""
    rows = _sorted(rows)
    is_same = (rows[1:, :2] == rows[:-1, :2]).all(1)
    return rows[1:, 2][is_same].astype(np.int64)


def write_duplicates(job: IngestionJob, shard: int, positions: Iterable[int]) -> None:
    """Writes a shard's duplicates file: int64[k] positions, counted from the shard's start."""
    with new_file(job.duplicates_file(shard)) as partial, partial.open("wb") as file:
        np.save(file, np.fromiter(sorted(positions), np.int64))


def read_duplicates(job: IngestionJob, shard: int) -> frozenset[int]:
    """Returns the source indices of a shard's duplicates.

    Raises:
        UserError: the file is damaged or missing.
    """
    file, span = job.duplicates_file(shard), job.span(shard)
    try:
        positions = np.load(io.BytesIO(retried(file.read_bytes)), allow_pickle=False)
        return frozenset(span[position] for position in positions.tolist())
    except (ValueError, EOFError, IndexError, FileNotFoundError) as error:
        raise UserError(f"{file} is damaged or missing ({error}); {_AGAIN}.") from error


def has_duplicates_of_all(job: IngestionJob) -> bool:
    """Returns whether every shard's duplicates file exists, from a single folder listing."""
    present = {file.name for file in job.parts()}
    return all(job.duplicates_file(shard).name in present for shard in job.shards)


def remove_hashes(job: IngestionJob) -> None:
    """Deletes the temporary hashes files."""
    for file in job.parts():
        if file.suffix == HASHES:
            file.unlink(missing_ok=True)
