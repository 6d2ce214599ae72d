"""Arrays in pieces: files that Orbax can read afterwards, and layer-by-layer restoring."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from dinotxt_jax.storage.arrays import load_arrays, save_arrays, stored_shapes
from dinotxt_jax.storage.pieces import Piece, open_arrays, save_in_pieces

DRAW = np.random.default_rng(0)
ARRAYS = {
    ("a", "stack", "kernel"): DRAW.normal(size=(3, 8, 16)).astype(np.float32),
    ("a", "stack", "half"): DRAW.normal(size=(3, 8, 16)).astype(ml_dtypes.bfloat16),
    ("a", "stack", "bias"): np.zeros((3, 16), np.float32),
    ("a", "table"): DRAW.normal(size=(8, 16)).astype(np.float32),
    ("b", "x"): DRAW.normal(size=(2, 2, 2)).astype(np.float32),
}
ARRAYS["a", "stack", "kernel"][1] = 0  # a layer of zeros must be stored like any other


def tree(leaf) -> dict:
    return {
        "a": {
            "stack": {name: leaf("a", "stack", name) for name in ("kernel", "half", "bias")},
            "table": leaf("a", "table"),
        },
        "b": {"x": leaf("b", "x")},
        "scalar": np.array(2.5, np.float32),
    }


def pieces() -> Iterator[Piece]:
    for place, array in ARRAYS.items():
        if "stack" in place:
            yield from (Piece(place, layer, array[layer]) for layer in range(len(array)))
        else:
            yield Piece(place, None, array)


@pytest.fixture(params=["one chunk an array", "one chunk a layer"])
def folder(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if request.param == "one chunk a layer":
        monkeypatch.setattr("dinotxt_jax.storage.arrays._LEAST_FOR_LAYERS", 1)

    def empty(*place: str) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(ARRAYS[place].shape, ARRAYS[place].dtype)

    save_in_pieces(tmp_path / "arrays", tree(empty), pieces())
    return tmp_path / "arrays"


def test_arrays_written_in_pieces_are_read_whole_and_sharded(folder: Path) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))

    def wanted(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        placed = split if leaf.shape[1:2] == (8,) else whole
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed)

    result = load_arrays(folder, jax.tree.map(wanted, stored_shapes(folder)))
    kernel = result["a"]["stack"]["kernel"]
    assert kernel.sharding == split
    for place, array in ARRAYS.items():
        leaf = result
        for name in place:
            leaf = leaf[name]
        assert leaf.dtype == array.dtype
        np.testing.assert_array_equal(leaf, array)
    assert result["scalar"] == 2.5


def test_arrays_come_back_layer_by_layer(folder: Path) -> None:
    stored = open_arrays(folder)
    assert set(stored) == {*ARRAYS, ("scalar",)}
    for place, array in ARRAYS.items():
        assert (stored[place].shape, stored[place].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(stored[place].read(), array)
        np.testing.assert_array_equal(stored[place].read(1), array[1])
    assert stored["scalar",].read() == 2.5


def test_folders_that_orbax_wrote_by_itself_are_read_too(tmp_path: Path) -> None:
    save_arrays(tmp_path / "arrays", tree(lambda *place: ARRAYS[place]))
    for place, array in ARRAYS.items():
        np.testing.assert_array_equal(
            open_arrays(tmp_path / "arrays")[place].read(2 % len(array)),
            array[2 % len(array)],
        )
