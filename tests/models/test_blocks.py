"""Blocks beyond the reference outputs: stacking, rematerialisation, segments."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from models import initialized
from tolerances import assert_same

from dinotxt_jax.config.architecture import BlockConfig
from dinotxt_jax.models.blocks import Block, apply_stack, attention, stack
from dinotxt_jax.models.drop_path import DropPath
from dinotxt_jax.models.layers import DTypes, LayerNorm

CONFIG = BlockConfig(dim=16, num_heads=2, mlp_hidden_dim=24, mlp="swiglu", layer_scale=0.5)


def blocks(config: BlockConfig = CONFIG, depth: int = 3) -> Block:
    return initialized(stack(Block(config, dtypes=DTypes()), depth))


def tokens(batch: int = 4, n: int = 5, dim: int = 16) -> jax.Array:
    return jax.random.normal(jax.random.key(1), (batch, n, dim))


def test_a_stack_is_its_layers_one_after_the_other() -> None:
    stacked, x = blocks(), tokens()
    graphdef, state = nnx.split(stacked)
    result, layers = apply_stack(stacked, x, keep=(0, 1, 2))
    for layer in range(3):
        arrays = jax.tree.map(lambda leaf, layer=layer: leaf[layer], nnx.to_pure_dict(state))
        x = nnx.merge(graphdef, arrays)(x)
        assert_same(layers[layer], x)
    np.testing.assert_array_equal(result, layers[-1])
    _, outputs = apply_stack(stacked, tokens(), keep=(2, 0))
    np.testing.assert_array_equal(outputs, layers[jnp.array([2, 0])])


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
    jax.tree.map(assert_same, plain, again)


def test_compiled_size_does_not_grow_with_depth() -> None:
    def size(depth: int) -> int:
        graphdef, state = nnx.split(blocks(depth=depth))
        run = jax.jit(lambda arrays, x: apply_stack(nnx.merge(graphdef, arrays), x)[0])
        return len(run.lower(nnx.to_pure_dict(state), tokens()).as_text().splitlines())

    assert size(2) == size(12)


@pytest.mark.parametrize("causal", [False, True])
def test_a_segment_is_attended_to_as_if_it_were_alone(causal: bool) -> None:
    query, key, value = jax.random.normal(jax.random.key(0), (3, 2, 7, 2, 4))
    segment_ids = jnp.asarray([[1, 1, 1, 4, 4, 0, 0], [2, 2, 2, 2, 2, 2, 2]])

    def attend(*qkv: jax.Array, **options: jax.Array) -> jax.Array:
        return attention(*qkv, causal=causal, softmax_dtype="float32", **options)

    result = attend(query, key, value, segment_ids=segment_ids)
    for row, first, last in ((0, 0, 3), (0, 3, 5), (0, 5, 7), (1, 0, 7)):
        place = slice(row, row + 1), slice(first, last)
        alone = attend(query[place], key[place], value[place])
        assert_same(result[place], alone)


def test_drop_path_is_refused_where_rows_hold_several_texts() -> None:
    config = BlockConfig(dim=16, num_heads=2, mlp_hidden_dim=24, drop_path=0.5)
    segment_ids = jnp.ones((4, 5), int)
    drop = DropPath(jax.random.key(0), jnp.arange(1), 1)
    with pytest.raises(ValueError, match="drop path leaves out whole rows"):
        apply_stack(blocks(config), tokens(), drop=drop, segment_ids=segment_ids)


def test_norms_are_computed_in_the_normalization_dtype() -> None:
    dtypes = DTypes(compute="bfloat16")
    norm = initialized(LayerNorm(64, 1e-6, dtypes=dtypes))
    x = (1000 + tokens(2, 3, 64)).astype("bfloat16")
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-6)
    assert norm(x).dtype == jnp.bfloat16
    # Only the rounding of the result to bfloat16, after float32's errors.
    np.testing.assert_allclose(
        np.asarray(norm(x), np.float64), expected, rtol=1.01 * 2**-8, atol=1e-5
    )
