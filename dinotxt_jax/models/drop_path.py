"""Drop path (stochastic depth, arXiv 1603.09382): skips a branch for random examples.

Shapes: b batch, n tokens, d width of the residual stream; g groups of s examples, and the branch
is computed for c examples per group.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Drop path samples within groups of consecutive examples in the global batch. Groups are small
# enough that each device holds whole groups at any real batch size, so nothing crosses devices.
_LARGEST_GROUP = 32


def drop_path_group(batch: int) -> int:
    """Returns the group size: how many consecutive examples drop path samples from.

    The group size depends only on the batch size, so the samples do not depend on the number of
    devices. Among the divisors of the batch size from 17 to 32, the function returns the one with
    the fewest factors of two: meshes and gradient accumulation mostly split a batch by powers of
    two, and must not split a group. If there is no such divisor, it returns the largest divisor up
    to 32.
    """
    divisors = [size for size in range(1, _LARGEST_GROUP + 1) if batch % size == 0]
    large = [size for size in divisors if 2 * size > _LARGEST_GROUP]
    return min(large or divisors[-1:], key=lambda size: (size & -size, -size))


class DropPath(NamedTuple):
    """Drop path randomness for the local examples.

    Attributes:
        key: random key, the same for all examples in the global batch.
        groups: int[g], indices of the local groups (of consecutive examples) in the global batch.
        total: number of groups in the global batch.
    """

    key: jax.Array
    groups: Int[Array, " g"]
    total: int


def for_part(drop: DropPath | None, number: int | jax.Array) -> DropPath | None:
    """Returns independent randomness for a numbered model part (a layer or a branch)."""
    return None if drop is None else drop._replace(key=jax.random.fold_in(drop.key, number))


def add_branch(
    x: Float[Array, "b n d"],
    branch: Callable[[Float[Array, "c n d"]], Float[Array, "c n d"]],
    rate: float,
    drop: DropPath | None,
) -> Float[Array, "b n d"]:
    """Returns `x + branch(x)`, with stochastic depth if `drop` is given.

    As in the official code, the branch is *computed* only for the kept examples, which are sampled
    at random in each group, and the output is multiplied by 1 / (1 - rate). The official code keeps
    int(b (1 - rate)) of the b examples on a device. Here a group of s examples keeps s (1 - rate),
    rounded up in some groups and down in the others (`_rounded_up`). The dropped share per step
    therefore equals the configured rate at every batch size, to within one example in the global
    batch.
    """
    if drop is None or rate == 0.0:
        return x + branch(x)
    size = x.shape[0] // len(drop.groups)
    kept_rows = round(size * (1 - rate), 9)  # so that 10 (1 - 0.3) is exactly 7
    rounded_key, draw_key = jax.random.split(drop.key)
    keys = jax.vmap(lambda number: jax.random.fold_in(draw_key, number))(drop.groups)
    order = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys).argsort(-1)
    # `order` [g s] is a random permutation in each group; the first c examples are computed.
    # `chosen` [g c s] is one-hot: chosen[i, j] selects example order[i, j] in group i.
    chosen = jax.nn.one_hot(order[:, : math.ceil(kept_rows)], size, dtype=x.dtype)
    y = branch(take_rows(x, chosen)) / (1 - rate)
    if kept_rows % 1:
        # c is the same in every group (static shapes). Groups that round down compute one example
        # too many, and this discards the result by zeroing the last one-hot row.
        up = _rounded_up(drop._replace(key=rounded_key), kept_rows % 1)
        chosen = chosen.at[:, -1].multiply(up[:, None].astype(x.dtype))
    return x + put_rows(y, chosen)


def _rounded_up(drop: DropPath, share: float) -> Bool[Array, " g"]:
    """Samples the groups that round up: each with probability `share`, about total * share in all.

    Every device computes the same random ranking for all groups in the global batch. Groups with a
    rank below total * share - u round up, where u is uniform in [0, 1). The count is therefore
    total * share, rounded up or down at random, and total * share on average.
    """
    rank_key, offset_key = jax.random.split(drop.key)
    ranks = jax.random.uniform(rank_key, (drop.total,)).argsort()
    return ranks[drop.groups] + jax.random.uniform(offset_key) < drop.total * share


# `take_rows` and `put_rows` are products with a 0/1 matrix instead of gather and scatter. The
# products are exact, and under autodiff each is the transpose of the other, so that no backward
# pass scatters.
def take_rows(x: Float[Array, "b n d"], chosen: Float[Array, "g c s"]) -> Float[Array, "g*c n d"]:
    """Returns the chosen examples from each group.

    Args:
        x: examples, g groups of s consecutive examples.
        chosen: one-hot over the s examples in a group, for each of the c examples taken.
    """
    grouped = x.reshape(*chosen.shape[::2], -1)  # [(g s) n d] -> [g s (n d)]
    chosen_rows = jnp.einsum("gcs,gsx->gcx", chosen, grouped, precision="highest")
    return chosen_rows.reshape(-1, *x.shape[1:])


def put_rows(
    branch_rows: Float[Array, "gc n d"], chosen: Float[Array, "g c s"]
) -> Float[Array, "g*s n d"]:
    """Inverts `take_rows`: returns each example to the original row; other rows are zero."""
    grouped = branch_rows.reshape(*chosen.shape[:2], -1)  # [(g c) n d] -> [g c (n d)]
    back = jnp.einsum("gcs,gcx->gsx", chosen, grouped, precision="highest")
    return back.reshape(-1, *branch_rows.shape[1:])
