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
from dinotxt_jax.models.blocks import Mlp
from dinotxt_jax.models.initialization import Normal
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, parameter


class AttentionPooling(nnx.Module):
    """Computes y + mlp(norm(y)), where y is the probe's attention over the tokens.

    There is no residual from the probe and no norm after the result.
    """

    def __init__(self, config: BlockConfig, *, dtypes: DTypes):
        dim, heads, width = config.dim, config.num_heads, config.head_dim
        self.softmax_dtype = dtypes.normalization

        def projection() -> Dense:
            return Dense(
                (dim,),
                (heads, width),
                ("embed", "heads", "head_dim"),
                use_bias=True,
                initializer=Normal(0.02),
                dtypes=dtypes,
            )

        self.probe = parameter(Normal(0.02), (dim,), ("embed",), dtypes.parameters)
        self.query, self.key, self.value = projection(), projection(), projection()
        self.out = Dense(
            (heads, width),
            (dim,),
            ("heads", "head_dim", "embed"),
            use_bias=True,
            initializer=Normal(0.02),
            dtypes=dtypes,
        )
        self.norm = LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes)
        self.mlp = Mlp(config, dtypes=dtypes)

    def __call__(
        self, tokens: Float[Array, "b n d"], valid: Bool[Array, "b n"] | None = None
    ) -> Float[Array, "b d"]:
        """Returns the pooled token of each image.

        Args:
            tokens: patch tokens after the final norm.
            valid: which tokens are no padding; None: all.
        """
        query = self.query(self.probe[...])  # [h k]
        key, value = self.key(tokens), self.value(tokens)  # [b n h k]
        logits = jnp.einsum("hk,bnhk->bhn", query * query.shape[-1] ** -0.5, key)
        logits = logits.astype(self.softmax_dtype)
        if valid is not None:
            logits = jnp.where(valid[:, None], logits, jnp.finfo(logits.dtype).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        return self._finished(jnp.einsum("bhn,bnhk->bhk", weights, value))

    def each(self, tokens: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Pools each token alone: patch tokens in the space that is shared with texts.

        The softmax over a single key is 1, so that the attention returns the token's value.
        """
        return self._finished(self.value(tokens))

    def _finished(self, attended: Float[Array, "*b h k"]) -> Float[Array, "*b d"]:
        y = self.out(attended)
        return y + self.mlp(self.norm(y))
