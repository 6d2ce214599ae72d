"""Accumulates window maps into one map per image, on the device."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dinotxt_jax.inference.dense import padded_side
from dinotxt_jax.inference.interpolation import Taps, linear_taps
from dinotxt_jax.inference.windows import Level

# (window map [gh gw c], row and column taps from map to cells) -> window cells [s s c]
ToCells = Callable[[Float[Array, "gh gw c"], Taps, Taps], Float[Array, "s s c"]]


def patches_as_cells(
    piece: Float[Array, "gh gw c"], rows: Taps, columns: Taps
) -> Float[Array, "gh gw c"]:
    """Returns the window map unchanged: each patch is one cell."""
    return piece


class Canvas:
    """Accumulates the window maps of one image at one size, with one cell per pixel or per patch.

    Attributes:
        size: image rows and columns, in cells.
        left: number of windows that have not been added.

    Args:
        level: the image and the windows.
        cell: cell side, pixels.
        to_cells: converts a window map to the cells that are added. It must be a module-level
            function, because it is a static argument in the compiled code.
    """

    def __init__(self, level: Level, cell: int, to_cells: ToCells = patches_as_cells):
        self._cell, self._to_cells = cell, to_cells
        height, width, _ = level.pixels.shape
        self.size = (height // cell, width // cell)
        self.left = len(level.starts)
        self._visits = np.zeros([padded_side(side) for side in self.size], np.float32)
        self._total: Float[Array, "hp wp c"] | None = None

    def add(
        self, maps: Float[Array, "b gh gw c"], row: int, top: int, left: int, side: int
    ) -> None:
        """Adds one window map, row `row` in a batch; `top`, `left` and `side` are in pixels."""
        if self._total is None:
            # Allocated with the first window, so that queued images take no canvas memory.
            self._total = jnp.zeros((*self._visits.shape, maps.shape[-1]), jnp.float32)
        top, left, side = (value // self._cell for value in (top, left, side))
        rows, columns = (linear_taps(source, side) for source in maps.shape[1:3])
        self._total = _added(self._total, maps, row, top, left, rows, columns, self._to_cells)
        self._visits[top : top + side, left : left + side] += 1
        self.left -= 1

    def mean(self) -> Float[Array, "hp wp c"]:
        """Returns the sum divided by the number of windows covering each cell; 0 in the padding."""
        return _divided(self._total, np.maximum(self._visits, 1))


@functools.partial(jax.jit, static_argnames="to_cells", donate_argnums=0)
def _added(
    total: Float[Array, "h w c"],
    maps: Float[Array, "b gh gw c"],
    row: int,
    top: int,
    left: int,
    rows: Taps,
    columns: Taps,
    to_cells: ToCells,
) -> Float[Array, "h w c"]:
    piece = to_cells(maps[row], rows, columns)  # [s s c]
    place = (top, left, 0)
    # The slice has a traced position and a static shape: all windows share one compilation.
    before = jax.lax.dynamic_slice(total, place, piece.shape)
    return jax.lax.dynamic_update_slice(total, before + piece, place)


@functools.partial(jax.jit, donate_argnums=0)
def _divided(total: Float[Array, "h w c"], visits: Float[Array, "h w"]) -> Float[Array, "h w c"]:
    return total / visits[..., None]
