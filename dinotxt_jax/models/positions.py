"""Position embeddings: stored square grids resampled to any grid, and fixed sinusoids.

Shapes: gg stored positions (the square of the side g), n target positions, d model width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

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
            (n + 0.1) / g (official DINOv2 without registers, where 0.1 guards against rounding);
            "bilinear": bilinear, antialiased (TIPS, SigLIP 2 NaFlex).

    Raises:
        ValueError: unknown rule.
    """
    stored = round(table.shape[0] ** 0.5)
    if grid == (stored, stored):
        return table
    square = table.reshape(stored, stored, -1)
    if rule == "antialias":
        resized = jax.image.resize(square, (*grid, square.shape[-1]), "cubic", antialias=True)
    elif rule == "bilinear":
        rows, columns = (bilinear_weights(stored, n, n) for n in grid)
        resized = _resampled(square, rows, columns)
    elif rule in _SCALE_OFFSETS:
        resized = _resampled(
            square, *(cubic_weights(stored, n, _SCALE_OFFSETS[rule]) for n in grid)
        )
    else:
        raise ValueError(
            f"position interpolation {rule!r} is none of {', '.join(POSITION_INTERPOLATIONS)}"
        )
    return resized.reshape(-1, square.shape[-1])


def interpolate_per_image(
    table: Float[Array, "gg d"], grids: Int[Array, "b 2"], length: int
) -> Float[Array, "b n d"]:
    """Returns bilinear position embeddings for images with different patch grids.

    Source: NaFlex, arXiv 2502.14786, section 2.4.2.

    Args:
        table: stored positions of a square grid with side g, float32.
        grids: rows and columns of patches in each image.
        length: number n of patches per image, including padding, whose positions are arbitrary.
    """
    stored = round(table.shape[0] ** 0.5)
    square = table.reshape(stored, stored, -1)

    def positions(grid: Int[Array, "2"]) -> Float[Array, "n d"]:
        rows, columns = (bilinear_weights(stored, side, length) for side in grid)  # [n g] each
        # Patch n lies in row n // columns and column n % columns of its image.
        row, column = jnp.divmod(jnp.arange(length), grid[1])
        one_axis = jnp.einsum("nr,rcd->ncd", rows[row], square, precision="highest")
        return jnp.einsum("nc,ncd->nd", columns[column], one_axis, precision="highest")

    return jax.lax.map(positions, grids)


def _resampled(
    square: Float[Array, "g g d"], rows: Float[ArrayLike, "i g"], columns: Float[ArrayLike, "j g"]
) -> Float[Array, "i j d"]:
    """Resamples both axes with weights."""
    return jnp.einsum("in,jm,nmd->ijd", rows, columns, square, precision="highest")


def bilinear_weights(
    stored: int, new: int | Int[Array, ""], length: int
) -> Float[Array, "length g"]:
    """Returns antialiased bilinear resampling weights; each row sums to 1.

    Args:
        stored: size g of the stored axis.
        new: number of output pixels; may be traced.
        length: number of rows to return; rows from `new` on belong to no pixel.
    """
    scale = stored / jnp.asarray(new, jnp.float32)
    centres = (jnp.arange(length) + 0.5) * scale - 0.5
    distance = jnp.abs(jnp.arange(stored) - centres[:, None])
    # The triangle is as wide as an output pixel when the axis shrinks: that is the antialiasing.
    weights = jnp.maximum(1 - distance / jnp.maximum(scale, 1.0), 0.0)
    total = weights.sum(axis=1, keepdims=True)
    return weights / jnp.where(total > 0, total, 1.0)


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


def sinusoids(length: int, width: int) -> Float[np.ndarray, "l w"]:
    """Returns fixed position embeddings [sines; cosines], float32.

    The timescales of the w / 2 frequencies form a geometric series from 1 to 10,000. Source:
    `pytorch/text_encoder.py` in google-deepmind/tips.
    """
    count = width // 2
    exponents = np.arange(count) / max(count - 1, 1)
    angles = np.arange(length)[:, None] / 10_000.0**exponents
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
