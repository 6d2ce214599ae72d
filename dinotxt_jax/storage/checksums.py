"""Checksums of arrays by value, computed where the arrays are.

A checksum does not depend on sharding, device or file format. It is computed from the arrays in
memory when they are written, and again from the arrays in memory when they have been read, so that
it covers everything between, and no file is read twice. Checkpoints and model directories have a
checksum per array (on the devices, or on the host piece by piece: `PieceChecksum`), feature caches
one per example (`row_checksums`).

Element i (row-major) with the bits b contributes b * w(i) to a sum modulo 2**32, where w(i) is an
odd number that depends on i: a change of one element always changes the sum, and an exchange of
elements is missed with a probability of about 2**-31. Two sums with different w make 64 bits.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32, UInt64

from dinotxt_jax.errors import UserError

# "off" skips the verification of model directories and feature caches, for huge ones.
CHECKSUMS_VARIABLE = "DINOTXT_CHECKSUMS"
_SALTS = (1, 2)
# Elements that are summed at a time on the host; the temporary arrays stay in the CPU's cache.
_BLOCK = 2**16


def is_verifying() -> bool:
    """Returns whether model directories and feature caches are verified when they are read.

    Raises:
        UserError: the variable has another value.
    """
    value = os.environ.get(CHECKSUMS_VARIABLE) or "on"
    if value not in ("on", "off"):
        raise UserError(f"{CHECKSUMS_VARIABLE} is {value!r}, expected on or off; unset it.")
    return value == "on"


def checksums(tree: Any) -> dict[str, str]:
    """Returns the checksum of every array, keyed by path, as 16 hexadecimal digits.

    Arrays in host memory are summed there, without compiling anything; others on their devices. If
    there are several processes, all must call this function.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    on_devices = {name: leaf for name, leaf in leaves.items() if not _is_on_host(leaf)}
    sums = jax.device_get(_all_sums(on_devices)) if on_devices else {}
    return {
        name: _digits(sums[name]) if name in sums else checksum(np.asarray(leaf))
        for name, leaf in leaves.items()
    }


def _is_on_host(array: Any) -> bool:
    """Returns whether this process has all elements in host memory."""
    if not isinstance(array, jax.Array):
        return True
    devices: Any = array.sharding.device_set
    on_cpu = all(device.platform == "cpu" for device in devices)
    return on_cpu and array.is_fully_addressable


def checksum(array: Shaped[np.ndarray, "..."]) -> str:
    """Returns the checksum of one array on the host."""
    pieces = PieceChecksum()
    pieces.add(array)
    return pieces.hexdigest()


class PieceChecksum:
    """The checksum of an array that is on the host piece by piece, in row-major order."""

    def __init__(self) -> None:
        self._sums, self._count = np.zeros(len(_SALTS), np.uint32), 0

    def add(self, values: Shaped[np.ndarray, "..."]) -> None:
        """Adds the next elements."""
        bits = _bits_on_host(values)
        for start in range(0, bits.size, _BLOCK):
            block = bits[start : start + _BLOCK].astype(np.uint32)
            index = np.arange(block.size, dtype=np.uint32) + np.uint32(self._count % 2**32)
            self._sums = self._sums + np.asarray(
                [np.sum(block * _weight(index, salt), dtype=np.uint32) for salt in _SALTS]
            )
            self._count += block.size

    def hexdigest(self) -> str:
        """Returns the checksum of all elements so far."""
        return _digits(self._sums)


def row_checksums(array: Shaped[np.ndarray, "n ..."]) -> UInt64[np.ndarray, " n"]:
    """Returns a checksum for each index on the first dimension of an array on the host."""
    sums = np.empty(len(array), np.uint64)
    for number, row in enumerate(array):
        bits = _bits_on_host(row).astype(np.uint32)
        first, second = (
            np.sum(bits * weights, dtype=np.uint32) for weights in _row_weights(bits.size)
        )
        sums[number] = np.uint64(first) << np.uint64(32) | np.uint64(second)
    return sums


@functools.lru_cache(maxsize=4)
def _row_weights(size: int) -> tuple[UInt32[np.ndarray, " size"], ...]:
    """Returns the weights for rows of `size` elements, which take longer than their sum."""
    index = np.arange(size, dtype=np.uint32)
    return tuple(_weight(index, salt) for salt in _SALTS)


def check_sums(tree: Any, expected: Mapping[str, str], where: str, cure: str) -> None:
    """Compares arrays that have been read with the checksums from when they were written.

    If there are several processes, all must call this function.

    Args:
        tree: the arrays.
        expected: the checksums at least of these arrays.
        where: the file or folder, for the error.
        cure: the advice in the error.

    Raises:
        UserError: an array is not the one that was written, or has no checksum.
    """
    if changed := changed_arrays(tree, expected):
        raise damaged(changed, where, cure)


def changed_arrays(tree: Any, expected: Mapping[str, str]) -> list[str]:
    """Returns the names of the arrays that are not those that were written.

    If there are several processes, all must call this function.
    """
    return [name for name, value in checksums(tree).items() if expected.get(name) != value]


REPLACE_MODEL = "restore it, or convert or export the model again"


def damaged(names: Sequence[str], where: object, cure: str) -> UserError:
    """Returns the error for arrays that are not those that were written."""
    return UserError(f"{where} is damaged: {changed_clause(names)}; {cure}.")


def changed_clause(names: Sequence[str]) -> str:
    """Returns a clause about arrays that are not those that were written."""
    more = f" and {len(names) - 1} more arrays" if len(names) > 1 else ""
    return f"{names[0]}{more} differ from what was written"


def _digits(sums: UInt32[np.ndarray, "2"]) -> str:
    return "".join(f"{int(part):08x}" for part in sums)


def _bits_on_host(array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, " n"]:
    """Returns the elements as unsigned integers; numbers of 64 bits are two integers each."""
    array = np.ascontiguousarray(array)
    size = min(array.dtype.itemsize, 4)
    return array.reshape(-1).view(np.dtype(f"u{size}"))


@jax.jit
def _all_sums(arrays: dict[str, Shaped[Array, "..."]]) -> dict[str, UInt32[Array, "2"]]:
    return {name: _sums(array) for name, array in arrays.items()}


@jax.jit  # arrays of the same shape, as a parameter and its moments, are traced once
def _sums(array: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    bits = _bits(array)
    # The row-major index, computed per element so that a sharded array stays where it is.
    index: Any = jnp.uint32(0)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota("uint32", bits.shape, axis)
    return jnp.stack([jnp.sum(bits * _weight(index, salt), dtype="uint32") for salt in _SALTS])


def _bits(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype == bool:
        return array.astype("uint32")
    size = min(array.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(array, f"uint{8 * size}").astype("uint32")


def _weight(index: Any, salt: int) -> Any:
    """Returns an odd number for each index, uint32[...] (MurmurHash3's finaliser)."""
    mixed = index * np.uint32(2) + np.uint32(salt * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return (mixed ^ (mixed >> 16)) | np.uint32(1)
