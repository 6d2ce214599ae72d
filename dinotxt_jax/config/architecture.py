"""Architectures: the values that determine array shapes and computation in a model.

These are plain values, so that storage, planning and conversion can describe a model without
importing the model code. Shapes: d residual stream width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.ranges import Choice, Range

POOLINGS = ("mean", "max", "gem", "none")
MLPS = ("mlp", "swiglu")
POSITION_KINDS = ("learned", "rope")
POSITION_INTERPOLATIONS = ("antialias", "bicubic", "offset", "bilinear")
ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu")
TEXT_POOLINGS = ("end", "last", "mean")
TEXT_POSITION_KINDS = ("learned", "sinusoid")
TEXT_PROJECTIONS = ("linear", "biased", "none")

_WIDTH = Range(1, 2**20)
_DEPTH = Range(1, 1000)
_HEADS = Range(1, 1024)
# Avoids division by a variance of 0; the lower bound does not underflow to 0 in float32.
_EPSILON = Range(1e-30, 1)


def divides(key: str, heads: int, width: int, name: str) -> Iterator[str]:
    """Yields an error sentence if `heads` does not divide `width`; `name` describes the width."""
    if width % heads:
        smaller = max(count for count in range(1, heads) if width % count == 0)
        yield f"{key} is {heads}, expected a divisor of {name}; set it to one such as {smaller}."


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Architecture of a pre-norm transformer block.

    Attributes:
        dim, num_heads, mlp_hidden_dim: widths; `num_heads` divides `dim`.
        mlp: "mlp" (fc1, activation, fc2) or "swiglu" (silu(gate) * up, down).
        activation: activation function between fc1 and fc2 (`blocks.activation`).
        qkv_bias: whether the query/key/value projection has a bias (other projections always do).
        qkv_bias_mask: whether the bias is multiplied by a stored mask.
        layer_scale: initial LayerScale factor, or None for no LayerScale.
        causal: whether each token attends only to itself and earlier tokens.
        drop_path: probability that an example skips a branch in training.
        initialization: "vit" (N(0, 0.02)) or "clip" (scaled by `num_layers`; see `initializers`).
        num_layers: stack depth, for the "clip" initialisation.
        attention: attention implementation (`models.attention`).
    """

    dim: int
    num_heads: int
    mlp_hidden_dim: int
    mlp: str = "mlp"
    activation: str = "gelu"
    qkv_bias: bool = True
    qkv_bias_mask: bool = False
    layer_scale: float | None = None
    causal: bool = False
    drop_path: float = 0.0
    layer_norm_epsilon: float = 1e-6
    initialization: str = "vit"
    num_layers: int = 1
    attention: str = "xla"

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Vision transformer architecture."""

    patch_size: Annotated[int, Range(1, 1024), "patch side, pixels"]
    dim: Annotated[int, _WIDTH, "residual stream width"]
    depth: Annotated[int, _DEPTH, "number of blocks"]
    num_heads: Annotated[int, _HEADS, "attention heads per block"]
    mlp_hidden_dim: Annotated[int, _WIDTH, "MLP hidden width"]
    mlp: Annotated[str, Choice(MLPS), "MLP type"] = "mlp"
    activation: Annotated[
        str,
        Choice(ACTIVATIONS),
        "mlp: activation function: gelu (exact), gelu_tanh, quick_gelu (x sigmoid(1.702 x), as in "
        "OpenAI's CLIP) or relu",
    ] = "gelu"
    attention_pooling: Annotated[
        bool,
        "whether the class token is no learned token but computed from the patch tokens after the "
        "final norm, by SigLIP's attention pooling head",
    ] = False
    pre_norm: Annotated[
        bool, "whether the tokens pass through a LayerNorm before the first block (CLIP)"
    ] = False
    patch_bias: Annotated[bool, "whether the patch embedding has a bias"] = True
    num_registers: Annotated[
        int, Range(0, 1024), "register tokens between the class token and the patch tokens"
    ] = 0
    positions: Annotated[
        str,
        Choice(POSITION_KINDS),
        "position encoding: learned (a table added to the tokens) or rope (`models.rope`)",
    ] = "learned"
    position_grid: Annotated[
        int, Range(1, 4096), "learned: side of the stored position grid, patches"
    ] = 37
    position_interpolation: Annotated[
        str,
        Choice(POSITION_INTERPOLATIONS),
        "learned: interpolation method for resizing the table to another grid "
        "(`interpolate_positions`)",
    ] = "antialias"
    class_position: Annotated[bool, "learned: whether the table has a row for the class token"] = (
        True
    )
    rope_theta: Annotated[
        float,
        Range(0, 1e9, open_low=True),
        "rope: longest period; periods stored in a checkpoint take precedence",
    ] = 100.0
    layer_scale: Annotated[
        bool, "whether residual branches are scaled per channel (LayerScale)"
    ] = True
    qkv_bias: Annotated[bool, "whether the query/key/value projection has a bias"] = True
    qkv_bias_mask: Annotated[
        bool, "whether the checkpoint contains a mask for the query/key/value bias (DINOv3)"
    ] = False
    layer_norm_epsilon: Annotated[float, _EPSILON, "constant added to the LayerNorm variance"] = (
        1e-6
    )
    mask_token: Annotated[
        bool, "whether the checkpoint contains the pretraining mask token (stored but unused)"
    ] = True
    local_class_norm: Annotated[
        bool,
        "whether the checkpoint contains DINOv3's norm for local-crop class tokens (stored but "
        "unused)",
    ] = False

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about values that cannot be combined; `key` is the group key."""
        yield from divides(f"{key}.num_heads", self.num_heads, self.dim, f"{key}.dim={self.dim}")
        if self.attention_pooling and self.class_position and self.positions == "learned":
            yield (
                f"{key}.class_position is True, expected False with {key}.attention_pooling, whose "
                "class token has no position; correct it."
            )
        if self.positions == "rope" and self.dim // self.num_heads % 4:
            yield (
                f"{key}.num_heads is {self.num_heads}, which gives heads of "
                f"{self.dim // self.num_heads} channels, expected a multiple of 4 for rope; "
                "correct it."
            )

    @property
    def num_learned_tokens(self) -> int:
        """Number of tokens that enter the blocks in front of the patch tokens."""
        return int(not self.attention_pooling) + self.num_registers

    def block(self, attention: str = "xla") -> BlockConfig:
        """Returns the configuration for one block."""
        return BlockConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            mlp_hidden_dim=self.mlp_hidden_dim,
            mlp=self.mlp,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            qkv_bias_mask=self.qkv_bias_mask,
            layer_scale=1e-5 if self.layer_scale else None,
            layer_norm_epsilon=self.layer_norm_epsilon,
            attention=attention,
        )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Text transformer architecture; the defaults match the released model."""

    vocabulary_size: Annotated[int, Range(1, 10_000_000), "vocabulary size, token IDs"] = 49_408
    context_length: Annotated[int, Range(1, 65_536), "maximum row length, tokens"] = 77
    width: Annotated[int, _WIDTH, "residual stream width"] = 1280
    depth: Annotated[int, _DEPTH, "number of blocks"] = 24
    num_heads: Annotated[int, _HEADS, "attention heads per block"] = 20
    mlp_hidden_dim: Annotated[int, _WIDTH, "MLP hidden width"] = 5120
    embed_dim: Annotated[
        int,
        _WIDTH,
        "embedding width D, equal to the image descriptor width (2 d, or d without pooling)",
    ] = 2048
    layer_norm_epsilon: Annotated[float, _EPSILON, "constant added to the LayerNorm variance"] = (
        1e-5
    )
    activation: Annotated[
        str, Choice(ACTIVATIONS), "activation function of the MLP, as in the vision transformer"
    ] = "gelu"
    qkv_bias: Annotated[bool, "whether the query/key/value projection has a bias"] = False
    causal: Annotated[
        bool, "whether each token attends only to itself and earlier tokens (CLIP, dino.txt)"
    ] = True
    pad_id: Annotated[
        int,
        Range(-1, 10_000_000),
        "ID of padding that no other token attends to (TIPS); -1: padding is input like any other "
        "token (SigLIP), or follows the end of the text in a causal model",
    ] = -1
    pooling: Annotated[
        str,
        Choice(TEXT_POOLINGS),
        "token that represents the text: end (the end-of-text token), last (the last position, "
        "even if it is padding) or mean (over the tokens that are not padding)",
    ] = "end"
    end_id: Annotated[
        int,
        Range(-1, 10_000_000),
        "pooling end: end-of-text ID, whose first position is used (-1: the largest ID in the row)",
    ] = -1
    positions: Annotated[
        str,
        Choice(TEXT_POSITION_KINDS),
        "position embeddings: learned, or fixed sinusoids with token embeddings times the square "
        "root of the width (TIPS)",
    ] = "learned"
    projection: Annotated[
        str,
        Choice(TEXT_PROJECTIONS),
        "projection of the pooled token to the embedding: linear, biased (with a bias), or none "
        "(the embedding is as wide as the residual stream)",
    ] = "linear"

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about values that cannot be combined; `key` is the group key."""
        yield from divides(
            f"{key}.num_heads", self.num_heads, self.width, f"{key}.width={self.width}"
        )
        if self.projection == "none" and self.embed_dim != self.width:
            yield (
                f"{key}.embed_dim is {self.embed_dim}, expected {key}.width={self.width} with "
                f"{key}.projection=none; correct one of them."
            )
        if self.pooling == "mean" and self.pad_id < 0:
            yield (
                f"{key}.pad_id is {self.pad_id}, expected the ID of padding, which "
                f"{key}.pooling=mean leaves out; set it."
            )

    @property
    def ignores_padding(self) -> bool:
        """Whether features do not depend on padding, so that token rows may be shortened."""
        return self.pooling != "last" and (self.causal or self.pad_id >= 0)

    def flops(self, rows: int, length: int) -> float:
        """Returns the floating-point operations of all blocks on token rows, forward pass only.

        Only matrix products are counted; a multiplication and an addition count one each. Per token
        and block: 8 w^2 + 4 w m for the projections and the MLP, plus 4 w `length` for attention,
        which is computed over whole rows and then masked.
        """
        projections = 8 * self.width**2 + 4 * self.width * self.mlp_hidden_dim
        return float(rows * length * self.depth * (projections + 4 * self.width * length))

    def block(self, attention: str = "xla") -> BlockConfig:
        """Returns the configuration for one block."""
        return BlockConfig(
            dim=self.width,
            num_heads=self.num_heads,
            mlp_hidden_dim=self.mlp_hidden_dim,
            activation=self.activation,
            qkv_bias=self.qkv_bias,
            causal=self.causal,
            layer_norm_epsilon=self.layer_norm_epsilon,
            initialization="clip",
            num_layers=self.depth,
            attention=attention,
        )


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Vision head architecture: SwiGLU blocks on the backbone tokens after the final norm."""

    num_blocks: Annotated[
        int, Range(0, 1000), "number of blocks; 0 uses the backbone tokens unchanged"
    ]
    num_heads: Annotated[int, _HEADS, "attention heads per block"]
    mlp_hidden_dim: Annotated[
        int, _WIDTH, "SwiGLU hidden width (`swiglu_hidden_dim` implements the released rule)"
    ]
    pooling: Annotated[
        str,
        Choice(POOLINGS),
        "patch token pooling: mean, max or gem; none excludes patch tokens from the descriptor",
    ] = "mean"
    projection: Annotated[
        int,
        Range(0, 2**20),
        "width to which class and patch tokens are projected linearly, without a bias (CLIP); 0: "
        "no projection",
    ] = 0
    layer_scale: Annotated[float, Range(0, 10), "initial LayerScale factor"] = 1e-5
    layer_norm_epsilon: Annotated[float, _EPSILON, "constant added to the LayerNorm variance"] = (
        1e-5
    )


def swiglu_hidden_dim(dim: int) -> int:
    """Returns the SwiGLU width of the head: 2/3 * 4 dim, rounded up to a multiple of 64."""
    return (int(4 * dim * 2 / 3) + 63) // 64 * 64


def descriptor_dim(dim: int, pooling: str) -> int:
    """Returns the width of [class token; pooled patch tokens], or of the class token alone."""
    return dim if pooling == "none" else 2 * dim


@dataclasses.dataclass(frozen=True)
class DinoTxtConfig:
    """Architecture of a complete model: dino.txt, LiT, CLIP, SigLIP or TIPS.

    Attributes:
        vision, head, text: architecture of the three parts.
        logit_bias: whether the model has a bias that is added to logits (SigLIP).
    """

    vision: VisionConfig
    head: HeadConfig
    text: TextConfig
    logit_bias: bool = False

    @property
    def mixes_sizes(self) -> bool:
        """Whether a batch may hold images of different sizes, padded (SigLIP 2 NaFlex).

        Head blocks and pooling over patches would see the padding.
        """
        return (
            self.vision.positions == "learned"
            and self.vision.position_interpolation == "bilinear"
            and not self.head.num_blocks
            and self.head.pooling == "none"
        )

    @property
    def token_dim(self) -> int:
        """Width of the head's class and patch tokens."""
        return self.head.projection or self.vision.dim

    @property
    def head_dims(self) -> tuple[int, int, int]:
        """Channels per attention head in the backbone, the vision head and the text transformer."""
        return (
            self.vision.block().head_dim,
            self.vision.dim // self.head.num_heads,
            self.text.block().head_dim,
        )

    def __post_init__(self) -> None:
        expected = descriptor_dim(self.token_dim, self.head.pooling)
        if self.text.embed_dim != expected:
            raise ValueError(
                f"text features of {self.text.embed_dim} dimensions cannot be compared with image "
                f"descriptors of {expected}: set embed_dim={expected}"
            )
