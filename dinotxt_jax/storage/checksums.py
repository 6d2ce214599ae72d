"""Checksums of arrays by value, computed where the arrays are.

A checksum does not depend on sharding, device or file format. It is computed from the arrays in
memory when they are written, and again from the arrays in memory when they have been read, so that
it covers everything between, and no file is read twice.

Element i (row-major) with the bits b contributes b * w(i) to a sum modulo 2**32, where w(i) is an
odd number that depends on i: a change of one element always changes the sum, and an exchange of
elements is missed with a probability of about 2**-31. Two sums with different w make 64 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped, UInt32

from dinotxt_jax.errors import UserError


def checksums(tree: Any) -> dict[str, str]:
    """Returns the checksum of every array, keyed by path, as 16 hexadecimal digits.

    If there are several processes, all must call this function.
    """
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves]
    sums = jax.device_get(_all_sums([_bits_on_host(leaf) for _, leaf in leaves]))
    return {
        name: f"{int(first):08x}{int(second):08x}"
        for name, (first, second) in zip(names, sums, strict=True)
    }


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
    actual = checksums(tree)
    damaged = [name for name, value in actual.items() if expected.get(name) != value]
    if damaged:
        more = f" and {len(damaged) - 1} more arrays" if len(damaged) > 1 else ""
        raise UserError(
            f"{where} is damaged: {damaged[0]}{more} differ from what was written; {cure}."
        )


def _bits_on_host(array: Any) -> Any:
    """Views a numpy array as unsigned integers, since JAX would cast 64-bit numbers."""
    if isinstance(array, jax.Array):
        return array
    array = np.ascontiguousarray(array)
    size = min(array.dtype.itemsize, 4)
    return array.reshape(-1).view(np.dtype(f"u{size}"))


@jax.jit
def _all_sums(arrays: list[Shaped[Array, "..."]]) -> list[UInt32[Array, "2"]]:
    return [_sums(array) for array in arrays]


def _sums(array: Shaped[Array, "..."]) -> UInt32[Array, "2"]:
    bits = _bits(array)
    # The row-major index, computed per element so that a sharded array stays where it is.
    index: Any = jnp.uint32(0)
    for axis, size in enumerate(bits.shape):
        index = index * np.uint32(size) + jax.lax.broadcasted_iota("uint32", bits.shape, axis)
    return jnp.stack([jnp.sum(bits * _weight(index, salt), dtype="uint32") for salt in (1, 2)])


def _bits(array: Shaped[Array, "..."]) -> UInt32[Array, "..."]:
    if array.dtype == bool:
        return array.astype("uint32")
    size = min(array.dtype.itemsize, 4)
    return jax.lax.bitcast_convert_type(array, f"uint{8 * size}").astype("uint32")


def _weight(index: UInt32[Array, "..."], salt: int) -> UInt32[Array, "..."]:
    """Returns an odd number for each index (MurmurHash3's finaliser)."""
    mixed = index * np.uint32(2) + np.uint32(salt * 0x9E3779B9 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return (mixed ^ (mixed >> 16)) | np.uint32(1)
