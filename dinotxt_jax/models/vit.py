"""The vision transformer of DINOv2; with LayerScale off also the plain ViT of timm.

Source: `dinov2/models/vision_transformer.py` of facebookresearch/dinov2; arXiv 2304.07193 and,
for register tokens, arXiv 2309.16588.
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

from dinotxt_jax.models.blocks import Block, BlockConfig, apply_stack, stack
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, normal, parameter
from dinotxt_jax.sharding import constrain


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Architecture of a vision transformer.

    Attributes:
        patch_size: side of a square patch, pixels.
        dim, depth, num_heads: width, number of blocks, attention heads.
        mlp, mlp_hidden_dim: "mlp" or "swiglu", and the hidden width.
        num_registers: register tokens between the class token and the patch tokens.
        position_grid: side of the stored table of positions, in patches.
        position_interpolation: how the table is brought to another grid (`interpolate_positions`).
        layer_scale: whether branches are scaled per channel.
        qkv_bias: whether the query/key/value projection has a bias.
        layer_norm_epsilon: added to the variance.
        mask_token: whether the checkpoint carries DINOv2's mask token (kept, never used here).
    """

    patch_size: int
    dim: int
    depth: int
    num_heads: int
    mlp_hidden_dim: int
    mlp: str = "mlp"
    num_registers: int = 0
    position_grid: int = 37
    position_interpolation: str = "antialias"
    layer_scale: bool = True
    qkv_bias: bool = True
    layer_norm_epsilon: float = 1e-6
    mask_token: bool = True

    def block(self) -> BlockConfig:
        """The configuration of one block."""
        return BlockConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            mlp_hidden_dim=self.mlp_hidden_dim,
            mlp=self.mlp,
            qkv_bias=self.qkv_bias,
            layer_scale=1e-5 if self.layer_scale else None,
            layer_norm_epsilon=self.layer_norm_epsilon,
        )


class VisionOutput(NamedTuple):
    """Tokens after the final LayerNorm: class [b d], registers [b r d], patches [b n d].

    Patches are in row-major order: n = (h / patch_size) * (w / patch_size).
    """

    class_token: jax.Array
    register_tokens: jax.Array
    patch_tokens: jax.Array


