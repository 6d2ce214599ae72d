"""Attention, in all implementations that the project uses.

    xla      plain products; all logits in a layer exist at once. Runs everywhere.
    grouped  plain products for a few examples at a time, so that logits stay in the cache: CPUs.
    cudnn    cuDNN's flash attention: NVIDIA GPUs, half precision.
    splash   the Pallas kernel with that name: TPUs.

The kernels (cudnn, splash) never write the logits to memory and compute the softmax in float32.

Shapes: b batch, n tokens, h heads, k head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention as splash
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.compiler_options import uses_onednn
from dinotxt_jax.sharding import partition_spec

# The implementation that "auto" selects per platform (`jax.Device.platform`), if it supports the
# model; XLA on other platforms. Only measured gains belong here (`benchmarks/attention.py`); GPUs
# and TPUs have not been measured yet.
AUTO: Mapping[str, str] = {"cpu": "grouped"}
PLATFORMS = {"grouped": "cpu", "cudnn": "gpu", "splash": "tpu"}
# Maximum bytes that the logits of one group take in "grouped".
GROUP_BYTES = 4 << 20
# cuDNN needs head widths that are multiples of 8, at most 128 (256 from Hopper on, which no model
# here needs). Splash processes blocks whose length is a multiple of 128 tokens.
CUDNN_HEAD_MULTIPLE = 8
CUDNN_LARGEST_HEAD = 128
SPLASH_TILE = 128
SPLASH_LARGEST_BLOCK = 512


def attention(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b n h k"],
    value: Float[Array, "b n h k"],
    *,
    causal: bool,
    softmax_dtype: str,
    segment_ids: Int[Array, "b n"] | None = None,
    implementation: str = "xla",
) -> Float[Array, "b n h k"]:
    """Computes scaled dot-product attention.

    Masked weights are exactly zero.

    Args:
        query, key, value: projected tokens.
        causal: tokens attend to themselves and earlier tokens only.
        softmax_dtype: softmax dtype in "xla" and "grouped".
        segment_ids: non-negative ids; tokens attend only to tokens in the same segment.
        implementation: a key of `IMPLEMENTATIONS` (`choose` resolves "auto" and checks support).
    """
    compute = IMPLEMENTATIONS[implementation]
    return compute(query, key, value, causal, softmax_dtype, segment_ids)


def choose(
    implementation: str, platform: str, dtypes: tuple[str, ...], head_dims: tuple[int, ...]
) -> str:
    """Resolves the setting `config.attention` for a platform, before anything is compiled.

    Args:
        implementation: "auto" or a key of `IMPLEMENTATIONS`.
        platform: platform to compile for, which need not be this machine's.
        dtypes: product dtypes.
        head_dims: widths of the attention heads.

    Raises:
        UserError: the implementation does not support the platform or the model.
    """
    if implementation == "auto":
        best = AUTO.get(platform, "xla")
        # oneDNN has no fast product for a few examples in a batch: a step takes six times as long.
        slow = best == "grouped" and uses_onednn()
        return "xla" if slow or _obstacle(best, platform, dtypes, head_dims) else best
    obstacle = _obstacle(implementation, platform, dtypes, head_dims)
    if obstacle:
        raise UserError(f"config.attention={implementation!r} {obstacle}; or choose auto or xla.")
    return implementation


def _obstacle(
    implementation: str, platform: str, dtypes: tuple[str, ...], head_dims: tuple[int, ...]
) -> str:
    """Returns why an implementation cannot be used, with a cure; "" if it can."""
    required = PLATFORMS.get(implementation, platform)
    if platform != required:
        return f"needs {required} devices, but these are {platform}; run it on {required}"
    if implementation == "cudnn":
        if "float32" in dtypes:
            return (
                "needs half precision, but a dtype is float32; set "
                "config.precision.compute=bfloat16 and config.precision.frozen=bfloat16"
            )
        odd = [n for n in head_dims if n % CUDNN_HEAD_MULTIPLE or n > CUDNN_LARGEST_HEAD]
        if odd:
            return (
                f"needs head widths that are multiples of {CUDNN_HEAD_MULTIPLE}, at most "
                f"{CUDNN_LARGEST_HEAD}, not {odd[0]}; change the number of heads"
            )
    return ""


def _xla(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    softmax_dtype: str,
    segment_ids: jax.Array | None,
) -> jax.Array:
    scaled = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhk,bnhk->bhqn", scaled, key).astype(softmax_dtype)
    logits = _masked(logits, causal, segment_ids)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqn,bnhk->bqhk", weights, value)


def _grouped(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    softmax_dtype: str,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """Plain attention in an order that suits CPUs.

    Examples are processed in groups whose logits fit the cache. The output, not the weights, is
    divided by the weight sum, because the weights are larger than the output.
    """

    def group(inputs: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value, *ids = inputs  # [b h n k], [b h k n], [b h n k]
        logits = _masked((query @ key).astype(softmax_dtype), causal, *ids)
        largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        weights = jnp.exp(logits - largest)
        y = weights.astype(value.dtype) @ value
        return (y / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)

    def local(query: jax.Array, key: jax.Array, value: jax.Array, *ids: jax.Array) -> jax.Array:
        """Computes attention for the rows of one device, a group of rows at a time."""
        rows, tokens, heads, width = query.shape
        max_rows = GROUP_BYTES // (heads * tokens**2 * jnp.dtype(softmax_dtype).itemsize)
        divisors = [count for count in range(1, rows + 1) if rows % count == 0]
        size = max((count for count in divisors if count <= max(max_rows, 1)), default=rows)
        arranged = (
            jnp.transpose(query, (0, 2, 1, 3)) * width**-0.5,
            jnp.transpose(key, (0, 2, 3, 1)),
            jnp.transpose(value, (0, 2, 1, 3)),
            *ids,
        )
        if size == rows:
            return jnp.transpose(group(arranged), (0, 2, 1, 3))
        split = [array.reshape(rows // size, size, *array.shape[1:]) for array in arranged]
        y = jax.lax.map(group, tuple(split)).reshape(arranged[2].shape)
        return jnp.transpose(y, (0, 2, 1, 3))

    ids = () if segment_ids is None else (segment_ids,)
    return _on_parts(local, query, key, value, *ids)


def _on_parts(local: Callable[..., jax.Array], query: jax.Array, *others: jax.Array) -> jax.Array:
    """Runs a function over examples and heads on each device's shard.

    The compiler cannot partition a Pallas kernel or a loop over groups.

    Args:
        local: function that takes query, key, value and optionally segment ids.
        query, others: the arguments for `local`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(query, *others)
    spec = partition_spec(("batch", None, "heads", None), query.shape, mesh.shape)
    parts = (spec, spec, spec, PartitionSpec(spec[0]))[: 1 + len(others)]
    # check_vma=False: a Pallas call does not declare how its results vary over devices.
    return jax.shard_map(local, in_specs=parts, out_specs=spec, check_vma=False)(query, *others)


