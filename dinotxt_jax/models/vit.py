"""The DINOv2 and DINOv3 vision transformer, and timm's plain ViT when LayerScale is off.

Sources: `dinov2/models/vision_transformer.py` in facebookresearch/dinov2 (arXiv 2304.07193, and
2309.16588 for register tokens); `dinov3/models/vision_transformer.py` in facebookresearch/dinov3
(arXiv 2508.10104). DINOv3's "storage tokens" are called registers here.

Shapes: b batch, t all tokens (1 class + r registers + n patches), d model width, gh x gw patch
grid.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.models.blocks import Block, apply_stack, stack
from dinotxt_jax.models.initialization import Constant, Normal
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, parameter
from dinotxt_jax.models.positions import interpolate_positions
from dinotxt_jax.models.rope import Rotation, make_periods, make_rotation
from dinotxt_jax.sharding import constrain


class VisionOutput(NamedTuple):
    """Tokens after the final LayerNorm: class [b d], registers [b r d], patches [b n d].

    Patches are in row-major order: n = (h / patch_size) * (w / patch_size).
    """

    class_token: jax.Array
    register_tokens: jax.Array
    patch_tokens: jax.Array


class VisionTransformer(nnx.Module):
    """A DINOv2, DINOv3 or plain vision transformer."""

    def __init__(self, config: VisionConfig, *, dtypes: DTypes, attention: str = "xla"):
        self.config = config
        self.dtypes = dtypes
        dim, patch = config.dim, config.patch_size
        self.patch_embed = Dense(
            (patch, patch, 3),
            (dim,),
            ("patch", "patch", "patch", "embed"),
            use_bias=True,
            initializer=Normal(0.02),
            # The patch embedding is never quantized: precision lost here cannot be recovered by
            # later blocks, and this product is a small part of the work.
            dtypes=dataclasses.replace(dtypes, products="none"),
        )
        stored = dtypes.parameters
        self.class_token = parameter(Normal(1e-6), (dim,), ("embed",), stored)
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
        self.blocks = stack(Block(config.block(attention), dtypes=dtypes), config.depth)
        self.norm = LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes)
        self.local_class_norm = (
            LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes)
            if config.local_class_norm
            else None
        )

    def __call__(self, images: Float[Array, "b h w 3"]) -> VisionOutput:
        """Returns class, register and patch tokens for normalised images.

        Raises:
            ValueError: height or width is not a multiple of the patch size.
        """
        return self.split_tokens(self.tokens(images))

    def tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Returns all tokens [class, registers, patches] after the final LayerNorm."""
        x, _ = apply_stack(self.blocks, self.embed(images), rotation=self.rotation(images))
        return self.norm(x)

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
        outputs = [self.split_tokens(self.norm(x) if normalize else x) for x in layer_outputs]
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

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """Returns the first block's input: the embedded tokens [class, registers, patches].

        Position embeddings, if the model has them, are added to the patches and (with
        `class_position`) to the class token; registers have no position.
        """
        patch = self.config.patch_size
        rows, columns = self.grid(images)
        patches = einops.rearrange(
            images[:, : rows * patch, : columns * patch],
            "b (gh ph) (gw pw) c -> b (gh gw) ph pw c",
            ph=patch,
            pw=patch,
        )
        # [b n patch patch 3] -> [b n d]: the stride-`patch` convolution as one matrix product.
        x = self.patch_embed(constrain(patches, "batch", "tokens", None, None, None))
        first = self.class_token[...][None]
        if self.position_embedding is not None:
            table = self.position_embedding[...].astype("float32")
            # The table is [class_rows + g g, d]; row 0 belongs to the class token if it has one.
            class_rows = int(self.config.class_position)
            positions = interpolate_positions(
                table[class_rows:], (rows, columns), self.config.position_interpolation
            )
            x = x + positions.astype(x.dtype)
            if class_rows:
                first = first.astype(x.dtype) + table[:1].astype(x.dtype)

        def repeated(tokens: Float[Array, "r d"]) -> Float[Array, "b r d"]:
            return jnp.broadcast_to(tokens.astype(x.dtype), (len(images), *tokens.shape))

        registers = () if self.register_tokens is None else (repeated(self.register_tokens[...]),)
        return jnp.concatenate([repeated(first), *registers, x], axis=1)

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

    def rotation(self, images: Float[Array, "b h w 3"]) -> Rotation | None:
        """Returns rotary positions for all tokens, or None for models without RoPE."""
        if self.rope_periods is None:
            return None
        return make_rotation(
            self.rope_periods[...], self.grid(images), 1 + self.config.num_registers
        )
