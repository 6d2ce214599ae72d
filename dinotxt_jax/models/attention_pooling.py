"""SigLIP's attention pooling head: a learned probe attends to all patch tokens.

Source: `MAPHead` in `big_vision/models/vit.py`, google-research/big_vision; arXiv 2303.15343.

Shapes: b images, n patch tokens, d width, h heads, k head width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from dinotxt_jax.config.architecture import BlockConfig
from dinotxt_jax.models.blocks import Attention, Mlp
from dinotxt_jax.models.initialization import Normal
from dinotxt_jax.models.layers import DTypes, LayerNorm, parameter


class AttentionPooling(nnx.Module):
    """Computes y + mlp(norm(y)), where y is the probe's attention over the tokens.

    There is no residual from the probe and no norm after the result.
    """

    def __init__(self, config: BlockConfig, *, dtypes: DTypes):
        self.probe = parameter(Normal(0.02), (config.dim,), ("embed",), dtypes.parameters)
        self.attention = Attention(config, dtypes=dtypes)
        self.norm = LayerNorm(config.dim, config.layer_norm_epsilon, dtypes=dtypes)
        self.mlp = Mlp(config, dtypes=dtypes)

    def __call__(
        self, tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b d"]:
        """Returns the pooled token of each image.

        Args:
            tokens: patch tokens after the final norm.
            valid: which tokens are no padding; None: all.
        """
        query = self.attention.qkv(self.probe[...])[0]  # [h k]
        key, value = jnp.moveaxis(self.attention.qkv(tokens)[:, :, 1:], 2, 0)  # [b n h k] each
        logits = jnp.einsum("hk,bnhk->bhn", query * query.shape[-1] ** -0.5, key)
        logits = logits.astype(self.attention.softmax_dtype)
        if valid is not None:
            logits = jnp.where(valid[:, None], logits, jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return self._finished(jnp.einsum("bhn,bnhk->bhk", weights, value))

    def each(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Pools each token alone: patch tokens in the space that is shared with texts.

        The softmax over one key is 1, so that the attention is the token's value.
        """
        return self._finished(self.attention.qkv(tokens)[:, :, 2])

    def _finished(self, attended: Float[Array, "*b h k"]) -> Float[Array, "*b d"]:
        y = self.attention.out(attended)
        return y + self.mlp(self.norm(y))
