"""Learned position embeddings at other sizes: resamples a stored square grid to any grid.

Shapes: gg stored positions (the square of the side g), n target positions, d model width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dinotxt_jax.config.architecture import POSITION_INTERPOLATIONS


def interpolate_positions(
    table: Float[Array, "gg d"], grid: tuple[int, int], rule: str
) -> Float[Array, "n d"]:
    """Returns position embeddings for a patch grid.

    Args:
        table: stored positions of a square grid with side g, float32.
        grid: target rows and columns. The stored grid is returned unchanged; any other grid is
            interpolated.
        rule: "antialias": Keys cubic with a = -0.5, antialiased, scaled to the target size (DINOv2
            with registers, timm); "bicubic": a = -0.75, not antialiased, edges clamped, scaled to
            the target size (Dinov2 in transformers); "offset": like "bicubic", but with the scale
            (n + 0.1) / g (official DINOv2 without registers, where 0.1 guards against rounding).

    Raises:
        ValueError: unknown rule.
    """
    stored = round(table.shape[0] ** 0.5)
    if grid == (stored, stored):
        return table
    square = table.reshape(stored, stored, -1)
    if rule == "antialias":
        resized = jax.image.resize(square, (*grid, square.shape[-1]), "cubic", antialias=True)
    elif rule in _SCALE_OFFSETS:
        # Separable resampling of [g g d] with weights [gh g] and [gw g] gives [gh gw d].
        rows, columns = (cubic_weights(stored, n, _SCALE_OFFSETS[rule]) for n in grid)
        resized = jnp.einsum("in,jm,nmd->ijd", rows, columns, square, precision="highest")
    else:
        raise ValueError(
            f"position interpolation {rule!r} is none of {', '.join(POSITION_INTERPOLATIONS)}"
        )
    return resized.reshape(-1, square.shape[-1])


_SCALE_OFFSETS = {"bicubic": 0.0, "offset": 0.1}


def cubic_weights(stored: int, new: int, offset: float = 0.0) -> Float[np.ndarray, "n g"]:
    """Returns PyTorch's bicubic resampling weights for the scale (new + offset) / stored."""
    a = -0.75
    # [n]: centres of the output pixels in input coordinates, and the first of four taps for each.
    centres = (np.arange(new) + 0.5) * stored / (new + offset) - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new, stored))
    for tap in range(4):
        distance = np.abs(centres - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        # Taps outside the grid read the edge pixel. Several taps may share that pixel, so their
        # weights are summed with `np.add.at`.
        index = np.clip(first + tap, 0, stored - 1)
        np.add.at(weights, (np.arange(new), index), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)
