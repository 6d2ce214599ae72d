"""Stored arrays that are written and read back one layer at a time.

Models larger than memory are written and read back one layer at a time: Orbax creates the folder,
and TensorStore fills it. Orbax stores arrays in a TensorStore format (Zarr v3 in an OCDBT
database).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore
from jaxtyping import Shaped
from orbax.checkpoint import v1 as ocp

from dinotxt_jax.storage.addresses import Address, AddressLike, to_address
from dinotxt_jax.storage.arrays import (
    absolute,
    damage_as_error,
    in_layers,
    layered,
    stored_shapes,
)
from dinotxt_jax.storage.checksums import REPLACE_MODEL, PieceChecksum, damaged
from dinotxt_jax.storage.retries import retried


class Piece(NamedTuple):
    """A complete array, or one layer of a stack.

    Attributes:
        place: the array's path, starting with the part name.
        layer: index on the first dimension; None for the complete array.
        values: the elements.
    """

    place: tuple[str, ...]
    layer: int | None
    values: Shaped[np.ndarray, "..."]


def save_in_pieces(path: AddressLike, parts: Mapping[str, Any], pieces: Iterable[Piece]) -> None:
    """Writes the same folder as `save_arrays` with about one piece in memory at a time.

    Args:
        path: a new folder.
        parts: `{part: tree}`. Array leaves are written directly; `pieces` supplies the values for
            `jax.ShapeDtypeStruct` leaves.
        pieces: grouped by array, and in layer order within each array.
    """
    # Orbax first stores zeros, which the pieces then replace, because Orbax has no public way to
    # create an array without storing it. A zero broadcast to any shape takes no memory and
    # compresses to almost nothing, so every array is written to disk once.
    empty = jax.tree.map(
        lambda leaf: (
            np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
        ),
        dict(parts),
    )
    context = layered()
    context.memory.deepcopy_host_arrays = False
    with context:
        ocp.save_checkpointables(absolute(path), empty)
    for place, group in itertools.groupby(pieces, key=lambda piece: piece.place):
        array = _open(path, place)
        if not in_layers(array.shape, array.dtype.numpy_dtype.itemsize):
            _write_whole(array, group)
            continue
        for piece in group:
            array[piece.layer].write(piece.values).result()


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a folder that is read on request, completely or one layer at a time.

    Attributes:
        path: the folder.
        place: the array's path in the folder, starting with the part name.
        shape, dtype: the array's shape and dtype.
        checksum: checksum from when the array was written; None if it has none or is not verified.
    """

    path: Address
    place: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    checksum: str | None = None

    def read(self, layer: int | None = None) -> Shaped[np.ndarray, "..."]:
        """Reads all elements, or only the elements at one index on the first dimension."""
        with damage_as_error(self.path):
            array = _open(self.path, self.place)
            part = array if layer is None else array[layer]
            return np.asarray(retried(lambda: part.read().result()))

    def layers(self) -> Iterator[Shaped[np.ndarray, "..."]]:
        """Yields each layer of a stack, or the elements of any other array at once.

        Raises:
            UserError: at the end, if the elements are not those that were written.
        """
        pieces = PieceChecksum()
        for layer in range(self.shape[0]) if len(self.shape) > 2 else (None,):
            values = self.read(layer)
            if self.checksum is not None:
                pieces.add(values)
            yield values
        if self.checksum is not None and pieces.hexdigest() != self.checksum:
            raise damaged([".".join(self.place)], self.path.parent, REPLACE_MODEL)


def open_arrays(
    path: AddressLike, sums: Mapping[str, str] | None = None
) -> dict[tuple[str, ...], StoredArray]:
    """Returns all arrays of a folder, keyed by path (part name first); reads no values.

    Args:
        path: a folder written by `save_arrays`.
        sums: {path with dots: checksum} for arrays that are verified when they are read.
    """
    leaves = jax.tree_util.tree_leaves_with_path(stored_shapes(path))
    stored = {}
    for keys, leaf in leaves:
        place = tuple(str(getattr(key, "key", key)) for key in keys)
        checksum = None if sums is None else sums.get(".".join(place), "")
        dtype = np.dtype(leaf.dtype)
        stored[place] = StoredArray(to_address(path), place, leaf.shape, dtype, checksum)
    return stored


def _write_whole(array: tensorstore.TensorStore, pieces: Iterable[Piece]) -> None:
    values = np.zeros(array.shape, array.dtype.numpy_dtype)
    for piece in pieces:
        values[... if piece.layer is None else piece.layer] = piece.values
    array.write(values).result()


def _open(path: AddressLike, place: tuple[str, ...]) -> tensorstore.TensorStore:
    part, *names = place
    folder = absolute(to_address(path) / part)
    base = folder if "://" in folder else f"file://{folder}"
    kvstore = {"driver": "ocdbt", "base": f"{base}/", "path": ".".join(names) + "/"}
    # All-zero chunks are stored too: Orbax treats a missing chunk as a damaged checkpoint.
    spec = {"driver": "zarr3", "kvstore": kvstore, "store_data_equal_to_fill_value": True}
    return tensorstore.open(spec, open=True).result()
