"""The vision transformer of DINOv2 and DINOv3; with LayerScale off also the plain ViT of timm.

Sources: `dinov2/models/vision_transformer.py` of facebookresearch/dinov2 (arXiv 2304.07193, and
2309.16588 for register tokens); `dinov3/models/vision_transformer.py` of facebookresearch/dinov3
(arXiv 2508.10104), whose "storage tokens" are called registers here.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import einops
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dinotxt_jax.config.architecture import POSITION_INTERPOLATIONS, VisionConfig
from dinotxt_jax.models.blocks import Block, apply_stack, stack
from dinotxt_jax.models.initialization import Constant, Normal
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, parameter
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
            # What it loses no block can give back, and it is a small part of the work.
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
        # Periods are never rounded to the dtype of other arrays: it would move every patch.
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
        """Class, register and patch tokens of normalised images.

        Raises:
            ValueError: height or width is not a multiple of the patch size.
        """
        return self.split_tokens(self.tokens(images))

    def tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """All tokens [class, registers, patches] after the final LayerNorm."""
        x, _ = apply_stack(self.blocks, self.embed(images), rotation=self.rotation(images))
        return self.norm(x)

    def intermediate_layers(
        self,
        images: Float[Array, "b h w 3"],
        layers: tuple[int, ...],
        normalize: bool = True,
        as_grid: bool = False,
    ) -> list[VisionOutput]:
        """Tokens after some blocks.

        Args:
            images: normalised.
            layers: numbers of blocks from 0, each once.
            normalize: apply the final LayerNorm to them.
            as_grid: patch tokens as [b gh gw d] instead of [b n d].
        """
        x, rotation = self.embed(images), self.rotation(images)
        _, kept = apply_stack(self.blocks, x, rotation=rotation, keep=layers)
        outputs = [self.split_tokens(self.norm(x) if normalize else x) for x in kept]
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
        """[class, registers, patches] taken apart."""
        first = 1 + self.config.num_registers
        return VisionOutput(tokens[:, 0], tokens[:, 1:first], tokens[:, first:])

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """What enters the first block: patches and class token with positions, and registers."""
        patch = self.config.patch_size
        rows, columns = self.grid(images)
        patches = einops.rearrange(
            images[:, : rows * patch, : columns * patch],
            "b (gh ph) (gw pw) c -> b (gh gw) ph pw c",
            ph=patch,
            pw=patch,
        )
        x = self.patch_embed(constrain(patches, "batch", "tokens", None, None, None))
        first = self.class_token[...][None]
        if self.position_embedding is not None:
            table = self.position_embedding[...].astype("float32")
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
        """Rows and columns of patches.

        Raises:
            ValueError: height or width is not a multiple of the patch size, or, for models with
                rotary positions (which leave out a remainder, as DINOv3 does), less than a patch.
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
        """Rotary positions of all tokens, for models that have them."""
        if self.rope_periods is None:
            return None
        return make_rotation(
            self.rope_periods[...], self.grid(images), 1 + self.config.num_registers
        )


def interpolate_positions(
    table: Float[Array, "gg d"], grid: tuple[int, int], rule: str
) -> Float[Array, "n d"]:
    """Position embeddings for a grid of patches.

    Args:
        table: the stored positions of a square grid, float32.
        grid: rows and columns of patches wanted. A square grid of the stored size takes the table
            as it is; everything else is interpolated.
        rule: "antialias": Keys cubic a = -0.5, antialiased, to the size (DINOv2 with registers,
            timm); "bicubic": a = -0.75, not antialiased, edges clamped, to the size (Dinov2 of
            transformers); "offset": as that, but by the scale (n + 0.1) / g (official DINOv2
            without registers, whose 0.1 guarded against rounding).

    Raises:
        ValueError: unknown rule.
    """
    stored = round(table.shape[0] ** 0.5)
    if grid == (stored, stored):
        return table
    square = table.reshape(stored, stored, -1)
    if rule == "antialias":
        resized = jax.image.resize(square, (*grid, square.shape[-1]), "cubic", antialias=True)
    elif rule in _SCALE_OFFSETS:
        rows, columns = (cubic_weights(stored, n, _SCALE_OFFSETS[rule]) for n in grid)
        resized = jnp.einsum("in,jm,nmd->ijd", rows, columns, square, precision="highest")
    else:
        raise ValueError(
            f"position interpolation {rule!r} is none of {', '.join(POSITION_INTERPOLATIONS)}"
        )
    return resized.reshape(-1, square.shape[-1])


_SCALE_OFFSETS = {"bicubic": 0.0, "offset": 0.1}


def cubic_weights(stored: int, new: int, offset: float = 0.0) -> Float[np.ndarray, "n g"]:
    """Weights of PyTorch's bicubic resampling with the scale (new + offset) / stored."""
    a = -0.75
    centres = (np.arange(new) + 0.5) * stored / (new + offset) - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new, stored))
    for tap in range(4):
        distance = np.abs(centres - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        index = np.clip(first + tap, 0, stored - 1)
        np.add.at(weights, (np.arange(new), index), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)
