"""The text transformer of dino.txt: causal, pre-norm, features at the end-of-text token.

Source: `dinov2/eval/text/` and `dinov2/hub/text/` of facebookresearch/dinov2; arXiv 2412.16334.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dinotxt_jax.models.blocks import Block, BlockConfig, apply_stack, stack
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, normal, parameter
from dinotxt_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Architecture of the text transformer; the defaults are the released one.

    Attributes:
        vocabulary_size, context_length: token ids, and positions of the longest row.
        width, depth, num_heads, mlp_hidden_dim: of the transformer.
        embed_dim: D, the width shared with the image descriptor (2 d).
        layer_norm_epsilon: added to the variance.
    """

    vocabulary_size: int = 49_408
    context_length: int = 77
    width: int = 1280
    depth: int = 24
    num_heads: int = 20
    mlp_hidden_dim: int = 5120
    embed_dim: int = 2048
    layer_norm_epsilon: float = 1e-5

    def block(self) -> BlockConfig:
        """The configuration of one block."""
        return BlockConfig(
            dim=self.width,
            num_heads=self.num_heads,
            mlp_hidden_dim=self.mlp_hidden_dim,
            qkv_bias=False,
            causal=True,
            layer_norm_epsilon=self.layer_norm_epsilon,
            initialization="clip",
            num_layers=self.depth,
        )


class TextTransformer(nnx.Module):
    """Token ids to one feature vector a row."""

    def __init__(self, config: TextConfig, *, dtypes: DTypes, rngs: nnx.Rngs, remat: str = "none"):
        self.config = config
        self.dtypes = dtypes
        self.remat = remat
        self.token_embedding = parameter(
            rngs,
            normal(0.02),
            (config.vocabulary_size, config.width),
            ("vocabulary", "embed"),
            dtypes,
        )
        self.position_embedding = parameter(
            rngs,
            normal(0.01),
            (config.context_length, config.width),
            ("positions", "embed"),
            dtypes,
        )
        self.blocks = stack(
            lambda rngs: Block(config.block(), dtypes=dtypes, rngs=rngs), config.depth, rngs
        )
        self.norm = LayerNorm(config.width, config.layer_norm_epsilon, dtypes=dtypes, rngs=rngs)
        self.projection = Dense(
            (config.width,),
            (config.embed_dim,),
            ("embed", "projection"),
            use_bias=False,
            initializer=normal(config.width**-0.5),
            dtypes=dtypes,
            rngs=rngs,
        )

    def __call__(self, tokens: Int[Array, "b l"]) -> Float[Array, "b D"]:
        """Features of the first end-of-text token, which has the largest id of the row.

        Rows may be shorter than the context length: attention is causal, so that cutting off
        padding behind the end-of-text changes nothing.

        Raises:
            ValueError: rows longer than the context length.
        """
        hidden = self.norm(self.hidden(tokens))
        end = jnp.argmax(tokens, axis=-1)
        # The projection acts on every token alike; projecting the one that is read is the same.
        return self.projection(jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0])

    def embed(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l w"]:
        """Token plus position embeddings."""
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"rows of {length} tokens, but the text transformer has "
                f"{self.config.context_length} positions"
            )
        embedded = jnp.take(self.token_embedding[...], tokens, axis=0)
        x = embedded + self.position_embedding[:length]
        return constrain(x.astype(self.dtypes.compute), "batch", "tokens", None)

    def hidden(self, tokens: Int[Array, "b l"]) -> Float[Array, "b l w"]:
        """Tokens after the last block, before the final LayerNorm."""
        x, _ = apply_stack(self.blocks, self.embed(tokens), remat=self.remat)
        return x
