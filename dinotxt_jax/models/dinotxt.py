"""dino.txt: a frozen vision transformer, a trainable head on it, and a text transformer.

Source: `dinov2/hub/dinotxt.py` and `dinov2/eval/text/` of facebookresearch/dinov2;
arXiv 2412.16334.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dinotxt_jax.config.architecture import (
    POOLINGS,
    BlockConfig,
    DinoTxtConfig,
    HeadConfig,
)
from dinotxt_jax.models.blocks import Block, apply_stack, stack
from dinotxt_jax.models.drop_path import DropPath
from dinotxt_jax.models.initialization import Constant
from dinotxt_jax.models.layers import DTypes, LayerNorm, parameter
from dinotxt_jax.models.text import Packing, TextTransformer
from dinotxt_jax.models.vit import VisionTransformer

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


class VisionHead(nnx.Module):
    """Blocks and a LayerNorm on top of all tokens of the backbone; without blocks, neither."""

    def __init__(
        self,
        config: HeadConfig,
        dim: int,
        *,
        dtypes: DTypes,
        drop_path: float = 0.0,
        remat: str = "none",
        attention: str = "xla",
    ):
        block = BlockConfig(
            dim=dim,
            num_heads=config.num_heads,
            mlp_hidden_dim=config.mlp_hidden_dim,
            mlp="swiglu",
            qkv_bias=False,
            layer_scale=config.layer_scale,
            drop_path=drop_path,
            layer_norm_epsilon=config.layer_norm_epsilon,
            attention=attention,
        )
        self.dtypes = dtypes
        self.remat = remat
        self.num_blocks = config.num_blocks
        if not config.num_blocks:
            return
        self.blocks = stack(Block(block, dtypes=dtypes), config.num_blocks)
        self.norm = LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes)

    def __call__(
        self, tokens: Float[Array, "b t d"], drop: DropPath | None = None
    ) -> Float[Array, "b t d"]:
        """The head's tokens; `drop` turns drop path on."""
        if not self.num_blocks:
            return tokens
        x = tokens.astype(self.dtypes.compute)
        x, _ = apply_stack(self.blocks, x, drop=drop, remat=self.remat)
        return self.norm(x)


class ImageFeatures(NamedTuple):
    """What the head makes of an image: class token [b d], patch tokens [b n d]."""

    class_token: jax.Array
    patch_tokens: jax.Array


class DinoTxt(nnx.Module):
    """Image descriptors [class token; pooled patch tokens] and text features, comparable by cosine.

    With a head of no blocks and the pooling "none" this is LiT (arXiv 2111.07991): a locked image
    tower whose class token alone is compared.

    Sub-modules, and so the names at the top of every tree of arrays: `backbone` (frozen), `head`,
    `text` and `logit_scale` (trained).
    """

    def __init__(
        self,
        config: DinoTxtConfig,
        *,
        dtypes: DTypes,
        frozen_dtypes: DTypes | None = None,
        drop_path: float = 0.0,
        remat: str = "none",
        attention: str = "xla",
    ):
        """Args:
        config: architecture.
        dtypes: precisions of what is trained.
        frozen_dtypes: precisions of the backbone; `dtypes` if not given.
        drop_path: of the head's blocks, in training.
        remat: what the backward pass recomputes (`blocks.apply_stack`).
        attention: how attention is computed (`models.attention`).
        """
        self.config = config
        common: dict[str, Any] = dict(attention=attention)
        trained = common | dict(dtypes=dtypes, remat=remat)
        self.backbone = VisionTransformer(config.vision, dtypes=frozen_dtypes or dtypes, **common)
        self.head = VisionHead(config.head, config.vision.dim, drop_path=drop_path, **trained)
        self.text = TextTransformer(config.text, **trained)
        # At least float32: between 2 and 4 bfloat16 has steps of 1/64, and updates of the scale
        # are smaller than that.
        dtype = jnp.promote_types(dtypes.parameters, "float32").name
        self.logit_scale = parameter(Constant(INITIAL_LOGIT_SCALE), (), (), dtype)

    def encode_image(
        self, images: Float[Array, "b h w 3"], normalize: bool = False
    ) -> Float[Array, "b D"]:
        """The descriptor of normalised images, D = 2 d."""
        return self.describe_tokens(self.backbone.tokens(images), normalize)

    def encode_patches(self, images: Float[Array, "b h w 3"]) -> ImageFeatures:
        """The head's class token [b d] and patch tokens as a grid [b gh gw d]."""
        features = self.encode_tokens(self.backbone.tokens(images))
        patches = features.patch_tokens
        grid = self.backbone.grid(images)
        return ImageFeatures(
            features.class_token, patches.reshape(patches.shape[0], *grid, patches.shape[-1])
        )

    def encode_tokens(
        self, tokens: Float[Array, "b t d"], drop: DropPath | None = None
    ) -> ImageFeatures:
        """The head on [class, registers, patches] of the backbone; `drop` turns drop path on."""
        head = self.head(tokens, drop)
        return ImageFeatures(head[:, 0], head[:, 1 + self.config.vision.num_registers :])

    def describe_tokens(
        self, tokens: Float[Array, "b t d"], normalize: bool = False
    ) -> Float[Array, "b D"]:
        """The descriptor of images whose backbone tokens are at hand."""
        descriptor = self.descriptor(self.encode_tokens(tokens))
        return normalized(descriptor) if normalize else descriptor

    def descriptor(self, features: ImageFeatures) -> Float[Array, "b D"]:
        """[class token; pooled patch tokens], in float32 or wider, not normalised."""
        class_token = wide(features.class_token)
        if self.config.head.pooling == "none":
            return class_token
        pooled = pool(wide(features.patch_tokens), self.config.head.pooling)
        return jnp.concatenate([class_token, pooled], axis=-1)

    def encode_text(
        self,
        tokens: Int[Array, "*p r l"],
        normalize: bool = False,
        packing: Packing | None = None,
    ) -> Float[Array, "b D"]:
        """Features of token rows, one text each or packed (`TextTransformer`).

        They are in float32 or wider.
        """
        features = wide(self.text(tokens, packing))
        return normalized(features) if normalize else features


def pool(patches: Float[Array, "b n d"], pooling: str) -> Float[Array, "b d"]:
    """Patch tokens to one vector: "mean", "max", or "gem" (generalised mean, p = 3)."""
    if pooling == "mean":
        return patches.mean(axis=1)
    if pooling == "max":
        return patches.max(axis=1)
    if pooling == "gem":
        return jnp.cbrt((jnp.maximum(patches, 1e-6) ** 3).mean(axis=1))
    raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")


def wide(features: Float[Array, "..."]) -> Float[Array, "..."]:
    """Features in float32, or in their own dtype where that is wider (float64)."""
    return features.astype(jnp.promote_types(features.dtype, "float32"))


def normalized(features: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """Each row divided by its L2 norm (at least 1e-12), in float32 or wider."""
    rows = wide(features)
    norm = jnp.sqrt(jnp.sum(jnp.square(rows), axis=-1, keepdims=True))
    return rows / jnp.maximum(norm, 1e-12)
