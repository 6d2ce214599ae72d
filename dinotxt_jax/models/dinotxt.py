"""A vision transformer with a head, and a text transformer in the same space.

In dino.txt the vision transformer is frozen and the head is trained. CLIP's head is a projection;
SigLIP and TIPS have none.

Source: `dinov2/hub/dinotxt.py` and `dinov2/eval/text/` in facebookresearch/dinov2;
arXiv 2412.16334.

Shapes: b batch, t all tokens, n patch tokens, d backbone width, D descriptor width.
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
from dinotxt_jax.models.initialization import Constant, Normal
from dinotxt_jax.models.layers import Dense, DTypes, LayerNorm, parameter
from dinotxt_jax.models.text import Packing, TextTransformer
from dinotxt_jax.models.vit import Images, PatchBatch, VisionTransformer

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)
INITIAL_LOGIT_BIAS = -10.0  # SigLIP: arXiv 2303.15343, section 3.2


class VisionHead(nnx.Module):
    """Transformer blocks and a LayerNorm over all backbone tokens, and a projection; each optional.

    A head with neither blocks nor projection is the identity.
    """

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
        self.projection = (
            Dense(
                (dim,),
                (config.projection,),
                ("embed", "projection"),
                use_bias=False,
                initializer=Normal(dim**-0.5),
                dtypes=dtypes,
            )
            if config.projection
            else None
        )
        if not config.num_blocks:
            return
        self.blocks = stack(Block(block, dtypes=dtypes), config.num_blocks)
        self.norm = LayerNorm(dim, config.layer_norm_epsilon, dtypes=dtypes)

    def __call__(
        self, tokens: Float[Array, "b t d"], drop: DropPath | None = None
    ) -> Float[Array, "b t e"]:
        """Returns the head's tokens, e = d without a projection; `drop` enables drop path."""
        x = tokens
        if self.num_blocks:
            x = x.astype(self.dtypes.compute)
            x, _ = apply_stack(self.blocks, x, drop=drop, remat=self.remat)
            x = self.norm(x)
        return x if self.projection is None else self.projection(x)


class DenseKind(NamedTuple):
    """How patch tokens are made that can be compared with texts.

    Attributes:
        mixing: how the last block of the backbone mixes tokens (`blocks.MIXINGS`).
        pools_each: each patch token passes through the attention pooling head alone (SigLIP).
        through_head: tokens pass through the model's head.
    """

    mixing: str = "plain"
    pools_each: bool = False
    through_head: bool = True


DENSE_FEATURES = {
    "plain": DenseKind(),
    "backbone": DenseKind(through_head=False),
    "value": DenseKind("value"),
    "csa": DenseKind("csa"),
    "kk": DenseKind("kk"),
    "map_values": DenseKind(pools_each=True),
    "map_values_csa": DenseKind("csa", pools_each=True),
}
"""Kinds of patch tokens by name. "plain" and "backbone" differ only in models with a head."""


class ImageFeatures(NamedTuple):
    """Head outputs for a batch: class token [b d], patch tokens [b n d]."""

    class_token: jax.Array
    patch_tokens: jax.Array


