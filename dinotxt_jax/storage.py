"""Arrays on disk: the one module that calls Orbax (its v1 API).

A tree of arrays is stored in named parts that can be read one without the others. Reading always
states shapes, dtypes and shardings; otherwise Orbax would silently reuse the saved placement.
"""

from __future__ import annotations

import contextlib
import logging as std_logging
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
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
    """Writes `{part: tree of arrays}` (numpy or jax) to a new folder, atomically."""
    ocp.save_checkpointables(_absolute(path), dict(parts))


def load_arrays(path: epath.PathLike, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Reads the named parts.

    Args:
        path: a folder written by `save_arrays`.
        parts: `{part: tree of jax.ShapeDtypeStruct with sharding}`; each array is read straight
            into its sharding, and cast to the dtype asked for.
    """
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

    Args:
        path: the folder.
        keep: how many of the newest to keep.
    """

    def __init__(self, path: epath.PathLike, keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            _absolute(path), preservation_policy=ocp.training.preservation_policies.LatestN(keep)
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


@contextlib.contextmanager
def new_folder(path: epath.Path, overwrite: bool = False) -> Iterator[epath.Path]:
    """A folder that appears under its name only when the block ends without an error.

    Args:
        path: the final name.
        overwrite: replace a folder of that name; otherwise one is a `FileExistsError`.
    """
    if path.exists() and not overwrite:
        raise FileExistsError(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.parent / f".{path.name}.partial"
    if partial.exists():
        partial.rmtree()
    partial.mkdir()
    try:
        yield partial
        if path.exists():
            path.rmtree()
        partial.rename(path)
    except BaseException:
        if partial.exists():
            partial.rmtree()
        raise
