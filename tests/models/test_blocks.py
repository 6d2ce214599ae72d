"""What blocks promise beyond the reference outputs: drop path, stacking, rematerialisation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dinotxt_jax.config.architecture import BlockConfig
from dinotxt_jax.models.blocks import (
    DROP_PATH_GROUP,
    Block,
    add_branch,
    apply_stack,
    attention,
    drop_path_keys,
    put_rows,
    stack,
    take_rows,
)
from dinotxt_jax.models.layers import DTypes, LayerNorm

CONFIG = BlockConfig(dim=16, num_heads=2, mlp_hidden_dim=24, mlp="swiglu", layer_scale=0.5)


def blocks(config: BlockConfig = CONFIG, depth: int = 3) -> Block:
    return stack(lambda rngs: Block(config, dtypes=DTypes(), rngs=rngs), depth, nnx.Rngs(0))


def tokens(batch: int = 4, n: int = 5, dim: int = 16) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, n, dim))


def test_a_stack_is_its_layers_one_after_the_other() -> None:
    stacked, x = blocks(), tokens()
    graphdef, state = nnx.split(stacked)
    found, layers = apply_stack(stacked, x, keep=(0, 1, 2))
    for layer in range(3):
        arrays = jax.tree.map(lambda leaf, layer=layer: leaf[layer], nnx.to_pure_dict(state))
        x = nnx.merge(graphdef, arrays)(x)
        np.testing.assert_allclose(layers[layer], x, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(found, layers[-1])
    _, some = apply_stack(stacked, tokens(), keep=(2, 0))
    np.testing.assert_array_equal(some, layers[jnp.array([2, 0])])


def test_stacked_layers_are_initialised_differently_and_name_the_layer_axis() -> None:
    stacked = blocks()
    kernel = stacked.mlp.gate.kernel
    assert kernel.get_metadata("logical_axes") == ("layers", "embed", "mlp")
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_changes_no_gradient(remat: str) -> None:
    graphdef, state = nnx.split(blocks())
    arrays = nnx.to_pure_dict(state)

    def loss(arrays: dict, remat: str) -> jax.Array:
        return jnp.sum(apply_stack(nnx.merge(graphdef, arrays), tokens(), remat=remat)[0] ** 2)

    plain, again = (jax.grad(loss)(arrays, name) for name in ("none", remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), plain, again)


def test_compiled_size_does_not_grow_with_depth() -> None:
    def size(depth: int) -> int:
        graphdef, state = nnx.split(blocks(depth=depth))
        run = jax.jit(lambda arrays, x: apply_stack(nnx.merge(graphdef, arrays), x)[0])
        return len(run.lower(nnx.to_pure_dict(state), tokens()).as_text().splitlines())

    assert size(2) == size(12)


def test_drop_path_computes_and_rescales_the_kept_share_of_every_group() -> None:
    batch = 3 * DROP_PATH_GROUP
    x = jnp.zeros((batch, 2, 4))
    computed = []

    def branch(rows: jax.Array) -> jax.Array:
        computed.append(rows.shape[0])
        return jnp.ones_like(rows)

    y = np.asarray(
        add_branch(x, branch, 0.3, drop_path_keys(jax.random.key(0), batch, DROP_PATH_GROUP))
    )
    kept = int(DROP_PATH_GROUP * 0.7)
    assert computed == [3 * kept]
    touched = y[:, 0, 0].reshape(3, DROP_PATH_GROUP) > 0
    assert (touched.sum(1) == kept).all()
    assert (touched[0] != touched[1]).any()
    np.testing.assert_allclose(y[y > 0], DROP_PATH_GROUP / kept, rtol=1e-6)


def test_drop_path_keeps_at_least_one_example() -> None:
    y = add_branch(jnp.zeros((2, 1, 1)), jnp.ones_like, 0.9, jax.random.key(0)[None])
    assert sorted(np.asarray(y).ravel().tolist()) == [0.0, 2.0]


def test_without_a_key_nothing_is_dropped() -> None:
    x = tokens()
    np.testing.assert_array_equal(add_branch(x, jnp.ones_like, 0.3, None), x + 1)


def test_every_example_is_kept_equally_often() -> None:
    def kept(key: jax.Array) -> jax.Array:
        return add_branch(jnp.zeros((32, 1, 1)), jnp.ones_like, 0.3, key[None])[:, 0, 0] > 0

    often = jax.vmap(kept)(jax.random.split(jax.random.key(0), 4000)).mean(0)
    np.testing.assert_allclose(often, 22 / 32, atol=0.04)  # five standard deviations


def test_taking_and_putting_rows_are_exact_and_have_the_gradients_of_indexing() -> None:
    x = tokens(6, 2, 3)
    rows = jnp.asarray([[2, 0], [1, 2]])
    chosen = jax.nn.one_hot(rows, 3)
    indices = (rows + jnp.asarray([[0], [3]])).ravel()

    def plain(x: jax.Array) -> jax.Array:
        return jnp.zeros_like(x).at[indices].set(jnp.sin(x[indices]))

    def ours(x: jax.Array) -> jax.Array:
        return put_rows(jnp.sin(take_rows(x, chosen)), chosen)

    np.testing.assert_array_equal(take_rows(x, chosen), x[indices])
    np.testing.assert_array_equal(ours(x), plain(x))
    weights = tokens(6, 2, 3) + 1
    found, expected = (jax.grad(lambda x, f=f: jnp.sum(f(x) * weights))(x) for f in (ours, plain))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_a_segment_is_attended_to_as_if_it_were_alone(causal: bool) -> None:
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 7, 2, 4))
    segment_ids = jnp.asarray([[1, 1, 1, 4, 4, 0, 0], [2, 2, 2, 2, 2, 2, 2]])

    def attend(*qkv: jax.Array, **options: jax.Array) -> jax.Array:
        return attention(*qkv, causal=causal, softmax_dtype="float32", **options)

    found = attend(query, key, value, segment_ids=segment_ids)
    for row, first, last in ((0, 0, 3), (0, 3, 5), (0, 5, 7), (1, 0, 7)):
        place = slice(row, row + 1), slice(first, last)
        alone = attend(query[place], key[place], value[place])
        np.testing.assert_allclose(found[place], alone, rtol=0, atol=1e-6)


def test_drop_path_is_refused_where_rows_hold_several_texts() -> None:
    config = BlockConfig(dim=16, num_heads=2, mlp_hidden_dim=24, drop_path=0.5)
    segment_ids = jnp.ones((4, 5), int)
    with pytest.raises(ValueError, match="drop path leaves out whole rows"):
        apply_stack(blocks(config), tokens(), keys=jax.random.key(0)[None], segment_ids=segment_ids)


def test_norms_are_computed_in_the_normalization_dtype() -> None:
    dtypes = DTypes(compute="bfloat16")
    norm = LayerNorm(64, 1e-6, dtypes=dtypes, rngs=nnx.Rngs(0))
    x = (1000 + tokens(2, 3, 64)).astype("bfloat16")
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    assert norm(x).dtype == jnp.bfloat16
    # The rounding of the result to bfloat16, and nothing beside it.
    np.testing.assert_allclose(np.asarray(norm(x), np.float64), expected, rtol=2**-8, atol=1e-6)
