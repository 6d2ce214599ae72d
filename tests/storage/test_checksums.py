"""Checksums of arrays: equal for every sharding and holder, different for every change."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dinotxt_jax import UserError, sharding
from dinotxt_jax.storage import checksums as checksums_module
from dinotxt_jax.storage.checksums import PieceChecksum, check_sums, checksums, row_checksums

DTYPES = ("float32", "bfloat16", "float16", "float8_e4m3fn", "int8", "int32", "bool")


def noise(dtype: str, shape: tuple[int, ...] = (8, 6, 4)) -> np.ndarray:
    values = np.random.default_rng(0).normal(scale=3, size=shape)
    return (values > 0) if dtype == "bool" else values.astype(jnp.dtype(dtype))


@pytest.fixture
def as_on_accelerators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums JAX arrays on the devices, as where their memory is not the host's."""
    monkeypatch.setattr(
        "dinotxt_jax.storage.checksums._is_on_host", lambda leaf: isinstance(leaf, np.ndarray)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("as_on_accelerators")
def test_the_sum_does_not_depend_on_where_the_array_is(dtype: str) -> None:
    array = noise(dtype)
    rows = sharding.batch_sharding(sharding.make_mesh())
    whole = sharding.replicated(sharding.make_mesh())
    holders: list[Any] = [array, jnp.asarray(array)]
    holders += [jax.device_put(array, place) for place in (rows, whole)]
    sums = {checksums({"a": holder})["a"] for holder in holders}
    pieces = PieceChecksum()
    for layer in array:
        pieces.add(layer)
    assert sums == {pieces.hexdigest()}


@pytest.mark.usefixtures("as_on_accelerators")
def test_64_bit_numbers_are_whole_on_host_and_device() -> None:
    array = np.random.default_rng(0).normal(size=(5, 3))
    with jax.enable_x64(True):
        on_device = checksums({"a": jnp.asarray(array)})
    assert checksums({"a": array}) == on_device
    changed = array.copy()
    changed.view(np.uint64)[2, 1] ^= np.uint64(1)  # lost in float32
    assert checksums({"a": changed}) != on_device


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_single_change_changes_the_sum(dtype: str) -> None:
    array = noise(dtype, (3, 5))
    expected = checksums({"a": array})
    for index in range(array.size):
        changed = array.copy()
        raw = changed.reshape(-1).view(np.uint8)
        raw[index * array.dtype.itemsize] ^= 1
        assert checksums({"a": changed}) != expected


def test_arrays_on_cpu_devices_are_summed_on_the_host() -> None:
    """Nothing is compiled, which takes a second for each structure."""
    array = noise("float32")
    rows = jax.device_put(array, sharding.batch_sharding(sharding.make_mesh()))
    before = checksums_module._all_sums._cache_size()
    assert checksums({"a": rows}) == checksums({"a": array})
    assert checksums_module._all_sums._cache_size() == before


def test_exchanged_shifted_and_zeroed_values_change_the_sum() -> None:
    array = noise("float32", (64, 64))
    exchanged, zeroed = array.copy(), array.copy()
    exchanged[[3, 40]] = exchanged[[40, 3]]
    zeroed[10:20] = 0
    variants = [array, exchanged, zeroed, np.roll(array, 1), array.T.copy()]
    assert len({checksums({"a": variant})["a"] for variant in variants}) == len(variants)


def test_an_array_without_a_checksum_is_not_believed() -> None:
    tree = {"a": noise("float32"), "b": {"c": noise("int8")}}
    expected = checksums(tree)
    assert list(expected) == ["a", "b.c"]
    check_sums(tree, expected, "the file", "restore it")
    for wrong in ({"a": expected["a"]}, expected | {"b.c": expected["a"]}):
        with pytest.raises(UserError, match=r"the file is damaged: b\.c differ.*; restore it"):
            check_sums(tree, wrong, "the file", "restore it")


@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_row_has_the_checksum_of_an_array_of_its_own(dtype: str) -> None:
    rows = noise(dtype, (5, 6, 4))
    alone = [int(checksums({"a": row})["a"], 16) for row in rows]
    assert row_checksums(rows).tolist() == alone
    assert len(set(alone)) == 5


@pytest.mark.usefixtures("as_on_accelerators")
def test_a_large_array_is_summed_in_blocks() -> None:
    array = np.random.default_rng(0).integers(0, 2**32, 200_001, np.uint32)
    on_device = checksums({"a": jnp.asarray(array)})
    assert checksums({"a": array}) == on_device
    pieces = PieceChecksum()
    for piece in np.split(array, [1, 70_000, 70_001]):
        pieces.add(piece)
    assert pieces.hexdigest() == on_device["a"]
