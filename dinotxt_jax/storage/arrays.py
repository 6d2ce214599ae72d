"""Array storage on disk: the only module, with `pieces`, that calls Orbax (v1 API).

An array tree is stored in named parts, and each part can be read separately. Reads always specify
shapes, dtypes and shardings; otherwise Orbax would silently reuse the saved placement.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage import quiet
from dinotxt_jax.storage.addresses import (
    Address,
    AddressLike,
    is_remote,
    move_folder,
    to_address,
)
from dinotxt_jax.storage.checksums import REPLACE_MODEL
from dinotxt_jax.storage.faults import may_be_damaged, reason, storage_fault

quiet.quieten()


def absolute(path: AddressLike) -> str:
    """Returns a path as Orbax requires it: local paths absolute, gs:// paths unchanged."""
    address = to_address(path)
    return str(address if is_remote(address) else address.absolute())


def save_arrays(path: AddressLike, parts: Mapping[str, Any]) -> None:
    """Writes `{part: tree of arrays}` (numpy or jax) to a new folder, atomically.

    If there are several processes, all must call it; each process writes the shards it holds.
    """
    with layered():
        ocp.save_checkpointables(absolute(path), dict(parts))


def layered() -> ocp.Context:
    """Returns a context that stores large layer stacks so that each layer can be read alone."""
    context = _saving()
    context.array.saving.scoped_storage_options_creator = _one_chunk_a_layer
    return context


# Orbax lets each replica write one slice of an array. Slicing compiles a program for each array and
# slice, which takes far longer than writing a small array whole.
_LEAST_SLICE = 2**16


def _saving() -> ocp.Context:
    """Returns a context that splits an array among replicas only if each writes 64 KiB or more."""
    context = ocp.Context()
    context.array.saving.min_slice_bytes_for_replica_parallel = _LEAST_SLICE
    return context


# Arrays smaller than this (bytes) are one chunk, because many small chunks would be slow to open.
_LEAST_FOR_LAYERS = 2**25


def in_layers(shape: Sequence[int], itemsize: int) -> bool:
    return len(shape) > 2 and math.prod(shape) * itemsize >= _LEAST_FOR_LAYERS


def _one_chunk_a_layer(_: Any, value: Any) -> Any:
    if not in_layers(value.shape, value.dtype.itemsize):
        return None
    layer = math.prod(value.shape[1:]) * value.dtype.itemsize
    return ocp.options.ArrayOptions.Saving.StorageOptions(chunk_byte_size=layer, shard_axes=(0,))


def load_arrays(
    path: AddressLike, parts: Mapping[str, Any], *, subset: bool = False
) -> dict[str, Any]:
    """Reads the named parts.

    Args:
        path: a folder written by `save_arrays`.
        parts: `{part: tree of jax.ShapeDtypeStruct with sharding}`; each array is read directly
            into the given sharding and cast to the given dtype.
        subset: skip stored arrays that `parts` does not request, instead of raising an error.

    Raises:
        UserError: the files are damaged.
    """
    context = ocp.Context()
    context.pytree.loading.partial_load = subset
    with context, damage_as_error(path):
        return quiet.read(lambda: ocp.load_checkpointables(absolute(path), dict(parts)))


def stored_shapes(path: AddressLike) -> dict[str, Any]:
    """Returns `{part: tree of (shape, dtype) structs}` for a folder without reading arrays.

    Raises:
        UserError: the files are damaged.
    """
    with damage_as_error(path):
        parts = quiet.read(lambda: ocp.checkpointables_metadata(absolute(path)).metadata)

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        dtype = getattr(leaf, "dtype", np.float32)
        return jax.ShapeDtypeStruct(getattr(leaf, "shape", ()), dtype)

    return jax.tree.map(struct, dict(parts))


# Seconds for which a process waits for its part of a save before it asks for the others.
_POLL = 0.5


