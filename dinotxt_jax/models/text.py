"""The text transformer of dino.txt: causal, pre-norm, features at the end-of-text token.

Source: `dinov2/eval/text/` and `dinov2/hub/text/` of facebookresearch/dinov2; arXiv 2412.16334.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
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

    def flops(self, rows: int, length: int) -> float:
        """Floating-point operations of the blocks on rows of tokens, forward.

        Matrix products only, a multiplication and an addition each counting one: 8 w^2 + 4 w m for
        the projections and the MLP of a token and 4 w `length` for its attention, which is computed
        over whole rows and then masked.
        """
        projections = 8 * self.width**2 + 4 * self.width * self.mlp_hidden_dim
        return float(rows * length * self.depth * (projections + 4 * self.width * length))

    def block(self, attention: str = "xla") -> BlockConfig:
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
            attention=attention,
        )


class Packing(NamedTuple):
    """Where the texts are in token rows that hold several, for each of p parts of a batch.

    What is gathered for a part lies in that part, so that nothing crosses devices where p is a
    multiple of their number. `dinotxt_jax.data.packing` makes such rows.

    Attributes:
        segment_ids: int[p r l], the number of a token's text in its row; 0 is padding.
        positions: int[p r l], of a token in its text.
        row, column: int[p c], where the end of each text is, `row` counted within the part.
    """

    segment_ids: jax.Array
    positions: jax.Array
    row: jax.Array
    column: jax.Array


class TextTransformer(nnx.Module):
    """Token ids to one feature vector a text."""

    def __init__(
        self,
        config: TextConfig,
        *,
        dtypes: DTypes,
        rngs: nnx.Rngs,
        remat: str = "none",
        attention: str = "xla",
    ):
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
            lambda rngs: Block(config.block(attention), dtypes=dtypes, rngs=rngs),
            config.depth,
            rngs,
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

    def __call__(
        self, tokens: Int[Array, "*p b l"], packing: Packing | None = None
    ) -> Float[Array, "b D"]:
        """Features of the first end-of-text token, which has the largest id of the text.

        Rows may be shorter than the context length: attention is causal, so that cutting off
        padding behind the end-of-text changes nothing.

        Args:
            tokens: one text a row, int[b l]; or packed rows, int[p r l].
            packing: where the texts of packed rows are, p c = b of them.

        Raises:
            ValueError: rows longer than the context length.
        """
        if packing is None:
            end = jnp.argmax(tokens, axis=-1)[:, None]
            hidden = self.hidden(tokens)
        else:
            end = packing.row * tokens.shape[-1] + packing.column
            layout = (tokens, packing.positions, packing.segment_ids)
            hidden = self.hidden(*(array.reshape(-1, tokens.shape[-1]) for array in layout))
        parts = self.norm(hidden).reshape(end.shape[0], -1, self.config.width)
        # The projection acts on every token alike; projecting the one that is read is the same.
        read = jnp.take_along_axis(parts, end[..., None], axis=1).reshape(-1, self.config.width)
        return self.projection(constrain(read, "batch", None))

    def embed(
        self, tokens: Int[Array, "b l"], positions: Int[Array, "b l"] | None = None
    ) -> Float[Array, "b l w"]:
        """Token plus position embeddings, positions counting from the row's start by default."""
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"rows of {length} tokens, but the text transformer has "
                f"{self.config.context_length} positions"
            )
        embedded = jnp.take(self.token_embedding[...], tokens, axis=0)
        table = self.position_embedding
        placed = table[:length] if positions is None else jnp.take(table[...], positions, axis=0)
        x = embedded + placed
        return constrain(x.astype(self.dtypes.compute), "batch", "tokens", None)

    def hidden(
        self,
        tokens: Int[Array, "b l"],
        positions: Int[Array, "b l"] | None = None,
        segment_ids: Int[Array, "b l"] | None = None,
    ) -> Float[Array, "b l w"]:
        """Tokens after the last block, before the final LayerNorm."""
        x = self.embed(tokens, positions)
        x, _ = apply_stack(self.blocks, x, remat=self.remat, segment_ids=segment_ids)
        return x
