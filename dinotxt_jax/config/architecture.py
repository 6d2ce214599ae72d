"""Architectures: what decides the shapes of a model's arrays and how it computes.

These are plain values, so that storage, planning and conversion can speak of a model without its
code. Shapes: d width of the residual stream.
"""

from __future__ import annotations

import dataclasses

POOLINGS = ("mean", "max", "gem", "none")


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """A pre-norm transformer block.

    Attributes:
        dim, num_heads, mlp_hidden_dim: widths; `dim` is a multiple of `num_heads`.
        mlp: "mlp" (fc1, exact GELU, fc2) or "swiglu" (silu(gate) * up, down).
        qkv_bias: whether the query/key/value projection has a bias (the others always do).
        qkv_bias_mask: whether that bias is multiplied by a stored mask.
        layer_scale: initial LayerScale factor, or None for no LayerScale.
        causal: tokens see only themselves and what is before them.
        drop_path: probability that an example skips a branch in training.
        initialization: "vit" (N(0, 0.02)) or "clip" (scaled by `num_layers`; see `initializers`).
        num_layers: depth of the stack, for the "clip" initialisation.
        attention: how attention is computed (`models.attention`).
    """

    dim: int
    num_heads: int
    mlp_hidden_dim: int
    mlp: str = "mlp"
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
    """Architecture of a vision transformer.

    Attributes:
        patch_size: side of a square patch, pixels.
        dim, depth, num_heads: width, number of blocks, attention heads.
        mlp, mlp_hidden_dim: "mlp" or "swiglu", and the hidden width.
        num_registers: register tokens between the class token and the patch tokens.
        positions: "learned" (a table, added to tokens) or "rope" (`models.rope`).
        position_grid: learned: side of the stored table, in patches.
        position_interpolation: learned: how the table is brought to another grid
            (`interpolate_positions`).
        class_position: learned: whether the table has a row for the class token.
        rope_theta: rope: the longest period; what a checkpoint stores takes precedence.
        layer_scale: whether branches are scaled per channel.
        qkv_bias: whether the query/key/value projection has a bias.
        qkv_bias_mask: whether the checkpoint carries a mask on it (DINOv3).
        layer_norm_epsilon: added to the variance.
        mask_token: whether the checkpoint carries the mask token of pretraining (kept, never used).
        local_class_norm: whether it carries DINOv3's norm of class tokens of local crops (kept,
            never used).
    """

    patch_size: int
    dim: int
    depth: int
    num_heads: int
    mlp_hidden_dim: int
    mlp: str = "mlp"
    num_registers: int = 0
    positions: str = "learned"
    position_grid: int = 37
    position_interpolation: str = "antialias"
    class_position: bool = True
    rope_theta: float = 100.0
    layer_scale: bool = True
    qkv_bias: bool = True
    qkv_bias_mask: bool = False
    layer_norm_epsilon: float = 1e-6
    mask_token: bool = True
    local_class_norm: bool = False

    def block(self, attention: str = "xla") -> BlockConfig:
        """The configuration of one block."""
        return BlockConfig(
            dim=self.dim,
            num_heads=self.num_heads,
            mlp_hidden_dim=self.mlp_hidden_dim,
            mlp=self.mlp,
            qkv_bias=self.qkv_bias,
            qkv_bias_mask=self.qkv_bias_mask,
            layer_scale=1e-5 if self.layer_scale else None,
            layer_norm_epsilon=self.layer_norm_epsilon,
            attention=attention,
        )


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Architecture of the text transformer; the defaults are the released one.

    Attributes:
        vocabulary_size, context_length: token ids, and positions of the longest row.
        width, depth, num_heads, mlp_hidden_dim: of the transformer.
        embed_dim: D, the width shared with the image descriptor (2 d).
        layer_norm_epsilon: added to the variance.
    """

    vocabulary_size: int = 49_408
    context_length: int = 77
    width: int = 1280
    depth: int = 24
    num_heads: int = 20
    mlp_hidden_dim: int = 5120
    embed_dim: int = 2048
    layer_norm_epsilon: float = 1e-5

    def flops(self, rows: int, length: int) -> float:
        """Floating-point operations of the blocks on rows of tokens, forward.

        Matrix products only, a multiplication and an addition each counting one: 8 w^2 + 4 w m for
        the projections and the MLP of a token and 4 w `length` for its attention, which is computed
        over whole rows and then masked.
        """
        projections = 8 * self.width**2 + 4 * self.width * self.mlp_hidden_dim
        return float(rows * length * self.depth * (projections + 4 * self.width * length))

    def block(self, attention: str = "xla") -> BlockConfig:
        """The configuration of one block."""
        return BlockConfig(
            dim=self.width,
            num_heads=self.num_heads,
            mlp_hidden_dim=self.mlp_hidden_dim,
            qkv_bias=False,
            causal=True,
            layer_norm_epsilon=self.layer_norm_epsilon,
            initialization="clip",
            num_layers=self.depth,
            attention=attention,
        )


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Architecture of the vision head: SwiGLU blocks on the backbone's final-normed tokens.

    Attributes:
        num_blocks: number of blocks; 0 leaves the backbone's tokens as they are.
        num_heads: attention heads of a block.
        mlp_hidden_dim: SwiGLU hidden width (`swiglu_hidden_dim` gives the released rule).
        pooling: how patch tokens become one vector: "mean", "max" or "gem"; "none" leaves them out
            of the descriptor.
        layer_scale: initial LayerScale factor.
        layer_norm_epsilon: added to the variance.
    """

    num_blocks: int
    num_heads: int
    mlp_hidden_dim: int
    pooling: str = "mean"
    layer_scale: float = 1e-5
    layer_norm_epsilon: float = 1e-5


def swiglu_hidden_dim(dim: int) -> int:
    """The head's SwiGLU width: two thirds of 4 dim, rounded up to a multiple of 64."""
    return (int(4 * dim * 2 / 3) + 63) // 64 * 64


def descriptor_dim(dim: int, pooling: str) -> int:
    """Width of [class token; pooled patch tokens], or of the class token alone."""
    return dim if pooling == "none" else 2 * dim


@dataclasses.dataclass(frozen=True)
class DinoTxtConfig:
    """Architecture of a whole dino.txt."""

    vision: VisionConfig
    head: HeadConfig
    text: TextConfig

    @property
    def head_dims(self) -> tuple[int, int, int]:
        """Channels of an attention head in the backbone, the vision head and the text part."""
        return (
            self.vision.block().head_dim,
            self.vision.dim // self.head.num_heads,
            self.text.block().head_dim,
        )

    def __post_init__(self) -> None:
        expected = descriptor_dim(self.vision.dim, self.head.pooling)
        if self.text.embed_dim != expected:
            raise ValueError(
                f"text features of {self.text.embed_dim} dimensions cannot be compared with image "
                f"descriptors of {expected}: set embed_dim={expected}"
            )
