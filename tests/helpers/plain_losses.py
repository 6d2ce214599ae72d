"""The contrastive losses, computed directly from the definition with all logits at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from dinotxt_jax.sharding import constrain


def softmax(images: jax.Array, texts: jax.Array, scale: jax.Array) -> jax.Array:
    """Computes the CLIP loss."""
    scaled = logits(images, texts, scale)
    sums = jax.nn.logsumexp(scaled, axis=1) + jax.nn.logsumexp(scaled, axis=0)
    return jnp.mean(sums / 2 - jnp.diagonal(scaled))


def sigmoid(images: jax.Array, texts: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Computes the SigLIP loss."""
    signs = 2 * jnp.eye(len(images), dtype=images.dtype) - 1
    losses = jax.nn.log_sigmoid(signs * (logits(images, texts, scale) + bias))
    return -jnp.mean(jnp.sum(losses, axis=-1))


def logits(rows: jax.Array, columns: jax.Array, scale: jax.Array) -> jax.Array:
    return constrain(scale * (constrain(rows, "batch", None) @ columns.T), "batch", None)