def _masked(logits: jax.Array, causal: bool, segment_ids: jax.Array | None = None) -> jax.Array:
    """Sets logits [b h q n] for masked pairs to the lowest number."""
    if not causal and segment_ids is None:
        return logits
    visible = jnp.tri(logits.shape[-1], dtype=bool) if causal else True
    if segment_ids is not None:
        visible = visible & _same_segment(segment_ids)
    return jnp.where(visible, logits, jnp.finfo(logits.dtype).min)


def _same_segment(segment_ids: Int[Array, "b n"]) -> Bool[Array, "b 1 n n"]:
    """Returns which token pairs are in the same segment."""
    return segment_ids[:, None, :, None] == segment_ids[:, None, None, :]


def _cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    softmax_dtype: str,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """cuDNN's attention; lengths are padded to even ones, which JAX can differentiate."""
    del softmax_dtype
    rows, tokens = query.shape[:2]
    padding = tokens % 2
    query, key, value, ids = _padded(query, key, value, segment_ids, padding)
    # Padding is masked causally, by segment ID, or by sequence length.
    masked = causal or ids is not None or not padding
    y = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if ids is None else _same_segment(ids),
        is_causal=causal,
        key_value_seq_lengths=None if masked else jnp.full((rows,), tokens, "int32"),
        implementation="cudnn",
    )
    return y[:, :tokens]


def _splash(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    softmax_dtype: str,
    segment_ids: jax.Array | None,
) -> jax.Array:
    del softmax_dtype
    tokens = query.shape[1]
    padding = -tokens % SPLASH_TILE

    def local(query: jax.Array, key: jax.Array, value: jax.Array, ids: Any = None) -> jax.Array:
        heads = query.shape[2]
        query, key, value, ids = _padded(query, key, value, ids, padding)
        kernel = _splash_kernel(tokens, padding, heads, causal, masked=ids is None)
        segments = None if ids is None else splash.SegmentIds(ids, ids)
        by_head = [jnp.swapaxes(array, 1, 2) for array in (query, key, value)]
        by_head[0] = by_head[0] * query.shape[-1] ** -0.5
        return jnp.swapaxes(jax.vmap(kernel)(*by_head, segments), 1, 2)[:, :tokens]

    ids = () if segment_ids is None else (segment_ids,)
    return _on_parts(local, query, key, value, *ids)


def _splash_kernel(
    tokens: int, padding: int, heads: int, causal: bool, masked: bool
) -> Callable[..., jax.Array]:
    """Creates the splash kernel for one example, [h n k] each.

    Args:
        masked: whether the mask must exclude padding. Segment ids exclude it too, and causal tokens
            never attend to later ones.
    """
    length = tokens + padding
    mask: splash.Mask
    if causal:
        mask = splash.CausalMask((length, length))
    elif masked and padding:
        mask = splash.NumpyMask(np.broadcast_to(np.arange(length) < tokens, (length, length)))
    else:
        mask = splash.FullMask((length, length))
    tiles = length // SPLASH_TILE
    largest = SPLASH_LARGEST_BLOCK // SPLASH_TILE
    block = SPLASH_TILE * max(n for n in range(1, largest + 1) if tiles % n == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads), block_sizes=sizes, head_shards=1, q_seq_shards=1
    )


def _padded(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array | None,
    padding: int,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """Appends `padding` tokens, which form a separate segment (-1)."""
    widths = ((0, 0), (0, padding), (0, 0), (0, 0))
    query, key, value = (jnp.pad(array, widths) for array in (query, key, value))
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids, widths[:2], constant_values=-1)
    return query, key, value, segment_ids


IMPLEMENTATIONS: Mapping[str, Callable[..., jax.Array]] = {
    "xla": _xla,
    "grouped": _grouped,
    "cudnn": _cudnn,
    "splash": _splash,
}
