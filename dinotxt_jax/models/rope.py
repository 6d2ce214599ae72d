"""Rotary positions of DINOv3: patch tokens are rotated according to their position in the image.

The k channels of a head form k/2 pairs (i, i + k/2). The first half of the pairs rotates with the
row, the second half with the column, each pair with a different period. Class and register tokens
are not rotated.

Source: `dinov3/layers/rope_position_encoding.py` and `attention.py` of facebookresearch/dinov3;
arXiv 2508.10104; arXiv 2104.09864 for the method.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Rotation(NamedTuple):
    """Cosine and sine of the rotation angles of every token, float32 [t k]."""

    cosine: Float[Array, "t k"]
    sine: Float[Array, "t k"]


def make_periods(theta: float, head_dim: int) -> Float[np.ndarray, " k//4"]:
    """Returns the periods theta^(4 i / k) for i = 0, 1, ..., k/4 - 1.

    Released DINOv3 files store periods rounded to bfloat16; those are used unchanged.
    """
    return theta ** (np.arange(head_dim // 4, dtype=np.float32) * np.float32(4 / head_dim))


def make_rotation(periods: Float[Array, " p"], grid: tuple[int, int], unrotated: int) -> Rotation:
    """Computes the rotation of [class, registers, patches in row-major order].

    Args:
        periods: k / 4 periods.
        grid: rows and columns of patches; patch centres are at 2 (i + 0.5) / n - 1.
        unrotated: number of tokens before the patches.
    """
    rows, columns = (2 * ((jnp.arange(n) + 0.5) / n) - 1 for n in grid)
    centres = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2)
    angles = 2 * math.pi * centres[:, :, None] / periods.astype("float32")
    angles = jnp.tile(angles.reshape(len(centres), -1), 2)
    # An angle of zero leaves a token exactly unchanged.
    angles = jnp.pad(angles, ((unrotated, 0), (0, 0)))
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "b t h k"], rotation: Rotation) -> Float[Array, "b t h k"]:
    """Rotates queries or keys in float32, and returns the dtype of the input."""
    wide = x.astype("float32")
    first, second = jnp.split(wide, 2, axis=-1)
    quarter_turn = jnp.concatenate([-second, first], axis=-1)
    cosine, sine = (angles[:, None, :] for angles in rotation)  # [t 1 k]: the same for all heads
    return (wide * cosine + quarter_turn * sine).astype(x.dtype)
