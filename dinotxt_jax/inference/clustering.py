"""Spherical k-means on the patch tokens of one image."""

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
    """Replaces each L2-normalised feature with the L2-normalised mean of the cluster.

    The initial centres are features far from each other, starting with the feature nearest to the
    overall mean, so that the result is deterministic.

    Args:
        features: the patch features.
        inside: mask of the features that determine the clusters; other features are only assigned
            to the nearest cluster.
        count: number of clusters; clusters beyond the number of distinct features stay empty.
    """
    rows = features.reshape(-1, features.shape[-1])
    weight = inside.reshape(-1, 1).astype(rows.dtype)
    first = jnp.argmax(jnp.where(weight[:, 0] > 0, rows @ (rows * weight).sum(0), -jnp.inf))

    def farthest(
        step: int, carry: tuple[Float[Array, "k d"], Float[Array, " n"]]
    ) -> tuple[Float[Array, "k d"], Float[Array, " n"]]:
        # `nearest` holds the similarity between each row and the nearest centre so far.
        centres, nearest = carry
        chosen = rows[jnp.argmin(jnp.where(weight[:, 0] > 0, nearest, jnp.inf))]
        return centres.at[step].set(chosen), jnp.maximum(nearest, rows @ chosen)

    centres = jnp.zeros((count, rows.shape[-1]), rows.dtype).at[0].set(rows[first])
    centres, _ = jax.lax.fori_loop(1, count, farthest, (centres, rows @ rows[first]))

    def improve(_: int, centres: Float[Array, "k d"]) -> Float[Array, "k d"]:
        # One-hot cluster assignment [n k]; rows outside the mask are in no cluster.
        membership = jax.nn.one_hot(jnp.argmax(rows @ centres.T, axis=-1), count) * weight
        total = membership.T @ rows
        norm = jnp.linalg.norm(total, axis=-1, keepdims=True)
        return jnp.where(norm > 0, total / jnp.maximum(norm, 1e-12), centres)

    centres = jax.lax.fori_loop(0, _STEPS, improve, centres)
    nearest = jnp.argmax(rows @ centres.T, axis=-1)
    return jnp.take(centres, nearest, axis=0).reshape(features.shape)
