"""Arrays on disk: the one module that calls Orbax (its v1 API), and TensorStore below it.

A tree of arrays is stored in named parts that can be read one without the others. Reading always
states shapes, dtypes and shardings; otherwise Orbax would silently reuse the saved placement.

Models larger than memory are written, and read back, one layer at a time: Orbax lays out the
folder, and TensorStore, in whose format (Zarr v3 in an OCDBT database) Orbax stores arrays, fills
it.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging as std_logging
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorstore
from etils import epath
from jaxtyping import Shaped
from orbax.checkpoint import v1 as ocp

# Orbax reports every file it opens; what matters reaches the user through our own messages.
std_logging.getLogger("orbax").setLevel(std_logging.ERROR)
std_logging.getLogger("absl").addFilter(
    lambda record: "/orbax/" not in record.pathname or record.levelno > std_logging.WARNING
)


def _absolute(path: epath.PathLike) -> str:
    """What Orbax wants: local paths absolute, gs:// paths as they are."""
    path = epath.Path(path)
    return str(path if path.is_absolute() else path.resolve())


def save_arrays(path: epath.PathLike, parts: Mapping[str, Any]) -> None:
    """Writes `{part: tree of arrays}` (numpy or jax) to a new folder, atomically.

    Of several processes all must call it; each writes its parts.
    """
    with _layered():
        ocp.save_checkpointables(_absolute(path), dict(parts))


def _layered() -> ocp.Context:
    """Stores large stacks of layers so that one of them can be read without the others."""
    context = _saving()
    context.array.saving.scoped_storage_options_creator = _one_chunk_a_layer
    return context


# Orbax lets the replicas of an array write a slice each. Slicing compiles a program for each array
# and slice, which takes far longer than to write a small array whole.
_LEAST_SLICE = 2**16