class VisionTransformer(nnx.Module):
    """A DINOv2 (or plain) vision transformer."""

    def __init__(self, config: VisionConfig, *, dtypes: DTypes, rngs: nnx.Rngs):
        self.config = config
        self.dtypes = dtypes
        dim, patch = config.dim, config.patch_size
        self.patch_embed = Dense(
            (patch, patch, 3),
            (dim,),
            ("patch", "patch", "patch", "embed"),
            use_bias=True,
            initializer=jax.nn.initializers.truncated_normal(0.02),
            dtypes=dtypes,
            rngs=rngs,
        )
        self.class_token = parameter(rngs, normal(1e-6), (dim,), ("embed",), dtypes)
        self.register_tokens = (
            parameter(
                rngs, normal(1e-6), (config.num_registers, dim), ("positions", "embed"), dtypes
            )
            if config.num_registers
            else None
        )
        self.mask_token = (
            parameter(rngs, normal(1e-6), (dim,), ("embed",), dtypes) if config.mask_token else None
        )
        self.position_embedding = parameter(
            rngs,
            jax.nn.initializers.truncated_normal(0.02),
            (1 + config.position_grid**2, dim),
            ("positions", "embed"),
            dtypes,
        )
        self.blocks = stack(
            lambda rngs: Block(config.block(), dtypes=dtypes, rngs=rngs), config.depth, rngs
        )
        self.norm = LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes, rngs=rngs)

    def __call__(self, images: Float[Array, "b h w 3"]) -> VisionOutput:
        """Class, register and patch tokens of normalised images.

        Raises:
            ValueError: height or width is not a multiple of the patch size.
        """
        return self.split_tokens(self.tokens(images))

    def tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """All tokens [class, registers, patches] after the final LayerNorm."""
        x, _ = apply_stack(self.blocks, self.embed(images))
        return self.norm(x)

    def hidden_tokens(self, images: Float[Array, "b h w 3"]) -> Float[Array, "l b t d"]:
        """All tokens after every block, before the final LayerNorm."""
        _, layers = apply_stack(self.blocks, self.embed(images), keep_layers=True)
        assert layers is not None
        return layers

    def split_tokens(self, tokens: Float[Array, "b t d"]) -> VisionOutput:
        """[class, registers, patches] taken apart."""
        first = 1 + self.config.num_registers
        return VisionOutput(tokens[:, 0], tokens[:, 1:first], tokens[:, first:])

    def embed(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b t d"]:
        """What enters the first block: patches and class token with positions, and registers."""
        patch = self.config.patch_size
        batch, height, width, _ = images.shape
        if height % patch or width % patch:
            raise ValueError(
                f"an image of {height}x{width} pixels does not consist of {patch}x{patch} patches; "
                f"resize it to multiples of {patch}"
            )
        patches = einops.rearrange(
            images, "b (gh ph) (gw pw) c -> b (gh gw) ph pw c", ph=patch, pw=patch
        )
        x = self.patch_embed(constrain(patches, "batch", "tokens", None, None, None))
        positions = interpolate_positions(
            self.position_embedding[...].astype("float32"),
            (height // patch, width // patch),
            self.config.position_interpolation,
        ).astype(x.dtype)

        def repeated(tokens: Float[Array, "r d"]) -> Float[Array, "b r d"]:
            return jnp.broadcast_to(tokens.astype(x.dtype), (batch, *tokens.shape))

        parts = [repeated(self.class_token[...][None] + positions[:1]), x + positions[1:]]
        if self.register_tokens is not None:
            parts.insert(1, repeated(self.register_tokens[...]))
        return jnp.concatenate(parts, axis=1)


def interpolate_positions(
    table: Float[Array, "1+g*g d"], grid: tuple[int, int], rule: str
) -> Float[Array, "1+n d"]:
    """Position embeddings for a grid of patches, the class token's first.

    Args:
        table: the stored positions of a square grid, float32.
        grid: rows and columns of patches wanted. A square grid of the stored size takes the table
            as it is; everything else is interpolated.
        rule: "antialias": Keys cubic a = -0.5, antialiased, to the size (DINOv2 with registers,
            timm); "offset": cubic a = -0.75, not antialiased, edges clamped, by the scale
            (n + 0.1) / g (DINOv2 without registers, whose 0.1 guarded against rounding).

    Raises:
        ValueError: unknown rule.
    """
    stored = round((table.shape[0] - 1) ** 0.5)
    if grid == (stored, stored):
        return table
    square = table[1:].reshape(stored, stored, -1)
    if rule == "antialias":
        resized = jax.image.resize(square, (*grid, square.shape[-1]), "cubic", antialias=True)
    elif rule == "offset":
        rows, columns = (_offset_cubic_weights(stored, n) for n in grid)
        resized = jnp.einsum("in,jm,nmd->ijd", rows, columns, square, precision="highest")
    else:
        raise ValueError(f"position interpolation {rule!r} is neither 'antialias' nor 'offset'")
    return jnp.concatenate([table[:1], resized.reshape(-1, square.shape[-1])])


def _offset_cubic_weights(stored: int, new: int) -> Float[np.ndarray, "n g"]:
    """Weights of PyTorch's bicubic resampling, with DINOv2's scale of (new + 0.1) / stored."""
    a = -0.75
    centres = (np.arange(new) + 0.5) * stored / (new + 0.1) - 0.5
    first = np.floor(centres).astype(int) - 1
    weights = np.zeros((new, stored))
    for tap in range(4):
        distance = np.abs(centres - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        index = np.clip(first + tap, 0, stored - 1)
        np.add.at(weights, (np.arange(new), index), np.where(distance <= 1, near, far))
    return weights.astype(np.float32)
