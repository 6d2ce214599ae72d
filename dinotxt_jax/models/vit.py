"""The vision transformer of all families: DINOv2, DINOv3, plain ViTs, CLIP, SigLIP and TIPS.

Sources: `dinov2/models/vision_transformer.py` in facebookresearch/dinov2 (arXiv 2304.07193, and
2309.16588 for register tokens); `dinov3/models/vision_transformer.py` in facebookresearch/dinov3
(arXiv 2508.10104). DINOv3's "storage tokens" are called registers here, and so is the second class
token of TIPS (arXiv 2410.16512). CLIP (arXiv 2103.00020) normalises the embedded tokens; SigLIP
(arXiv 2303.15343, 2502.14786) has no learned class token but pools the patch tokens.

Shapes: b batch, t all tokens (1 class + r registers + n patches), d model width, p patch side,
gh x gw patch grid.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.models.attention_pooling import AttentionPooling
from dinotxt_jax.models.blocks import Block, apply_stack, stack
from dinotxt_jax.models.initialization import Constant, Normal
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, parameter
from dinotxt_jax.models.positions import interpolate_per_image, interpolate_positions
from dinotxt_jax.models.rope import Rotation, make_periods, make_rotation
from dinotxt_jax.sharding import constrain


class VisionOutput(NamedTuple):
    """Tokens after the final LayerNorm: class [b d], registers [b r d], patches [b n d].

    Patches are in row-major order: n = (h / patch_size) * (w / patch_size).
    """

    class_token: jax.Array
    register_tokens: jax.Array
    patch_tokens: jax.Array


class PatchBatch(NamedTuple):
    """Images of different sizes, cut into patches and padded to one length (SigLIP 2 NaFlex).

    Attributes:
        patches: float[b n p*p*3], normalised (uint8 before that); the order within a patch is row,
            column, channel.
        grids: int[b 2], rows and columns of patches in each image. Patch n of an image lies in row
            n // columns; patches from rows * columns on are padding.
    """

    patches: jax.Array | np.ndarray
    grids: jax.Array | np.ndarray

    def valid(self) -> Bool[Array, "b n"]:
        """Returns which patches are no padding."""
        return jnp.arange(self.patches.shape[1]) < jnp.prod(self.grids, axis=1)[:, None]


Images = Float[Array, "b h w 3"] | PatchBatch


class VisionTransformer(nnx.Module):
    """A vision transformer of any family."""

    def __init__(self, config: VisionConfig, *, dtypes: DTypes, attention: str = "xla"):
        self.config = config
        self.dtypes = dtypes
        dim, patch = config.dim, config.patch_size
        self.patch_embed = Dense(
            (patch, patch, 3),
            (dim,),
            ("patch", "patch", "patch", "embed"),
            use_bias=config.patch_bias,
            initializer=Normal(0.02),
            # The patch embedding is never quantized: precision lost here cannot be recovered by
            # later blocks, and this product is a small part of the work.
            dtypes=dataclasses.replace(dtypes, products="none"),
        )
        stored = dtypes.parameters
        pooled = config.attention_pooling
        self.class_token = None if pooled else parameter(Normal(1e-6), (dim,), ("embed",), stored)
        self.register_tokens = (
            parameter(Normal(1e-6), (config.num_registers, dim), ("positions", "embed"), stored)
            if config.num_registers
            else None
        )
        self.mask_token = (
            parameter(Normal(1e-6), (dim,), ("embed",), stored) if config.mask_token else None
        )
        rope = config.positions == "rope"
        self.position_embedding = (
            None
            if rope
            else parameter(
                Normal(0.02),
                (config.class_position + config.position_grid**2, dim),
                ("positions", "embed"),
                stored,
            )
        )
        # Periods stay in float32: rounding them to a narrower dtype would shift every patch.
        periods = make_periods(config.rope_theta, dim // config.num_heads)
        self.rope_periods = (
            parameter(Constant(tuple(periods.tolist())), periods.shape, ("positions",), "float32")
            if rope
            else None
        )
        self.pre_norm = (
            LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes) if config.pre_norm else None
        )
        self.blocks = stack(Block(config.block(attention), dtypes=dtypes), config.depth)
        self.norm = LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes)
        self.local_class_norm = (
            LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes)
            if config.local_class_norm
            else None
        )
        # A small part of the work as well: its kernels are not quantized either.
        exact = dataclasses.replace(dtypes, products="none")
        self.pooling = AttentionPooling(config.block(), dtypes=exact) if pooled else None

    def __call__(self, images: Images) -> VisionOutput:
        """Returns class, register and patch tokens for normalised images.

        Raises:
            ValueError: height or width is not a multiple of the patch size.
        """
        return self.split_tokens(self.tokens(images))

    def tokens(self, images: Images, mixing: str = "plain") -> Float[Array, "b t d"]:
        """Returns all tokens [class, registers, patches] after the final LayerNorm.

        Args:
            images: normalised images; tokens of padding in a `PatchBatch` are arbitrary.
            mixing: how the last block mixes tokens (`blocks.MIXINGS`).
        """
        segments = None
        if isinstance(images, PatchBatch):
            # Padding forms a segment of its own, which no patch attends to.
            learned = ((0, 0), (self.config.num_learned_tokens, 0))
            segments = jnp.pad(images.valid().astype("int32"), learned, constant_values=1)
        x, _ = apply_stack(
            self.blocks,
            self.embed(images),
            rotation=self.rotation(images),
            segment_ids=segments,
            last_mixing=mixing,
        )
        x = self.norm(x)
        return self._with_class_token(x, x, images)

    def _with_class_token(
        self, normed: Float[Array, "b n d"], tokens: Float[Array, "b n d"], images: Images
    ) -> Float[Array, "b t d"]:
        """Puts the class token, pooled from `normed`, in front of tokens that have none."""
        if self.pooling is None:
            return tokens
        valid = images.valid() if isinstance(images, PatchBatch) else None
        return jnp.concatenate([self.pooling(normed, valid)[:, None], tokens], axis=1)

    def intermediate_layers(
        self,
        images: Float[Array, "b h w 3"],
        layers: tuple[int, ...],
        normalize: bool = True,
        as_grid: bool = False,
    ) -> list[VisionOutput]:
        """Returns the tokens after each requested block.

        Args:
            images: normalised images.
            layers: block indices from 0, without duplicates.
            normalize: apply the final LayerNorm to each output.
            as_grid: return patch tokens as [b gh gw d] instead of [b n d].
        """
        x, rotation = self.embed(images), self.rotation(images)
        _, layer_outputs = apply_stack(self.blocks, x, rotation=rotation, keep=layers)
        outputs = []
        for x in layer_outputs:
            normed = self.norm(x)  # which attention pooling needs in any case
            tokens = self._with_class_token(normed, normed if normalize else x, images)
            outputs.append(self.split_tokens(tokens))
        if not as_grid:
            return outputs
        return [
            out._replace(
                patch_tokens=out.patch_tokens.reshape(
                    len(images), *self.grid(images), self.config.dim
                )
            )
            for out in outputs
        ]

    def split_tokens(self, tokens: Float[Array, "b t d"]) -> VisionOutput:
        """Splits [class, registers, patches] into a `VisionOutput`."""
        first = 1 + self.config.num_registers
        return VisionOutput(tokens[:, 0], tokens[:, 1:first], tokens[:, first:])

    def embed(self, images: Images) -> Float[Array, "b t d"]:
        """Returns the first block's input: the embedded tokens [class, registers, patches].

        Position embeddings, if the model has them, are added to the patches and (with
        `class_position`) to the class token; registers have no position.
        """
        # [b n p p 3] -> [b n d]: the convolution with stride p as one matrix product.
        x = self.patch_embed(constrain(self._patches(images), "batch", "tokens", None, None, None))
        class_token = None if self.class_token is None else self.class_token[...][None]
        if self.position_embedding is not None:
            table = self.position_embedding[...].astype("float32")
            # The table is [class_rows + g g, d]; row 0 belongs to the class token if it has one.
            class_rows = int(self.config.class_position)
            x = x + self._positions(table[class_rows:], images).astype(x.dtype)
            if class_token is not None and class_rows:
                class_token = class_token.astype(x.dtype) + table[:1].astype(x.dtype)

        def repeated(tokens: Float[Array, "r d"]) -> Float[Array, "b r d"]:
            return jnp.broadcast_to(tokens.astype(x.dtype), (len(x), *tokens.shape))

        learned = [] if class_token is None else [repeated(class_token)]
        if self.register_tokens is not None:
            learned.append(repeated(self.register_tokens[...]))
        x = jnp.concatenate([*learned, x], axis=1)
        return x if self.pre_norm is None else self.pre_norm(x)

    def _patches(self, images: Images) -> Float[Array, "b n p p 3"]:
        """Cuts images into patches, row by row."""
        patch = self.config.patch_size
        if isinstance(images, PatchBatch):
            shape = (*images.patches.shape[:2], patch, patch, 3)
            return jnp.asarray(images.patches).reshape(shape)
        rows, columns = self.grid(images)
        return einops.rearrange(
            images[:, : rows * patch, : columns * patch],
            "b (gh ph) (gw pw) c -> b (gh gw) ph pw c",
            ph=patch,
            pw=patch,
        )

    def _positions(self, table: Float[Array, "gg d"], images: Images) -> Float[Array, "..."]:
        """Returns position embeddings for the patches: [n d], or [b n d] for a `PatchBatch`."""
        if isinstance(images, PatchBatch):
            grids, length = jnp.asarray(images.grids), images.patches.shape[1]
            return interpolate_per_image(table, grids, length)
        return interpolate_positions(table, self.grid(images), self.config.position_interpolation)

    def grid(self, images: Float[Array, "b h w 3"]) -> tuple[int, int]:
        """Returns the number of rows and columns of patches.

        Raises:
            ValueError: height or width is smaller than a patch or, for models without rotary
                positions, not a multiple of the patch size. Models with rotary positions crop the
                remainder, as DINOv3 does.
        """
        patch = self.config.patch_size
        height, width = images.shape[1:3]
        remainder = height % patch or width % patch
        if min(height, width) < patch or (remainder and self.config.positions != "rope"):
            raise ValueError(
                f"an image of {height}x{width} pixels does not consist of {patch}x{patch} patches; "
                f"resize it to multiples of {patch}"
            )
        return height // patch, width // patch

    def rotation(self, images: Images) -> Rotation | None:
        """Returns rotary positions for all tokens, or None for models without RoPE."""
        if self.rope_periods is None:
            return None
        if isinstance(images, PatchBatch):
            raise ValueError("images of different sizes need learned positions, not rotary ones")
        periods = self.rope_periods[...]
        return make_rotation(periods, self.grid(images), self.config.num_learned_tokens)
