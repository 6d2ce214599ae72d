"""The dino.txt text transformer: causal, pre-norm, with features read at the end-of-text token.

Source: `dinov2/eval/text/` and `dinov2/hub/text/` in facebookresearch/dinov2; arXiv 2412.16334.

Shapes: b texts, or rows inside the transformer; l row length, w transformer width, D feature
width. Packed batches have p parts with r rows and c texts each.
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
    """Text locations in packed token rows, which contain several texts each.

    A batch is divided into p parts. Each part gathers only from tokens in the same part, so that
    nothing crosses devices if p is a multiple of the device count. `dinotxt_jax.data.packing`
    makes packed rows.

    Attributes:
        segment_ids: int[p r l], each token's text number in the row; 0 is padding.
        positions: int[p r l], each token's position in the text.
        row, column: int[p c], location of each end-of-text token; `row` counts within the part.
    """

    segment_ids: jax.Array
    positions: jax.Array
    row: jax.Array
    column: jax.Array


class TextTransformer(nnx.Module):
    """Maps token IDs to one feature vector per text."""

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
        """Returns features read at the first end-of-text token, the largest ID in the text.

        Rows may be shorter than the context length: attention is causal, so removing the padding
        after the end-of-text token does not change the features.

        Args:
            tokens: int[b l] with one text per row, or packed rows int[p r l].
            packing: text locations in packed rows, for p c = b texts.

        Raises:
            ValueError: rows are longer than the context length.
        """
        if packing is None:
            # Every row is a part with one text: p = b, c = 1. End-of-text has the largest ID.
            end = jnp.argmax(tokens, axis=-1)[:, None]  # [b 1]
            hidden = self.hidden(tokens)  # [b l w]
        else:
            # Flat index of each end-of-text token among the r l tokens in the part.
            end = packing.row * tokens.shape[-1] + packing.column  # [p c]
            # The blocks do not use the division into parts: [p r l] -> [(p r) l].
            layout = (tokens, packing.positions, packing.segment_ids)
            hidden = self.hidden(*(array.reshape(-1, tokens.shape[-1]) for array in layout))
        # Each part gathers only from tokens in the same part, so that no token crosses devices.
        parts = self.norm(hidden).reshape(end.shape[0], -1, self.config.width)  # [p (r l) w]
        read = jnp.take_along_axis(parts, end[..., None], axis=1).reshape(-1, self.config.width)
        # The projection acts on each token separately, so only end-of-text tokens are projected.
        return self.projection(constrain(read, "batch", None))

    def embed(
        self, tokens: Int[Array, "b l"], positions: Int[Array, "b l"] | None = None
    ) -> Float[Array, "b l w"]:
        """Returns token plus position embeddings; by default positions count from the row start."""
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(
                f"rows of {length} tokens, but the text transformer has "
                f"{self.config.context_length} positions"
            )
        # IDs outside the table read the nearest row; `jnp.take` would return NaN by default.
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
        """Returns the tokens after the last block, before the final LayerNorm."""
        x = self.embed(tokens, positions)
        x, _ = apply_stack(self.blocks, x, remat=self.remat, segment_ids=segment_ids)
        return x
