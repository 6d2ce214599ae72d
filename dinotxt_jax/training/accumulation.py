"""Gradient accumulation that gives the whole-batch update, even for contrastive losses.

The loss compares every image in a batch with every text, so summing the gradients of per-part
losses does not give the gradient of the batch loss. Features, however, are independent across
examples. Features are therefore computed part by part; loss and feature gradients are computed over
the whole batch; then parameter gradients are computed part by part again (arXiv 2111.10050,
algorithm 1; "GradCache", arXiv 2101.06983).

On a mesh that splits the batch into p shards, a batch with k parts has the layout [p k m ...]. Part
j is [:, j]: every device has rows from every part, and no data moves between devices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped

from dinotxt_jax.sharding import constrain, mesh_batch_parts

Rows = PyTree[Shaped[Array, "..."]]


def split(batch: Rows, count: int) -> Rows:
    """Splits arrays [p k m ...] into `count` parts [k (p m) ...]; see `join`."""
    devices = mesh_batch_parts()

    def parts(array: Shaped[Array, "rows ..."]) -> Shaped[Array, "k part_rows ..."]:
        # Arrays with fewer rows than devices (drop path groups in a very small batch) use p = 1.
        spread = devices if array.shape[0] % (devices * count) == 0 else 1
        within = array.reshape(spread, count, -1, *array.shape[1:])  # [p k m ...]
        moved = jnp.moveaxis(within, 1, 0).reshape(count, -1, *array.shape[1:])
        return constrain(moved, None, "batch", *[None] * (array.ndim - 1))

    return jax.tree.map(parts, batch)


def join(parts: Rows) -> Rows:
    """Joins parts to a batch; the inverse of `split`."""
    devices = mesh_batch_parts()

    def merged(array: Shaped[Array, "k part_rows ..."]) -> Shaped[Array, "rows ..."]:
        count, rest = array.shape[0], array.shape[2:]
        moved = jnp.moveaxis(array.reshape(count, devices, -1, *rest), 0, 1)  # [p k m ...]
        return constrain(moved.reshape(-1, *rest), "batch", *[None] * len(rest))

    return jax.tree.map(merged, parts)


def map_parts(function: Callable[[Rows], Rows], batch: Rows, count: int) -> Rows:
    """Computes `function(batch)` sequentially in `count` parts."""
    if count == 1:
        return function(batch)
    return join(jax.lax.map(function, split(batch, count)))


def vjp_of_parts(
    function: Callable[[Any, Rows], Rows], parameters: Any, batch: Rows, count: int
) -> tuple[Rows, Callable[[Rows], Any]]:
    """Returns `function(parameters, batch)`, in `count` parts, and the pull-back to the parameters.

    Args:
        function: maps parameters and a batch to results, with a result row for each batch row.
        parameters: the arrays to differentiate with respect to.
        batch: arrays with a leading batch axis.
        count: number of parts; with count > 1, the pull-back recomputes each part's forward pass.
    """
    if count == 1:
        result, pull_back = jax.vjp(lambda p: function(p, batch), parameters)
        return result, lambda cotangents: pull_back(cotangents)[0]

    def add(total: Any, part: tuple[Rows, Rows]) -> tuple[Any, None]:
        rows, cotangents = part
        _, pull_back = jax.vjp(lambda p: function(p, rows), parameters)
        return jax.tree.map(jnp.add, total, pull_back(cotangents)[0]), None

    def pull_back_all(cotangents: Rows) -> Any:
        nothing = jax.tree.map(jnp.zeros_like, parameters)
        parts = split((batch, cotangents), count)
        return jax.lax.scan(add, nothing, parts)[0]

    return map_parts(lambda rows: function(parameters, rows), batch, count), pull_back_all
