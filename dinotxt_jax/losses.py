"""Training objectives, exact over the global batch.

Under `jax.jit` the batch is one array whatever the mesh, so the loss over it *is* the global loss;
there is no local variant.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from dinotxt_jax.models.dinotxt import normalized
from dinotxt_jax.sharding import constrain

LOSSES = ("softmax", "sigmoid")


def softmax_contrastive_loss(
    image_features: Float[Array, "b D"],
    text_features: Float[Array, "b D"],
    scale: Float[Scalar, ""],
) -> Float[Scalar, ""]:
    """Mean of image-to-text and text-to-image cross-entropy (arXiv 2103.00020, figure 3).

    Args:
        image_features, text_features: L2-normalised; row i of one belongs to row i of the other.
        scale: multiplies cosine similarities, exp(logit_scale).
    """
    # Two products rather than one and its transpose: each has its rows on the batch axes, so that
    # both softmaxes are local.
    per_image = _logits(image_features, text_features, scale)
    per_text = _logits(text_features, image_features, scale)
    matched = jnp.sum(image_features * text_features, axis=-1) * scale
    lse = jax.nn.logsumexp(per_image, axis=-1) + jax.nn.logsumexp(per_text, axis=-1)
    return jnp.mean(lse / 2 - matched)


def sigmoid_contrastive_loss(
    image_features: Float[Array, "b D"],
    text_features: Float[Array, "b D"],
    scale: Float[Scalar, ""],
    bias: Float[Scalar, ""],
) -> Float[Scalar, ""]:
    """Every pair as its own two-class problem, summed over texts (arXiv 2303.15343, algorithm 1).

    Args:
        image_features, text_features: L2-normalised; row i of one belongs to row i of the other.
        scale, bias: logits are scale * cosine + bias.
    """
    logits = _logits(image_features, text_features, scale) + bias
    signs = 2 * jnp.eye(logits.shape[0], dtype=logits.dtype) - 1
    return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(signs * logits), axis=-1))


def gram_loss(
    patch_tokens: Float[Array, "b n d"],
    backbone_patch_tokens: Float[Array, "b n e"],
    *,
    normalize: bool = True,
) -> Float[Scalar, ""]:
    """Mean squared difference of the patch tokens' Gram matrices, head against backbone.

    Args:
        patch_tokens: of the head. backbone_patch_tokens: of the frozen backbone, same patches.
        normalize: compare cosines instead of inner products.
    """

    def gram(tokens: jax.Array) -> jax.Array:
        wide = normalized(tokens) if normalize else tokens.astype(_wide(tokens))
        return jnp.einsum("bnd,bmd->bnm", wide, wide)

    target = jax.lax.stop_gradient(gram(backbone_patch_tokens))
    return jnp.mean(jnp.square(gram(patch_tokens) - target))


def _wide(x: jax.Array) -> jnp.dtype:
    """At least float32, so that bfloat16 features give a float32 loss."""
    return jnp.promote_types(x.dtype, jnp.float32)


def _logits(rows: jax.Array, columns: jax.Array, scale: jax.Array) -> jax.Array:
    rows = constrain(rows.astype(_wide(rows)), "batch", None)
    columns = columns.astype(_wide(columns))
    return constrain(scale * (rows @ columns.T), "batch", None)