class DinoTxt(nnx.Module):
    """Computes image descriptors and text features that are compared by cosine similarity.

    An image descriptor is [class token; pooled patch tokens]. With a 0-block head and pooling
    "none" this is LiT (arXiv 2111.07991): a locked image tower that is compared by the class token
    alone. With another backbone, head and text transformer it is CLIP, SigLIP or TIPS.

    The sub-module names are the top-level keys in every array tree: `backbone` (frozen), and
    `head`, `text`, `logit_scale` and (SigLIP) `logit_bias`.
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
        dtypes: precisions of the trained modules.
        frozen_dtypes: precisions of the backbone; defaults to `dtypes`.
        drop_path: drop rate of the head's blocks in training.
        remat: rematerialization policy for the backward pass (`blocks.apply_stack`).
        attention: implementation of attention (`models.attention`).
        """
        self.config = config
        common: dict[str, Any] = dict(attention=attention)
        trained = common | dict(dtypes=dtypes, remat=remat)
        self.backbone = VisionTransformer(config.vision, dtypes=frozen_dtypes or dtypes, **common)
        self.head = VisionHead(config.head, config.vision.dim, drop_path=drop_path, **trained)
        self.text = TextTransformer(config.text, **trained)
        # At least float32: bfloat16 has a spacing of 1/64 between 2 and 4, and updates to the
        # scale are smaller than that.
        dtype = jnp.promote_types(dtypes.parameters, "float32").name
        self.logit_scale = parameter(Constant(INITIAL_LOGIT_SCALE), (), (), dtype)
        self.logit_bias = (
            parameter(Constant(INITIAL_LOGIT_BIAS), (), (), dtype) if config.logit_bias else None
        )

    def encode_image(self, images: Images, normalize: bool = False) -> Float[Array, "b D"]:
        """Returns descriptors for normalised images; D = 2 d, or d with pooling "none".

        Raises:
            ValueError: images have different sizes, which this model cannot mix.
        """
        if isinstance(images, PatchBatch) and not self.config.mixes_sizes:
            raise ValueError("this model cannot mix images of different sizes in a batch")
        return self.describe_tokens(self.backbone.tokens(images), normalize)

    def encode_patches(
        self, images: Float[Array, "b h w 3"], features: str = "plain"
    ) -> ImageFeatures:
        """Returns the class token [b d] and the patch tokens as a grid [b gh gw d].

        Args:
            images: normalised images.
            features: a key of `DENSE_FEATURES`.
        """
        kind = DENSE_FEATURES[features]
        tokens = self.backbone.tokens(images, kind.mixing)
        if kind.pools_each:
            if self.backbone.pooling is None:
                raise ValueError(f"{features} needs a backbone with an attention pooling head")
            first = 1 + self.config.vision.num_registers
            pooled = self.backbone.pooling.each(tokens[:, first:])
            tokens = jnp.concatenate([tokens[:, :first], pooled], axis=1)
        encoded = self.encode_tokens(tokens) if kind.through_head else self.split(tokens)
        patches = encoded.patch_tokens
        grid = self.backbone.grid(images)
        return ImageFeatures(
            encoded.class_token, patches.reshape(patches.shape[0], *grid, patches.shape[-1])
        )

    def encode_tokens(
        self, tokens: Float[Array, "b t d"], drop: DropPath | None = None
    ) -> ImageFeatures:
        """Applies the head to backbone tokens [class, registers, patches].

        `drop` enables drop path. The head sees the registers, but its outputs for them are dropped.
        """
        return self.split(self.head(tokens, drop))

    def split(self, tokens: Float[Array, "b t d"]) -> ImageFeatures:
        """Returns the class token and the patch tokens; registers are dropped."""
        return ImageFeatures(tokens[:, 0], tokens[:, 1 + self.config.vision.num_registers :])

    def describe_tokens(
        self, tokens: Float[Array, "b t d"], normalize: bool = False
    ) -> Float[Array, "b D"]:
        """Returns image descriptors computed from backbone tokens."""
        descriptor = self.descriptor(self.encode_tokens(tokens))
        return normalized(descriptor) if normalize else descriptor

    def descriptor(self, features: ImageFeatures) -> Float[Array, "b D"]:
        """Returns [class token; pooled patch tokens] in float32 or wider, not normalised."""
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
        """Returns text features in float32 or wider.

        A token row contains one text, or several with `packing` (`TextTransformer`).
        """
        features = wide(self.text(tokens, packing))
        return normalized(features) if normalize else features


def pool(patches: Float[Array, "b n d"], pooling: str) -> Float[Array, "b d"]:
    """Pools patch tokens into one vector: "mean", "max", or "gem" (generalised mean, p = 3)."""
    if pooling == "mean":
        return patches.mean(axis=1)
    if pooling == "max":
        return patches.max(axis=1)
    if pooling == "gem":
        return jnp.cbrt((jnp.maximum(patches, 1e-6) ** 3).mean(axis=1))
    raise ValueError(f"pooling {pooling!r} is none of {', '.join(POOLINGS)}")


def wide(features: Float[Array, "..."]) -> Float[Array, "..."]:
    """Casts features to float32; wider features (float64) are returned unchanged."""
    return features.astype(jnp.promote_types(features.dtype, "float32"))


def normalized(features: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """Divides each row by the row's L2 norm (at least 1e-12), in float32 or wider."""
    rows = wide(features)
    norm = jnp.sqrt(jnp.sum(jnp.square(rows), axis=-1, keepdims=True))
    return rows / jnp.maximum(norm, 1e-12)
