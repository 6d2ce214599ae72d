"""Attention: the one place in the project that computes it.

Shapes: b batch, n tokens, h heads, k width of a head.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def attention(
    query: Float[Array, "b n h k"],
    key: Float[Array, "b n h k"],
    value: Float[Array, "b n h k"],
    *,
    causal: bool,
    softmax_dtype: str,
    segment_ids: Int[Array, "b n"] | None = None,
) -> Float[Array, "b n h k"]:
    """Scaled dot-product attention.

    With `segment_ids` a token sees only tokens of its own segment (so itself at least). What is
    masked has a weight of exactly zero.
    """
    scaled = query * query.shape[-1] ** -0.5
    logits = jnp.einsum("bqhk,bnhk->bhqn", scaled, key).astype(softmax_dtype)
    if causal or segment_ids is not None:
        seen = jnp.tri(logits.shape[-1], dtype=bool) if causal else True
        if segment_ids is not None:
            seen = seen & (segment_ids[:, None, :, None] == segment_ids[:, None, None, :])
        logits = jnp.where(seen, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    return jnp.einsum("bhqn,bnhk->bqhk", weights, value)
