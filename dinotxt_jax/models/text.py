"""The pre-norm text transformer of all families: dino.txt, CLIP, SigLIP and TIPS.

dino.txt and CLIP are causal and read the end-of-text token. SigLIP attends to all tokens, padding
included, and reads the last position. TIPS masks the padding and averages the other tokens.

Source: `dinov2/eval/text/` and `dinov2/hub/text/` in facebookresearch/dinov2; arXiv 2412.16334,
2103.00020 (CLIP), 2303.15343 (SigLIP), 2410.16512 (TIPS).

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
from dinotxt_jax.models.positions import sinusoids
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
        self.position_embedding = (
            parameter(
                Normal(0.01),
                (config.context_length, config.width),
                ("positions", "embed"),
                dtypes.parameters,
            )
            if config.positions == "learned"
            else None
        )
        self.blocks = stack(Block(config.block(attention), dtypes=dtypes), config.depth)
        self.norm = LayerNorm(config.width, config.layer_norm_epsilon, dtypes=dtypes)
        self.projection = (
            None
            if config.projection == "none"
            else Dense(
                (config.width,),
                (config.embed_dim,),
                ("embed", "projection"),
                use_bias=config.projection == "biased",
                initializer=Normal(config.width**-0.5),
                dtypes=dtypes,
            )
        )

    def __call__(
        self, tokens: Int[Array, "*p r l"], packing: Packing | None = None
    ) -> Float[Array, "b D"]:
        """Returns text features.

        Rows may be shorter than the context length if padding has no influence
        (`TextConfig.ignores_padding`).

        Args:
            tokens: int[b l] with one text per row, or packed rows int[p r l].
            packing: text locations in packed rows, for p c = b texts.

        Raises:
            ValueError: rows are longer than the context length, rows were shortened although
                padding is part of the input, or packed texts are not read at their end.
        """
        if packing is None:
            pooled = self._pooled(self.norm(self.hidden(tokens)), tokens)
        else:
            if self.config.pooling != "end":
                raise ValueError(
                    f"packed rows need pooling 'end', but this text transformer has "
                    f"{self.config.pooling!r}; give one text per row"
                )
            # The blocks do not use the division into parts: [p r l] -> [(p r) l].
            layout = (tokens, packing.positions, packing.segment_ids)
            hidden = self.hidden(*(array.reshape(-1, tokens.shape[-1]) for array in layout))
            # Each part gathers only from tokens in the same part, so that no token crosses
            # devices. `end` is a flat index among the r l tokens in the part.
            parts = self.norm(hidden).reshape(len(tokens), -1, self.config.width)  # [p (r l) w]
            end = packing.row * tokens.shape[-1] + packing.column  # [p c]
            read = jnp.take_along_axis(parts, end[..., None], axis=1)
            pooled = read.reshape(-1, self.config.width)
        pooled = constrain(pooled, "batch", None)
        return pooled if self.projection is None else self.projection(pooled)

    def _pooled(
        self, hidden: Float[Array, "b l w"], tokens: Int[Array, "b l"]
    ) -> Float[Array, "b w"]:
        """Returns one vector per row, with one text in each row."""
        config = self.config
        if config.pooling == "last":
            return hidden[:, -1]
        if config.pooling == "mean":
            real = (tokens != config.pad_id)[..., None].astype("float32")
            total = (hidden * real).sum(axis=1)
            return (total / jnp.maximum(real.sum(axis=1), 1)).astype(hidden.dtype)
        end = jnp.argmax(tokens if config.end_id < 0 else tokens == config.end_id, axis=-1)  # [b]
        return jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]

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
        if length < self.config.context_length and not self.config.ignores_padding:
            raise ValueError(
                f"rows of {length} tokens, but this text transformer reads padding as input and "
                f"needs rows of {self.config.context_length}"
            )
        # IDs outside the table read the nearest row; `jnp.take` would return NaN by default.
        embedded = jnp.take(self.token_embedding[...], tokens, axis=0, mode="clip")
        table: jax.Array
        if self.position_embedding is None:
            table = jnp.asarray(sinusoids(self.config.context_length, self.config.width))
            embedded = embedded.astype("float32") * self.config.width**0.5
        else:
            table = self.position_embedding[...]
        placed = table[:length] if positions is None else jnp.take(table, positions, axis=0)
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
        if segment_ids is None and self.config.pad_id >= 0:
            # Padding forms a segment of its own, which no other token attends to.
            segment_ids = (tokens != self.config.pad_id).astype("int32")
        x, _ = apply_stack(self.blocks, x, remat=self.remat, segment_ids=segment_ids)
        return x
