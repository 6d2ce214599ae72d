"""Attention: the one place in the project that computes it, and the ways it can.

    xla      plain products; all logits of a layer exist at once. Runs everywhere.
    grouped  the same for a few examples at a time, whose logits stay in a processor's cache: CPUs.
    cudnn    cuDNN's flash attention: NVIDIA GPUs, half precision.
    splash   the Pallas kernel of that name: TPUs.

The kernels never write the logits to memory and do their softmax in float32.

Shapes: b batch, n tokens, h heads, k width of a head.
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

# What "auto" takes on a platform (of `jax.Device`) if the kernel can do the work; XLA elsewhere.
# Only measured gains belong here (`benchmarks/attention.py`); GPUs and TPUs wait for theirs.
AUTO: Mapping[str, str] = {"cpu": "grouped"}
PLATFORMS = {"grouped": "cpu", "cudnn": "gpu", "splash": "tpu"}
# Bytes of logits that "grouped" works on at a time.
GROUP_BYTES = 4 << 20
# Widths of a head that cuDNN takes are multiples of 8 (up to 256 from Hopper on, which no model
# here needs), tokens of a block of splash of 128.
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
    """Scaled dot-product attention.

    With `segment_ids` (0 or more) a token sees only tokens of its own segment (so itself at
    least). What is masked has a weight of exactly zero.

    Args:
        causal: tokens see only themselves and what is before them.
        softmax_dtype: what the softmax of "xla" and "grouped" runs in.
        implementation: a key of `IMPLEMENTATIONS` (`choose` knows "auto" and the conditions).
    """
    compute = IMPLEMENTATIONS[implementation]
    return compute(query, key, value, causal, softmax_dtype, segment_ids)


def choose(
    implementation: str, platform: str, dtypes: tuple[str, ...], head_dims: tuple[int, ...]
) -> str:
    """The implementation that a setting means for a platform, before anything is compiled.

    Args:
        implementation: "auto" or a key of `IMPLEMENTATIONS`.
        platform: of the devices compiled for, which need not be this machine's.
        dtypes: that products run in. head_dims: widths of heads.

    Raises:
        UserError: impossible there.
    """
    if implementation == "auto":
        best = AUTO.get(platform, "xla")
        # oneDNN has no fast product for a few examples of a batch: a step takes six times as long.
        slow = best == "grouped" and uses_onednn()
        return "xla" if slow or _obstacle(best, platform, dtypes, head_dims) else best
    obstacle = _obstacle(implementation, platform, dtypes, head_dims)
    if obstacle:
        raise UserError(f"config.attention={implementation!r} {obstacle}; or choose auto or xla.")
    return implementation


def _obstacle(
    implementation: str, platform: str, dtypes: tuple[str, ...], head_dims: tuple[int, ...]
) -> str:
    """Why an implementation cannot do the work, with a cure; "" if it can."""
    needed = PLATFORMS.get(implementation, platform)
    if platform != needed:
        return f"runs on {needed} devices and these are {platform}; run on {needed}"
    if implementation == "cudnn":
        if "float32" in dtypes:
            return (
                "computes in half precision, and a dtype is float32; set "
                "config.precision.compute=bfloat16 and config.precision.frozen=bfloat16"
            )
        odd = [n for n in head_dims if n % CUDNN_HEAD_MULTIPLE or n > CUDNN_LARGEST_HEAD]
        if odd:
            return (
                f"wants heads of a multiple of {CUDNN_HEAD_MULTIPLE} channels, "
                f"{CUDNN_LARGEST_HEAD} at most, not {odd[0]}; change the number of heads"
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
    """In the order of loops that CPUs like; what leaves is divided, not the larger weights."""

    def group(inputs: tuple[jax.Array, ...]) -> jax.Array:
        query, key, value, *ids = inputs  # [b h n k], [b h k n], [b h n k]
        logits = _masked((query @ key).astype(softmax_dtype), causal, *ids)
        largest = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
        weights = jnp.exp(logits - largest)
        y = weights.astype(value.dtype) @ value
        return (y / jnp.sum(weights, axis=-1, keepdims=True)).astype(value.dtype)

    def local(query: jax.Array, key: jax.Array, value: jax.Array, *ids: jax.Array) -> jax.Array:
        rows, tokens, heads, width = query.shape
        most = GROUP_BYTES // (heads * tokens**2 * jnp.dtype(softmax_dtype).itemsize)
        divisors = [count for count in range(1, rows + 1) if rows % count == 0]
        size = max((count for count in divisors if count <= max(most, 1)), default=rows)
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
    """A function of examples and heads on each device's part: it is not divided by itself.

    Args:
        local: of query, key, value and perhaps the segment ids.
        query, others: its arguments.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return local(query, *others)
    spec = partition_spec(("batch", None, "heads", None), query.shape, mesh.shape)
    parts = (spec, spec, spec, PartitionSpec(spec[0]))[: 1 + len(others)]
    # Unchecked: a Pallas call does not say how its results vary over devices.
    return jax.shard_map(local, in_specs=parts, out_specs=spec, check_vma=False)(query, *others)


def _masked(logits: jax.Array, causal: bool, segment_ids: jax.Array | None = None) -> jax.Array:
    """Logits [b h q n] with the lowest number where a query must not look."""
    if not causal and segment_ids is None:
        return logits
    seen = jnp.tri(logits.shape[-1], dtype=bool) if causal else True
    if segment_ids is not None:
        seen = seen & _same_segment(segment_ids)
    return jnp.where(seen, logits, jnp.finfo(logits.dtype).min)


def _same_segment(segment_ids: Int[Array, "b n"]) -> Bool[Array, "b 1 n n"]:
    """Which tokens are of one segment."""
    return segment_ids[:, None, :, None] == segment_ids[:, None, None, :]


def _cudnn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    causal: bool,
    softmax_dtype: str,
    segment_ids: jax.Array | None,
) -> jax.Array:
    """JAX differentiates cuDNN's attention only at even lengths."""
    del softmax_dtype
    rows, tokens = query.shape[:2]
    padding = tokens % 2
    query, key, value, ids = _padded(query, key, value, segment_ids, padding)
    # Padding hides behind causality, as a segment of its own, or behind a length.
    hidden = causal or ids is not None or not padding
    y = jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=None if ids is None else _same_segment(ids),
        is_causal=causal,
        key_value_seq_lengths=None if hidden else jnp.full((rows,), tokens, "int32"),
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
    """Splash attention of one example, [h n k] each.

    Args:
        masked: whether the mask must hide padding. Segment ids do too, and causal tokens never
            see what is behind them.
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
    """With `padding` tokens behind, which are a segment of their own."""
    behind = ((0, 0), (0, padding), (0, 0), (0, 0))
    query, key, value = (jnp.pad(array, behind) for array in (query, key, value))
    if segment_ids is not None:
        segment_ids = jnp.pad(segment_ids, behind[:2], constant_values=-1)
    return query, key, value, segment_ids


IMPLEMENTATIONS: Mapping[str, Callable[..., jax.Array]] = {
    "xla": _xla,
    "grouped": _grouped,
    "cudnn": _cudnn,
    "splash": _splash,
}
