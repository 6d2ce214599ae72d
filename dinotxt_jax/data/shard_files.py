"""The files for a feature cache shard (`data.feature_cache`): names, reading, damage checks."""

from __future__ import annotations

import io
import math
import threading
from typing import BinaryIO

import ml_dtypes
import numpy as np
from jaxtyping import Shaped

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.byte_ranges import ByteRanges
from dinotxt_jax.storage.checksums import row_checksums
from dinotxt_jax.storage.retries import retried

# numpy parses npy headers as Python code. Before Python 3.11.8, this can raise SystemError if two
# threads parse while garbage is collected (github.com/python/cpython/issues/106905).
_PARSING = threading.Lock()
# More bytes than a shard's header, which numpy pads to a multiple of 64 bytes.
_MOST_HEADER = 1024
REPAIR = "run python -m dinotxt_jax.precompute with this config, which encodes these shards"


def shard_file(folder: Address, view: int, shard: int) -> Address:
    """Returns the path for a shard's tokens; this file is written last."""
    return folder / f"v{view:03d}-s{shard:05d}.npy"


def skipped_file(folder: Address, view: int, shard: int) -> Address:
    """Returns the path for the index offsets to the examples that replaced bad images."""
    return folder / f"v{view:03d}-s{shard:05d}.skipped.npy"


def sums_file(folder: Address, view: int, shard: int) -> Address:
    """Returns the path for the per-example token checksums."""
    return folder / f"v{view:03d}-s{shard:05d}.sums.npy"


def token_dtype(name: str) -> np.dtype:
    """Returns the dtype that features.json names."""
    return np.dtype(getattr(ml_dtypes, name, name))


class ShardFile:
    """An open shard file.

    Args:
        path: the file.
        rows: expected number of examples.
        dtype: expected token dtype (bfloat16 is stored as uint16 bits).

    Attributes:
        path: the file.
        shape: token shape per example, (t, d).

    Raises:
        UserError: the file's content differs from these expectations.
    """

    def __init__(self, path: Address, rows: int, dtype: np.dtype):
        self.path = path
        # `watch=False`: if another process encodes the shard again, the tokens stay the same.
        self._ranges = ByteRanges(path, watch=False)
        header = io.BytesIO(self._ranges.read(0, _MOST_HEADER))
        shape, stored = _header(path, header)
        self._dtype = np.dtype(np.uint16 if dtype == ml_dtypes.bfloat16 else dtype)
        if len(shape) != 3 or shape[0] != rows or stored != self._dtype:
            expected = f"{self._dtype} [{rows}, t, d]"
            raise damaged_shard(path, f"it holds {stored} {list(shape)}, expected {expected}")
        self.shape = shape[1:]
        self._start = header.tell()
        self._size = math.prod(self.shape) * self._dtype.itemsize
        if self._ranges.size != self._start + rows * self._size:
            raise damaged_shard(path, f"it has {self._ranges.size} bytes")

    def read(self, row: int) -> Shaped[np.ndarray, "t d"]:
        """Returns an example's stored numbers.

        Reads the file instead of mapping it, because a memory map kills the process with SIGBUS if
        the file is truncated while it is open.
        """
        start = self._start + row * self._size
        content = self._ranges.read(start, start + self._size)
        if len(content) != self._size:
            raise damaged_shard(self.path, "it has been truncated")
        return np.frombuffer(content, self._dtype).reshape(self.shape)


def damaged_shard(path: Address, problem: str) -> UserError:
    """Returns the error for a damaged shard."""
    return UserError(f"{path} is damaged ({problem}); {REPAIR}.")


def shard_problem(folder: Address, view: int, shard: int, rows: int, dtype: str, sums: bool) -> str:
    """Returns why a shard must be encoded (again), or "" if it is intact.

    Args:
        folder: the cache folder.
        view: the view.
        shard: the shard.
        rows: number of examples in the shard.
        dtype: token dtype.
        sums: whether to compare all tokens with the checksums.
    """
    if not shard_file(folder, view, shard).exists():
        return "missing"
    try:
        file = ShardFile(shard_file(folder, view, shard), rows, token_dtype(dtype))
        read_numbers(skipped_file(folder, view, shard), rows)
        if sums:
            expected = read_numbers(sums_file(folder, view, shard), rows)
            for row in range(rows):
                if row_checksums(file.read(row)[None])[0] != expected[row]:
                    raise damaged_shard(file.path, f"example {row} does not match its checksum")
    except UserError as error:
        return str(error).removesuffix(f"; {REPAIR}.")
    return ""


def read_numbers(path: Address, rows: int) -> Shaped[np.ndarray, " n"]:
    """Reads a shard's per-example numbers.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        stream = io.BytesIO(retried(path.read_bytes))
    except FileNotFoundError as error:
        raise damaged_shard(path, "it is missing") from error
    shape, dtype = _header(path, stream)
    if shape != (rows,):
        raise damaged_shard(path, f"it holds {list(shape)} numbers, expected {rows}")
    content = stream.read()
    if len(content) != rows * dtype.itemsize:
        raise damaged_shard(path, f"it holds {len(content)} bytes of numbers")
    return np.frombuffer(content, dtype)


def _header(path: Address, stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Reads an npy header and returns shape and dtype."""
    try:
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"version {version} of the npy format")
        with _PARSING:
            shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    except ValueError as error:
        raise damaged_shard(path, f"it is not an npy file: {error}") from error
    return shape, dtype
