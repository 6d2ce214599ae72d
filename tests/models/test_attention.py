"""Each attention implementation against the plain version, and refusals before compilation."""

from __future__ import annotations

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerances import assert_same

from dinotxt_jax import UserError, sharding
from dinotxt_jax.models import attention as module
from dinotxt_jax.models.attention import attention, choose

BATCH, TOKENS, HEADS, WIDTH = 8, 37, 2, 16


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs splash attention in the Pallas interpreter, which needs no TPU."""
    make = module.splash.make_splash_mha
    monkeypatch.setattr(module.splash, "make_splash_mha", functools.partial(make, interpret=True))


def drawn(tokens: int = TOKENS, rows: int = BATCH) -> list[jax.Array]:
    """Draws queries, keys, values and a weight for every output."""
    random = np.random.default_rng(0)
    shape = (4, rows, tokens, HEADS, WIDTH)
    return list(jnp.asarray(random.normal(size=shape), jnp.float32))


def segments(tokens: int = TOKENS, rows: int = BATCH) -> jax.Array:
    """Returns segment ids: several texts per row, then 0 as padding, as in `data.packing`."""
    ids = np.sort(np.random.default_rng(1).integers(1, 5, (rows, tokens)), axis=1)
    ids[:, -3:] = 0
    return jnp.asarray(ids, jnp.int32)


def output_and_gradients(
    implementation: str, arrays: list[jax.Array], causal: bool, segment_ids: jax.Array | None
) -> list[np.ndarray]:
    *inputs, weights = arrays

    @functools.partial(jax.jit, static_argnames="causal")
    def run(inputs: list[jax.Array], segment_ids: jax.Array | None, causal: bool) -> object:
        def weighted(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = attention(
                *qkv,
                causal=causal,
                softmax_dtype="float32",
                segment_ids=segment_ids,
                implementation=implementation,
            )
            return jnp.sum(y * weights), y

        return jax.grad(weighted, argnums=(0, 1, 2), has_aux=True)(*inputs)

    return [np.asarray(leaf) for leaf in jax.tree.leaves(run(inputs, segment_ids, causal))]


@pytest.mark.parametrize(
    ("packed", "causal", "tokens", "rows", "mesh"),
    [
        (False, False, TOKENS, BATCH, None),
        (False, True, TOKENS, BATCH, None),
        (True, False, 128, BATCH, None),
        (True, True, TOKENS, BATCH, (2, 4)),
        (False, False, 261, BATCH, (2, 4)),
        # A batch that the mesh does not divide is computed in full on every device.
        (False, False, TOKENS, 3, (2, 4)),
    ],
)
def test_splash_equals_plain_attention(
    interpreted: None,
    packed: bool,
    causal: bool,
    tokens: int,
    rows: int,
    mesh: tuple[int, int] | None,
) -> None:
    arrays = drawn(tokens, rows)
    ids = segments(tokens, rows) if packed else None
    on = contextlib.nullcontext() if mesh is None else jax.set_mesh(sharding.make_mesh(*mesh))
    with on:
        plain, kernel = (
            output_and_gradients(name, arrays, causal, ids) for name in ("xla", "splash")
        )
    for expected, actual in zip(plain, kernel, strict=True):
        # Sums of up to 261 terms of magnitude 1 in a different order, in float32.
        assert_same(actual, expected)


@pytest.mark.parametrize(
    ("rows", "mesh", "causal", "packed"),
    [
        *((7, None, causal, packed) for causal in (False, True) for packed in (False, True)),
        *((16, (2, 4), causal, packed) for causal in (False, True) for packed in (False, True)),
        (6, None, True, True),
        (3, (2, 4), True, True),
    ],
)
def test_groups_of_examples_equal_plain_attention(
    monkeypatch: pytest.MonkeyPatch,
    packed: bool,
    causal: bool,
    rows: int,
    mesh: tuple[int, int] | None,
) -> None:
    # Logits of two examples; 7 rows run one at a time, on a mesh as many as each device holds.
    monkeypatch.setattr(module, "GROUP_BYTES", 2 * HEADS * TOKENS**2 * 4)
    arrays = drawn(TOKENS, rows)
    ids = segments(TOKENS, rows) if packed else None
    on = contextlib.nullcontext() if mesh is None else jax.set_mesh(sharding.make_mesh(*mesh))
    with on:
        plain, grouped = (
            output_and_gradients(name, arrays, causal, ids) for name in ("xla", "grouped")
        )
    for expected, actual in zip(plain, grouped, strict=True):
        assert_same(actual, expected)


@pytest.mark.parametrize("name", ["xla", "grouped"])
def test_no_examples_give_none(name: str) -> None:
    arrays = drawn(TOKENS, 0)[:3]
    result = module.attention(*arrays, causal=False, softmax_dtype="float32", implementation=name)
    assert result.shape == arrays[0].shape


def test_groups_keep_half_precision_where_it_was() -> None:
    query, key, value, _ = (array.astype(jnp.bfloat16) for array in drawn())
    plain, grouped = (
        attention(query, key, value, causal=True, softmax_dtype="float32", implementation=name)
        for name in ("xla", "grouped")
    )
    assert grouped.dtype == plain.dtype == jnp.bfloat16
    exact = attention(
        *(array.astype(jnp.float32) for array in (query, key, value)),
        causal=True,
        softmax_dtype="float32",
    )
    errors = [float(jnp.abs(y - exact).mean()) for y in (plain, grouped)]
    assert errors[1] < 1.5 * errors[0]


def test_splash_keeps_batches_where_they_are(interpreted: None) -> None:
    mesh = sharding.make_mesh(2, 4)
    *inputs, _ = drawn()
    with jax.set_mesh(mesh):
        placed = [jax.device_put(array, sharding.batch_sharding(mesh)) for array in inputs]
        run = jax.jit(
            functools.partial(
                attention, causal=False, softmax_dtype="float32", implementation="splash"
            )
        )
        compiled = run.lower(*placed).compile()
    assert not re.search(r"all-(gather|reduce|to-all)", compiled.as_text())
    assert compiled.output_shardings.shard_shape(inputs[0].shape)[0] == 1


def lowered(implementation: str, platform: str, causal: bool, packed: bool) -> str:
    """Lowers forward and backward pass for an absent platform, at the width of real heads."""
    array = jax.ShapeDtypeStruct((BATCH, TOKENS, HEADS, 64), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((BATCH, TOKENS), jnp.int32) if packed else None

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, ids: jax.Array | None) -> object:
        return attention(
            query,
            key,
            value,
            causal=causal,
            softmax_dtype="float32",
            segment_ids=ids,
            implementation=implementation,
        ).sum()

    run = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    return run.trace(array, array, array, ids).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize(("causal", "packed"), [(False, False), (True, True)])
def test_splash_can_be_lowered_for_tpus_from_here(causal: bool, packed: bool) -> None:
    text = lowered("splash", "tpu", causal, packed)
    # One kernel for the forward pass, and one each for the gradients of queries and of keys/values.
    assert len(re.findall(r"custom_call @tpu_custom_call", text)) == 3


@pytest.mark.parametrize(("causal", "packed"), [(False, False), (True, True)])
def test_cudnn_can_be_lowered_for_gpus_from_here(
    monkeypatch: pytest.MonkeyPatch, causal: bool, packed: bool
) -> None:
    from jax._src.cudnn import fused_attention_stablehlo

    # The version is read from the library, which is not installed here.
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
    text = lowered("cudnn", "cuda", causal, packed)
    assert len(re.findall(r"custom_call @__cudnn", text)) == 2


def test_an_implementation_is_refused_where_it_cannot_run() -> None:
    half, whole = ("bfloat16",), ("bfloat16", "float32")
    for name, platform, dtypes, head_dims, sentence in (
        (
            "cudnn",
            "cpu",
            half,
            (64,),
            "'cudnn' needs gpu devices, but these are cpu; run it on gpu",
        ),
        ("splash", "gpu", half, (64,), "'splash' needs tpu devices, but these are gpu"),
        ("cudnn", "gpu", whole, (64,), "half precision, but a dtype is float32; set config.prec"),
        (
            "cudnn",
            "gpu",
            half,
            (64, 12),
            "that are multiples of 8, at most 128, not 12; change",
        ),
        ("cudnn", "gpu", half, (384,), "at most 128, not 384; change the number of heads"),
    ):
        with pytest.raises(UserError, match=re.escape(sentence)):
            choose(name, platform, dtypes, head_dims)
    assert choose("cudnn", "gpu", half, (64,)) == "cudnn"
    assert choose("splash", "tpu", whole, (64,)) == "splash"


def test_auto_selects_the_best_available_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AUTO", {"gpu": "cudnn"})
    assert choose("auto", "gpu", ("bfloat16",), (64,)) == "cudnn"
    assert choose("auto", "gpu", ("float32",), (64,)) == "xla"
    assert choose("auto", "tpu", ("bfloat16",), (64,)) == "xla"
