"""Points for k-means: read in order, gathered by index, and placed on a mesh chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Int64, Shaped

from dinotxt_jax import sharding
from dinotxt_jax.curation.seeding import DRAW_BLOCK
from dinotxt_jax.data.pipeline import in_threads

# Rows that are read at a time, and that a device compares at a time.
CHUNK = 2**16
# Threads that read chunks, and chunks that are read ahead.
_THREADS = 2
_AHEAD = 2


class Points(Protocol):
    """Vectors that fit in memory or not.

    Attributes:
        width: number of elements per vector.
        itemsize: bytes per element.
    """

    width: int
    itemsize: int

    def __len__(self) -> int: ...

    def read(self, start: int, stop: int) -> Float[np.ndarray, "n d"]:
        """Returns consecutive rows; rows without a point are zero."""

    def present(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        """Returns the mask of the rows that hold a point."""

    def name(self, row: int) -> str:
        """Returns a name of a row for messages."""


class HeldPoints:
    """Points in memory.

    Args:
        rows: the points.
        mask: the rows that hold a point; None: all.
        title: name of the points in messages.
    """

    def __init__(
        self,
        rows: Float[np.ndarray, "n d"],
        mask: Bool[np.ndarray, " n"] | None = None,
        title: str = "point",
    ) -> None:
        self._rows, self._title = rows, title
        self._mask = np.ones(len(rows), bool) if mask is None else mask
        self.width, self.itemsize = rows.shape[1], rows.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> Float[np.ndarray, "n d"]:
        """Returns consecutive rows; rows without a point are zero."""
        rows = self._rows[start:stop]
        mask = self._mask[start:stop]
        return rows if mask.all() else np.where(mask[:, None], rows, 0).astype(rows.dtype)

    def present(self, start: int, stop: int) -> Bool[np.ndarray, " n"]:
        """Returns the mask of the rows that hold a point."""
        return self._mask[start:stop]

    def name(self, row: int) -> str:
        """Returns a name of a row for messages."""
        return f"{self._title} {row}"


def chunk_starts(points: Points, rows: int = CHUNK) -> range:
    """Returns the first rows of chunks."""
    return range(0, len(points), rows)


def gathered_rows(points: Points, indices: Int[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
    """Returns the rows with these indices, ascending; only chunks that hold some are read."""
    starts = [start for start in np.unique(indices // CHUNK) * CHUNK]

    def read(start: int) -> Float[np.ndarray, "p d"]:
        first, last = np.searchsorted(indices, (start, start + CHUNK))
        chosen = indices[first:last]
        low = int(chosen[0])
        return points.read(low, int(chosen[-1]) + 1)[chosen - low]

    return np.concatenate(list(in_threads(starts, read, _THREADS, _AHEAD)))


def padded_size(count: int, multiple: int) -> int:
    """Rounds up to one of four sizes per power of two, so that few programs are compiled."""
    step = 2 ** max(count.bit_length() - 3, 0)
    rounded = -(-count // step) * step
    return -(-rounded // multiple) * multiple


def chunk_rows(count: int, parts: int) -> int:
    """Returns the number of rows in each chunk of `count` points, of which a part gets `CHUNK`.

    Many rows per device, because each chunk reads and writes all centroids and their sums.
    """
    chunks = -(-count // (CHUNK * parts))
    return padded_size(-(-count // max(chunks, 1)), parts)


class PlacedChunk(NamedTuple):
    """A chunk on the devices, sharded by rows.

    Attributes:
        points: [n d], as stored.
        weights: float32 [n], 1 for points and 0 for rows without a point.
    """

    points: Float[Array, "n d"]
    weights: Float[Array, " n"]


class PlacedPoints:
    """Points on a mesh: kept on the devices if they fit in `memory`, else read in each pass.

    Each process reads only the rows that its devices compute.

    Args:
        points: the points.
        mesh: the mesh, which shards the rows.
        memory: most bytes of points that all devices together keep.
    """

    def __init__(self, points: Points, mesh: Mesh, memory: float) -> None:
        self.points, self.mesh = points, mesh
        self._parts = sharding.batch_parts(mesh)
        self.chunk = chunk_rows(len(points), self._parts)
        self._kept: list[PlacedChunk] = []
        self._keeps = len(points) * points.width * points.itemsize <= memory

    def __len__(self) -> int:
        return len(self.points)

    def chunks(self) -> Iterator[PlacedChunk]:
        """Yields all chunks in order; the last one is padded."""
        starts = chunk_starts(self.points, self.chunk)
        if len(self._kept) == len(starts):
            yield from self._kept
            return
        self._kept = []
        for rows, mask in in_threads(starts, self._read, _THREADS, _AHEAD):
            arrays = {"points": rows, "weights": mask}
            placed = PlacedChunk(**sharding.global_batch(arrays, self.mesh))
            if self._keeps:
                self._kept.append(placed)
            yield placed

    def _read(self, start: int) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
        """Reads the rows of a chunk that this process places."""
        size = self.chunk // self._parts
        readers = sharding.batch_readers(self.mesh).items()
        mine = next(parts for parts, group in readers if jax.process_index() in group)
        pieces, masks = [], []
        for part in mine:
            first = min(start + part * size, len(self.points))
            last = min(first + size, len(self.points))
            pieces.append(_extended(self.points.read(first, last), size))
            masks.append(_extended(self.points.present(first, last), size))
        return _joined(pieces), _joined(masks).astype(np.float32)


def _extended(rows: Shaped[np.ndarray, "n ..."], count: int) -> Shaped[np.ndarray, "m ..."]:
    """Adds rows of zeros up to `count`; does not copy complete arrays."""
    missing = count - len(rows)
    if not missing:
        return rows
    return np.concatenate([rows, np.zeros((missing, *rows.shape[1:]), rows.dtype)])


def _joined(pieces: list[np.ndarray]) -> np.ndarray:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def sampled_indices(
    points: Points, count: int, draws: Float[np.ndarray, " m"]
) -> Int64[np.ndarray, " s"]:
    """Returns ascending indices of points: one from each of `count` equal ranges of rows.

    Args:
        points: the points; rows without a point are left out.
        count: number of ranges.
        draws: a uniform number in [0, 1) for each range.
    """
    indices = ((np.arange(count) + draws) * (len(points) / count)).astype(np.int64)
    indices = np.unique(np.minimum(indices, len(points) - 1))
    masks = [points.present(int(index), int(index) + 1)[0] for index in indices]
    return indices[np.asarray(masks, bool)]


def padded_rows(
    rows: Float[np.ndarray, "m d"], parts: int
) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, " n"]]:
    """Returns float32 rows padded for `initial_centroids`, and their weights."""
    size = padded_size(len(rows), DRAW_BLOCK * parts // math.gcd(DRAW_BLOCK, parts))
    weights = (np.arange(size) < len(rows)).astype(np.float32)
    return np.pad(rows.astype(np.float32), ((0, size - len(rows)), (0, 0))), weights