def _saving() -> ocp.Context:
    """Splits an array among its replicas only where each of them writes 64 KiB or more."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = _LEAST_SLICE
    return context


class Piece(NamedTuple):
    """A part of an array: all of it, or one layer of a stack.

    Attributes:
        place: its names from the part on.
        layer: index on the first dimension; None for all of it.
        values: the elements.
    """

    place: tuple[str, ...]
    layer: int | None
    values: Shaped[np.ndarray, "..."]


def save_in_pieces(path: epath.PathLike, parts: Mapping[str, Any], pieces: Iterable[Piece]) -> None:
    """Writes the same folder as `save_arrays` with about one piece in memory at a time.

    Args:
        path: a new folder.
        parts: `{part: tree}` of arrays, which are written as they are, and of
            `jax.ShapeDtypeStruct`, which `pieces` fill.
        pieces: all pieces of one array before those of the next, in order of their layers.
    """
    # Orbax lays out the folder from zeros, which the pieces then replace: it has no public way to
    # create an array without storing it. A zero broadcast to any shape takes no memory, and
    # compresses to almost nothing, so that every array is written to disk once.
    empty = jax.tree.map(
        lambda leaf: (
            np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
        ),
        dict(parts),
    )
    context = _layered()
    context.memory.deepcopy_host_arrays = False
    with context:
        ocp.save_checkpointables(_absolute(path), empty)
    for place, group in itertools.groupby(pieces, key=lambda piece: piece.place):
        array = _open(path, place)
        if not _in_layers(array.shape, array.dtype.numpy_dtype.itemsize):
            _write_whole(array, group)
            continue
        for piece in group:
            array[piece.layer].write(piece.values).result()


@dataclasses.dataclass(frozen=True)
class StoredArray:
    """An array in a folder, read when asked for: all of it, or one layer.

    Attributes:
        shape, dtype: of the array.
    """

    path: epath.Path
    place: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, layer: int | None = None) -> Shaped[np.ndarray, "..."]:
        """Its elements, or those of one index of the first dimension."""
        array = _open(self.path, self.place)
        return np.asarray((array if layer is None else array[layer]).read().result())


def open_arrays(path: epath.PathLike) -> dict[tuple[str, ...], StoredArray]:
    """All arrays of a folder by their names from the part on, none of them read."""
    leaves = jax.tree_util.tree_leaves_with_path(stored_shapes(path))
    found = {}
    for keys, leaf in leaves:
        place = tuple(str(getattr(key, "key", key)) for key in keys)
        found[place] = StoredArray(epath.Path(path), place, leaf.shape, np.dtype(leaf.dtype))
    return found


# Arrays below this size are one chunk: many small ones would be slow to open.
_LEAST_FOR_LAYERS = 2**25


def _in_layers(shape: Sequence[int], itemsize: int) -> bool:
    return len(shape) > 2 and math.prod(shape) * itemsize >= _LEAST_FOR_LAYERS


def _one_chunk_a_layer(_: Any, value: Any) -> Any:
    if not _in_layers(value.shape, value.dtype.itemsize):
        return None
    layer = math.prod(value.shape[1:]) * value.dtype.itemsize
    return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=layer, shard_axes=(0,))


def _write_whole(array: tensorstore.TensorStore, pieces: Iterable[Piece]) -> None:
    values = np.zeros(array.shape, array.dtype.numpy_dtype)
    for piece in pieces:
        values[... if piece.layer is None else piece.layer] = piece.values
    array.write(values).result()


def _open(path: epath.PathLike, place: tuple[str, ...]) -> tensorstore.TensorStore:
    part, *names = place
    folder = _absolute(epath.Path(path) / part)
    base = folder if "://" in folder else f"file://{folder}"
    kvstore = {"driver": "ocdbt", "base": f"{base}/", "path": ".".join(names) + "/"}
    # Chunks of zeros are stored too: Orbax takes a missing one for a damaged checkpoint.
    spec = {"driver": "zarr3", "kvstore": kvstore, "store_data_equal_to_fill_value": True}
    return tensorstore.open(spec, open=True).result()


def load_arrays(
    path: epath.PathLike, parts: Mapping[str, Any], *, some: bool = False
) -> dict[str, Any]:
    """Reads the named parts.

    Args:
        path: a folder written by `save_arrays`.
        parts: `{part: tree of jax.ShapeDtypeStruct with sharding}`; each array is read straight
            into its sharding, and cast to the dtype asked for.
        some: arrays of a part that are not asked for are left out instead of an error.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = some
    with context:
        return ocp.load_checkpointables(_absolute(path), dict(parts))


def stored_shapes(path: epath.PathLike) -> dict[str, Any]:
    """`{part: tree of (shape, dtype) structs}` of a folder, without reading arrays."""
    parts = ocp.checkpointables_metadata(_absolute(path)).metadata

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = getattr(leaf, "dtype", np.float32)
        return jax.ShapeDtypeStruct(getattr(leaf, "shape", ()), dtype)

    return jax.tree.map(struct, dict(parts))


class Checkpoints:
    """Numbered training checkpoints in one folder, written in the background.

    Of several processes all must make the same calls; each writes its parts of the arrays.

    Args:
        path: the folder.
        keep: how many of the newest to keep.
    """

    def __init__(self, path: epath.PathLike, keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            _absolute(path),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            context=_saving(),
        )

    def latest(self) -> int | None:
        """The newest complete checkpoint's step."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, parts: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Starts writing; the arrays may be donated as soon as this returns.

        Args:
            step: the checkpoint's number.
            parts: `{part: tree of arrays}`.
            notes: plain JSON kept beside them.
        """
        self._checkpointer.save_checkpointables_async(
            step, dict(parts), force=True, overwrite=True, custom_metadata=dict(notes)
        )

    def load(self, step: int, parts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parts, as in `load_arrays`, and the notes of a checkpoint."""
        notes = self._checkpointer.checkpointables_metadata(step).custom_metadata
        return self._checkpointer.load_checkpointables(step, dict(parts)), dict(notes or {})

    def close(self) -> None:
        """Waits for what is being written."""
        self._checkpointer.close()
