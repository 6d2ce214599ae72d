"""Drop path: the rate for every batch size, and no communication between devices."""

from __future__ import annotations

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Bool
from tolerances import ROUNDING, assert_same

from dinotxt_jax import sharding
from dinotxt_jax.models.drop_path import (
    DropPath,
    add_branch,
    drop_path_group,
    put_rows,
    take_rows,
)

RATE = 0.3


def drop_path(batch: int, key: jax.Array) -> DropPath:
    count = batch // drop_path_group(batch)
    return DropPath(key, jnp.arange(count), count)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def kept(batch: int, steps: int, rate: float = RATE) -> Bool[jax.Array, "steps b"]:
    """Returns which examples keep a branch in each step."""

    def step(key: jax.Array) -> jax.Array:
        zeros = jnp.zeros((batch, 1, 1))
        return add_branch(zeros, jnp.ones_like, rate, drop_path(batch, key))[:, 0, 0] > 0

    return jax.lax.map(step, jax.random.split(jax.random.key(0), steps), batch_size=1000)


@pytest.mark.parametrize(
    ("batch", "group"), [(1, 1), (12, 12), (96, 24), (100, 25), (997, 1), (999, 27), (1000, 25)]
)
def test_groups_have_few_factors_of_two(batch: int, group: int) -> None:
    """Meshes split a batch by powers of two, and must not split a group."""
    assert drop_path_group(batch) == group
    assert drop_path_group(4096) == 32


@pytest.mark.parametrize(
    ("batch", "steps"),
    [(1, 100_000), (12, 2000), (100, 300), (999, 100), (1000, 100), (4096, 50)],
)
def test_the_realised_rate_is_the_configured_one(batch: int, steps: int) -> None:
    """Agrees within one example per step, and within 2 % (four standard deviations) over steps."""
    dropped = batch - np.asarray(kept(batch, steps)).sum(1)
    assert set(dropped) <= {math.floor(batch * RATE), math.ceil(batch * RATE)}
    assert dropped.mean() / batch == pytest.approx(RATE, rel=0.02)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1 / 3])
def test_every_rate_is_met(rate: float) -> None:
    dropped = 48 - np.asarray(kept(48, 500, rate)).sum(1)
    assert set(dropped) <= {math.floor(48 * rate + 1e-6), math.ceil(48 * rate - 1e-6)}
    assert dropped.mean() / 48 == pytest.approx(rate, rel=0.02)


@pytest.mark.parametrize("batch", [30, 32, 997])
def test_every_example_is_kept_equally_often(batch: int) -> None:
    often = np.asarray(kept(batch, 4000)).mean(0)
    np.testing.assert_allclose(often, 1 - RATE, atol=5 * math.sqrt(RATE * (1 - RATE) / 4000))


def test_only_the_share_that_is_kept_is_computed_and_rescaled() -> None:
    computed = []

    def branch(rows: jax.Array) -> jax.Array:
        computed.append(rows.shape[0])
        return jnp.ones_like(rows)

    x = jnp.zeros((96, 2, 4))
    y = np.asarray(add_branch(x, branch, RATE, drop_path(96, jax.random.key(0))))
    assert computed == [4 * math.ceil(24 * 0.7)]
    touched = y[:, 0, 0].reshape(4, 24) > 0
    assert set(touched.sum(1)) <= {16, 17}
    assert (touched[0] != touched[1]).any()
    # Three roundings: the rate, its complement, and the quotient.
    np.testing.assert_allclose(y[y > 0], 1 / 0.7, rtol=3 * ROUNDING)


def test_layers_and_branches_leave_out_other_examples() -> None:
    from dinotxt_jax.models.drop_path import for_part

    drop = drop_path(96, jax.random.key(0))
    assert for_part(None, 0) is None
    ones = [
        np.asarray(add_branch(jnp.zeros((96, 1, 1)), jnp.ones_like, RATE, for_part(drop, number)))
        for number in (0, 1)
    ]
    assert (ones[0] != ones[1]).any()


def test_without_randomness_nothing_is_dropped() -> None:
    x = jnp.arange(8.0).reshape(4, 2, 1)
    np.testing.assert_array_equal(add_branch(x, jnp.ones_like, RATE, None), x + 1)


@pytest.mark.parametrize("batch", [256, 4000])
def test_nothing_crosses_devices(batch: int) -> None:
    """On a mesh the draw is the same, and activations stay on the same devices."""
    mesh = sharding.make_mesh(4, 2)
    rows = sharding.batch_sharding(mesh)
    x = jax.random.normal(jax.random.key(1), (batch, 3, 4))
    weight = jax.random.normal(jax.random.key(2), (4, 4))

    def loss(x: jax.Array, key: jax.Array) -> jax.Array:
        y = add_branch(x, lambda part: part @ weight, RATE, drop_path(batch, key))
        return sharding.constrain(y, "batch", None, None)

    def value_and_pull_back(x: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        y, pull_back = jax.vjp(lambda x: loss(x, key), x)
        return y, pull_back(jnp.cos(y))[0]

    key = jax.random.key(0)
    alone = value_and_pull_back(x, key)
    with jax.set_mesh(mesh):
        run = jax.jit(value_and_pull_back, in_shardings=(rows, None), out_shardings=(rows, rows))
        program = run.lower(x, key).compile()
    collective = r"= (\S+) (?:all-gather|all-to-all|all-reduce|collective-permute)"
    assert re.findall(collective, program.as_text()) == []
    jax.tree.map(assert_same, program(x, key), alone)


def normals(*shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(1), shape)


def test_taking_and_putting_rows_are_exact_and_have_the_gradients_of_indexing() -> None:
    x = normals(6, 2, 3)
    rows = jnp.asarray([[2, 0], [1, 2]])
    chosen = jax.nn.one_hot(rows, 3)
    indices = (rows + jnp.asarray([[0], [3]])).ravel()

    def plain(x: jax.Array) -> jax.Array:
        return jnp.zeros_like(x).at[indices].set(jnp.sin(x[indices]))

    def ours(x: jax.Array) -> jax.Array:
        return put_rows(jnp.sin(take_rows(x, chosen)), chosen)

    np.testing.assert_array_equal(take_rows(x, chosen), x[indices])
    np.testing.assert_array_equal(ours(x), plain(x))
    weights = normals(6, 2, 3) + 1
    actual, expected = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(x) for f in (ours, plain))
    # A cosine and its product with a weight, in two programs; rows move by products with 1 and 0.
    np.testing.assert_allclose(actual, expected, rtol=8 * ROUNDING)
