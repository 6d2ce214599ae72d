"""Drop path (stochastic depth, arXiv 1603.09382): a branch is left out for random examples.

Shapes: b batch, n tokens, d width of the residual stream; g groups of s examples, of which c are
computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# Drop path draws its examples within groups of consecutive examples of the global batch: small
# enough that a device holds whole groups at any real batch size (so that nothing crosses devices).
_LARGEST_GROUP = 32


def drop_path_group(batch: int) -> int:
    """How many consecutive examples of a batch drop path draws from.

    It depends on the batch alone, so that the draw does not depend on the number of devices. Of the
    divisors of the batch from 17 to 32, the one with the fewest factors of two is taken: meshes
    and accumulation mostly split a batch by powers of two, and must not split a group. Where there
    is none, it is the largest divisor up to 32.
    """
    divisors = [size for size in range(1, _LARGEST_GROUP + 1) if batch % size == 0]
    large = [size for size in divisors if 2 * size > _LARGEST_GROUP]
    return min(large or divisors[-1:], key=lambda size: (size & -size, -size))


class DropPath(NamedTuple):
    """Randomness for drop path in the examples at hand.

    Attributes:
        key: random key, the same for all examples of the global batch.
        groups: int[g], numbers of the groups of consecutive examples at hand.
        total: number of groups in the global batch.
    """

    key: jax.Array
    groups: Int[Array, " g"]
    total: int


def for_part(drop: DropPath | None, number: int | jax.Array) -> DropPath | None:
    """Independent randomness for a numbered part of a model, a layer or a branch."""
    return None if drop is None else drop._replace(key=jax.random.fold_in(drop.key, number))


def add_branch(
    x: Float[Array, "b n d"],
    branch: Callable[[Float[Array, "c n d"]], Float[Array, "c n d"]],
    rate: float,
    drop: DropPath | None,
) -> Float[Array, "b n d"]:
    """`x + branch(x)`, with stochastic depth when `drop` is given.

    As in the official code the branch is *computed* only for the examples that keep it, drawn at
    random in each group, and its output is multiplied by 1 / (1 - rate). The official code keeps
    int(b (1 - rate)) of the b examples of a device. Here a group of s examples keeps s (1 - rate),
    rounded up in some groups and down in the others (`_rounded_up`), so that the share that a step
    drops is the configured rate at every batch size, to within one example of the global batch.
    """
    if drop is None or rate == 0.0:
        return x + branch(x)
    size = x.shape[0] // len(drop.groups)
    kept = round(size * (1 - rate), 9)  # 10 (1 - 0.3) is 7 and no more
    rounded_key, draw_key = jax.random.split(drop.key)
    keys = jax.vmap(lambda number: jax.random.fold_in(draw_key, number))(drop.groups)
    order = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys).argsort(-1)
    # [g c s]: which example of its group each computed one is.
    chosen = jax.nn.one_hot(order[:, : math.ceil(kept)], size, dtype=x.dtype)
    y = branch(take_rows(x, chosen)) / (1 - rate)
    if kept % 1:
        # Where the number is rounded down, the last example was computed in vain.
        up = _rounded_up(drop._replace(key=rounded_key), kept % 1)
        chosen = chosen.at[:, -1].multiply(up[:, None].astype(x.dtype))
    return x + put_rows(y, chosen)


def _rounded_up(drop: DropPath, share: float) -> Bool[Array, " g"]:
    """Draws which groups round up: every group with probability `share`, in all total * share.

    All groups of the global batch are ranked at random, on every device alike. The ranks below
    total * share - u round up, with u uniform in [0, 1): one number more or less than on average.
    """
    rank_key, offset_key = jax.random.split(drop.key)
    ranks = jax.random.uniform(rank_key, (drop.total,)).argsort()
    return ranks[drop.groups] + jax.random.uniform(offset_key) < drop.total * share


# Taking rows and putting them back are products with a 0/1 matrix: exact, and each other's
# transpose for autodiff, so that no backward pass scatters.
def take_rows(x: Float[Array, "b n d"], chosen: Float[Array, "g c s"]) -> Float[Array, "g*c n d"]:
    """The chosen examples of each of the g groups of s that `x` consists of.

    Args:
        x: examples.
        chosen: one-hot: which example of its group each taken one is.
    """
    grouped = x.reshape(*chosen.shape[::2], -1)
    taken = jnp.einsum("gcs,gsx->gcx", chosen, grouped, precision="highest")
    return taken.reshape(-1, *x.shape[1:])


def put_rows(
    taken: Float[Array, "gc n d"], chosen: Float[Array, "g c s"]
) -> Float[Array, "g*s n d"]:
    """The inverse of `take_rows`: each example back in its place, zero where none was taken."""
    grouped = taken.reshape(*chosen.shape[:2], -1)
    back = jnp.einsum("gcs,gcx->gsx", chosen, grouped, precision="highest")
    return back.reshape(-1, *taken.shape[1:])
