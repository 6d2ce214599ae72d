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
POSITION_INTERPOLATIONS = ("antialias", "bicubic", "offset")

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
        mlp: "mlp" (fc1, exact GELU, fc2) or "swiglu" (silu(gate) * up, down).
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
        if self.positions == "rope" and self.dim // self.num_heads % 4:
            yield (
                f"{key}.num_heads is {self.num_heads}, which gives heads of "
                f"{self.dim // self.num_heads} channels, expected a multiple of 4 for rope; "
                "correct it."
            )

    def block(self, attention: str = "xla") -> BlockConfig:
        """Returns the configuration for one block."""
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

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about values that cannot be combined; `key` is the group key."""
        yield from divides(
            f"{key}.num_heads", self.num_heads, self.width, f"{key}.width={self.width}"
        )

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
            qkv_bias=False,
            causal=True,
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
    """Architecture of a complete dino.txt model."""

    vision: VisionConfig
    head: HeadConfig
    text: TextConfig

    @property
    def head_dims(self) -> tuple[int, int, int]:
        """Channels per attention head in the backbone, the vision head and the text transformer."""
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
