"""Greedy k-means++: initial centroids that are far from each other."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from dinotxt_jax import sharding

# Two rows whose squared distance is at most this fraction of their squared lengths are the same
# point: the difference is rounding.
_SAME = 1e-6
# Rows of a block in the two sums that locate a draw; one sum over all rows would be too inexact.
DRAW_BLOCK = 256


def trials(count: int) -> int:
    """Returns the number of candidates per centroid, as in the paper."""
    return 2 + int(math.log(count))


@functools.partial(jax.jit, static_argnames=("count",))
def initial_centroids(
    points: Float[Array, "n d"], weights: Float[Array, " n"], key: Array, count: int
) -> Float[Array, "k d"]:
    """Chooses rows of `points` as initial centroids, by greedy k-means++.

    Each centroid is the best of 2 + floor(ln k) candidates (Arthur and Vassilvitskii, 2007, section
    6), which are drawn with probabilities proportional to the squared distance to the centroids
    chosen so far; the best leaves the lowest sum of these distances. If there are fewer different
    points than centroids, some are repeated.

    Args:
        points: float32; the number of rows is a multiple of `DRAW_BLOCK`.
        weights: 1 for points, 0 for rows without a point.
        key: random key.
        count: number of centroids.
    """
    squares = jnp.sum(jnp.square(points), axis=-1)
    candidates = trials(count)

    def choose(
        step: Int32[Array, ""], carry: tuple[Float[Array, "k d"], Float[Array, " n"]]
    ) -> tuple[Float[Array, "k d"], Float[Array, " n"]]:
        """Adds the candidate that reduces the sum of squared distances most."""
        centroids, closest = carry
        draws = jax.random.uniform(jax.random.fold_in(key, step), (candidates,))
        # The first centroid is drawn uniformly, and so are those beyond the different points.
        rows = points[_drawn(jnp.where(jnp.sum(closest) > 0, closest, weights), draws)]
        lengths = jnp.sum(jnp.square(rows), axis=-1)
        products = jnp.matmul(points, rows.T, precision=jax.lax.Precision.HIGHEST)
        scale = squares[:, None] + lengths  # [n candidates]
        distances = scale - 2 * products
        distances = jnp.where(distances > _SAME * scale, distances, 0) * weights[:, None]
        distances = jnp.where(step > 0, jnp.minimum(closest[:, None], distances), distances)
        best = jnp.argmin(jnp.sum(distances, axis=0))
        # One number per point is small: every device holds all for the next draw.
        closest = sharding.constrain(distances[:, best], None)
        return centroids.at[step].set(rows[best]), closest

    initial = (jnp.zeros((count, points.shape[-1])), jnp.zeros(len(points)))
    return jax.lax.fori_loop(0, count, choose, initial)[0]


def _drawn(masses: Float[Array, " n"], draws: Float[Array, " t"]) -> Int32[Array, " t"]:
    """Returns rows drawn with probabilities proportional to `masses`.

    Args:
        masses: not negative; not all are zero.
        draws: uniform numbers in [0, 1).
    """
    blocks = masses.reshape(-1, DRAW_BLOCK)
    totals = jnp.cumsum(jnp.sum(blocks, axis=-1))
    block = jnp.searchsorted(totals, draws * totals[-1], side="right")
    # Rounding may place a draw behind the last block with a mass.
    block = jnp.minimum(block, jnp.searchsorted(totals, totals[-1]))
    before = jnp.where(block > 0, totals[block - 1], 0)
    within = jnp.cumsum(blocks[block], axis=-1)  # [t DRAW_BLOCK]
    target = jnp.minimum(draws * totals[-1] - before, within[:, -1])
    row = jnp.sum(within <= target[:, None], axis=-1)
    row = jnp.minimum(row, jnp.sum(within < within[:, -1:], axis=-1))
    return (block * DRAW_BLOCK + row).astype("int32")
