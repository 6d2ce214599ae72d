"""Resamples like PyTorch's `interpolate(align_corners=False)`: maps bilinear, windows bicubic.

Unlike in PIL, neither is antialiased.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dinotxt_jax.models.positions import cubic_weights


class Taps(NamedTuple):
    """The two neighbouring samples [n] for each result along one side, and the fraction [n]."""

    lower: Int[np.ndarray, " n"]
    upper: Int[np.ndarray, " n"]
    fraction: Float[np.ndarray, " n"]


def linear_taps(source: int, target: int, length: int = 0) -> Taps:
    """Returns bilinear taps from `source` to `target` samples, edge-padded to `length`."""
    centres = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    centres = np.pad(centres, (0, max(length - target, 0)), mode="edge")
    lower = np.minimum(centres.astype(np.int32), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    return Taps(lower, upper, (centres - lower).astype(np.float32))


def resampled(
    values: Float[Array | np.ndarray, "h w c"], rows: Taps, columns: Taps
) -> Float[Array, "i j c"]:
    """Resamples bilinearly, rows first."""
    return _along(_along(values, rows, 0), columns, 1)


def _along(
    values: Float[Array | np.ndarray, "h w c"], taps: Taps, axis: int
) -> Float[Array, "i j c"]:
    # Broadcast the fractions along `axis`: [n 1 1] for rows, [1 n 1] for columns.
    shape = [1] * values.ndim
    shape[axis] = -1
    fraction = jnp.reshape(taps.fraction, shape)
    lower, upper = (jnp.take(values, side, axis=axis) for side in (taps.lower, taps.upper))
    # The barrier prevents fusion into later operations, which would recompute each sample per use.
    return jax.lax.optimization_barrier(lower * (1 - fraction) + upper * fraction)


def to_whole_patches(images: Float[Array, "b h w c"], patch: int) -> Float[Array, "b i j c"]:
    """Stretches images bicubically (a = -0.75) up to the next multiples of the patch size."""
    height, width = images.shape[1:3]
    rows, columns = (-(-side // patch) * patch for side in (height, width))
    if (rows, columns) == (height, width):
        return images
    return jnp.einsum(
        "in,jm,bnmc->bijc",
        cubic_weights(height, rows),
        cubic_weights(width, columns),
        images,
        precision="highest",
    )
