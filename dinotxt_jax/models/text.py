"""The text transformer of dino.txt: causal, pre-norm, features at the end-of-text token.

Source: `dinov2/eval/text/` and `dinov2/hub/text/` of facebookresearch/dinov2; arXiv 2412.16334.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.models.blocks import Block, apply_stack, stack
from dinotxt_jax.models.initialization import Normal
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, parameter
from dinotxt_jax.sharding import constrain


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
        remat: str = "none",
        attention: str = "xla",
    ):
        self.config = config
        self.dtypes = dtypes
        self.remat = remat
        self.token_embedding = parameter(
            Normal(0.02),
            (config.vocabulary_size, config.width),
            ("vocabulary", "embed"),
            dtypes.parameters,
        )
        self.position_embedding = parameter(
            Normal(0.01),
            (config.context_length, config.width),
            ("positions", "embed"),
            dtypes.parameters,
        )
        self.blocks = stack(Block(config.block(attention), dtypes=dtypes), config.depth)
        self.norm = LayerNorm(config.width, config.layer_norm_epsilon, dtypes=dtypes)
        self.projection = Dense(
            (config.width,),
            (config.embed_dim,),
            ("embed", "projection"),
            use_bias=False,
            initializer=Normal(config.width**-0.5),
            dtypes=dtypes,
        )

    def __call__(
        self, tokens: Int[Array, "*p r l"], packing: Packing | None = None
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
            # Every row is a part with one text: p = b, c = 1. The end-of-text has the largest id.
            end = jnp.argmax(tokens, axis=-1)[:, None]  # [b 1]
            hidden = self.hidden(tokens)  # [b l w]
        else:
            # Index of each end-of-text among the r l tokens of its part.
            end = packing.row * tokens.shape[-1] + packing.column  # [p c]
            # The blocks need no parts: [p r l] -> [(p r) l].
            layout = (tokens, packing.positions, packing.segment_ids)
            hidden = self.hidden(*(array.reshape(-1, tokens.shape[-1]) for array in layout))
        # Each part gathers from its own tokens only, so that no token crosses devices.
        parts = self.norm(hidden).reshape(end.shape[0], -1, self.config.width)  # [p (r l) w]
        read = jnp.take_along_axis(parts, end[..., None], axis=1).reshape(-1, self.config.width)
        # The projection acts on every token alike: projecting only the end-of-text is the same.
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
        # An id outside the table reads the nearest row; `jnp.take` would fill in NaN by default.
        embedded = jnp.take(self.token_embedding[...], tokens, axis=0, mode="clip")
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
