"""Spherical k-means of the patch tokens of one image."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_STEPS = 20


@functools.partial(jax.jit, static_argnames="count")
def clustered(
    features: Float[Array, "h w d"], inside: Bool[Array, "h w"], count: int
) -> Float[Array, "h w d"]:
    """Each L2-normalised feature replaced by the L2-normalised mean of its cluster.

    Starts from features that lie far from each other, the first one being nearest to the mean of
    all, so that the result depends on nothing random.

    Args:
        features: the patches.
        inside: which of them count; the others follow.
        count: clusters; those beyond the number of different features stay empty.
    """
    rows = features.reshape(-1, features.shape[-1])
    weight = inside.reshape(-1, 1).astype(rows.dtype)
    first = jnp.argmax(jnp.where(weight[:, 0] > 0, rows @ (rows * weight).sum(0), -jnp.inf))

    def farthest(
        step: int, carry: tuple[Float[Array, "k d"], Float[Array, " n"]]
    ) -> tuple[Float[Array, "k d"], Float[Array, " n"]]:
        # `nearest` is each row's similarity to the nearest centre so far.
        centres, nearest = carry
        chosen = rows[jnp.argmin(jnp.where(weight[:, 0] > 0, nearest, jnp.inf))]
        return centres.at[step].set(chosen), jnp.maximum(nearest, rows @ chosen)

    centres = jnp.zeros((count, rows.shape[-1]), rows.dtype).at[0].set(rows[first])
    centres, _ = jax.lax.fori_loop(1, count, farthest, (centres, rows @ rows[first]))

    def improve(_: int, centres: Float[Array, "k d"]) -> Float[Array, "k d"]:
        # One-hot clusters of the rows [n k]; rows outside count for no cluster.
        own = jax.nn.one_hot(jnp.argmax(rows @ centres.T, axis=-1), count) * weight
        total = own.T @ rows
        norm = jnp.linalg.norm(total, axis=-1, keepdims=True)
        return jnp.where(norm > 0, total / jnp.maximum(norm, 1e-12), centres)

    centres = jax.lax.fori_loop(0, _STEPS, improve, centres)
    nearest = jnp.argmax(rows @ centres.T, axis=-1)
    return jnp.take(centres, nearest, axis=0).reshape(features.shape)