class Checkpoints:
    """Numbered training checkpoints in one folder, written in the background.

    If there are several processes, all must make the same calls; each process writes the array
    shards it holds.

    Args:
        path: the folder, created on first use.
        keep: how many checkpoints to keep, starting from the newest.
    """

    def __init__(self, path: AddressLike, keep: int):
        self._path, self._keep = to_address(path), keep
        self._pending: Any = None  # the response of the save that is still running
        self._failed = False

    @functools.cached_property
    def _checkpointer(self) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            absolute(self._path),
            preservation_policy=ocp.training.preservation_policies.LatestN(self._keep),
            context=_saving(),
        )

    def latest(self) -> int | None:
        """Returns the step number of the newest complete checkpoint, or None if there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoint folders, whole or damaged, newest first."""
        folder = self._path
        names = [path.name for path in folder.iterdir()] if folder.exists() else []
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def set_aside(self, step: int) -> Address:
        """Renames the folder of a damaged checkpoint, so that no run reads or deletes it.

        All processes must call this method; returns the new path.
        """
        folder = self._path / str(step)
        number = 0
        while (aside := folder.parent.parent / f"damaged_checkpoint_{step}.{number}").exists():
            number += 1
        processes.wait()
        if processes.is_first():
            move_folder(folder, aside)
        processes.wait()
        vars(self).pop("_checkpointer", None)  # it has read the list of folders
        return aside

    def save(self, step: int, parts: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Starts writing in the background; the arrays may be donated as soon as this returns.

        Args:
            step: the checkpoint's number.
            parts: `{part: tree of arrays}`.
            notes: plain JSON stored next to the arrays.

        Raises:
            UserError: the storage failed.
        """
        self.wait()
        quiet.failed_saves.clear()
        with _faults():
            self._pending = self._checkpointer.save_checkpointables_async(
                step, dict(parts), force=True, overwrite=True, custom_metadata=dict(notes)
            )

    def check(self) -> None:
        """Raises `UserError` if the running save has failed; does not wait for it."""
        self._is_finished(0)

    def wait(self) -> None:
        """Waits for the running save; all processes must call it.

        Raises:
            UserError: the storage failed in any process; all processes raise it.
        """
        while True:
            finished, failure = False, None
            try:
                finished = self._is_finished(_POLL)
            except UserError as error:
                failure = error
            finishes, failures = processes.gathered([finished, failure is not None]).T
            if failures.any():
                processes.agree(failure)
            if finishes.all():
                return

    def _is_finished(self, timeout: float) -> bool:
        if self._pending is None:
            return True
        try:
            with _faults():
                if quiet.failed_saves:
                    raise quiet.failed_saves[0]
                self._pending.result(timeout)
        except TimeoutError:
            return False
        except BaseException:
            self._pending, self._failed = None, True
            raise
        self._pending = None
        return True

    def load(self, step: int, parts: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the parts (as in `load_arrays`) and the notes of a checkpoint.

        Raises:
            UserError: the file with the notes is missing or damaged.
        """
        notes = self._checkpointer.checkpointables_metadata(step).custom_metadata
        if not notes:  # Orbax reads a damaged file as an empty one
            raise UserError("its file _CHECKPOINT_METADATA is missing or empty")
        arrays = quiet.read(lambda: self._checkpointer.load_checkpointables(step, dict(parts)))
        return arrays, dict(notes)

    def close(self) -> None:
        """Waits until all pending writes are complete.

        Raises:
            UserError: the storage failed, and no earlier call has raised this.
        """
        if "_checkpointer" not in vars(self):
            return  # never used
        try:
            self.wait()
        finally:
            # After a failed save, Orbax raises its error again.
            with contextlib.suppress(Exception) if self._failed else _faults():
                self._checkpointer.close()


@contextlib.contextmanager
def damage_as_error(path: AddressLike) -> Iterator[None]:
    """Turns errors on reading that mean damaged files into `UserError`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not may_be_damaged(error):
            raise
        raise UserError(f"{path} is damaged ({reason(error)}); {REPLACE_MODEL}.") from error


@contextlib.contextmanager
def _faults() -> Iterator[None]:
    """Turns storage errors in the block into `UserError`."""
    try:
        yield
    except TimeoutError:
        raise
    except Exception as error:
        fault = storage_fault(error)
        if fault is None:
            raise
        raise fault from error
