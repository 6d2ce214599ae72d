"""Named architectures: the released DINOv2 and DINOv3 sizes, and dino.txt on each of them.

Sources: `dinov2/hub/backbones.py` (positions of 518 px / 14 = 37 patches a side) and
`dinov2/hub/dinotxt.py` (head and text transformer) of facebookresearch/dinov2;
`dinov3/hub/backbones.py` of facebookresearch/dinov3.
"""

from __future__ import annotations

import dataclasses

from dinotxt_jax.config.architecture import (
    DinoTxtConfig,
    HeadConfig,
    TextConfig,
    VisionConfig,
    swiglu_hidden_dim,
)

_DINOV2_SIZES = {  # dim, depth, heads
    "vits14": (384, 12, 6),
    "vitb14": (768, 12, 12),
    "vitl14": (1024, 24, 16),
    "vitg14": (1536, 40, 24),
}
_DINOV3_SIZES = {  # dim, depth, heads, mlp, hidden width
    "vits16": (384, 12, 6, "mlp", 1536),
    "vits16plus": (384, 12, 6, "swiglu", 1536),
    "vitb16": (768, 12, 12, "mlp", 3072),
    "vitl16": (1024, 24, 16, "mlp", 4096),
    "vith16plus": (1280, 32, 20, "swiglu", 5120),
    "vit7b16": (4096, 40, 32, "swiglu", 8192),
}


def _dinov2(name: str, registers: int) -> VisionConfig:
    dim, depth, heads = _DINOV2_SIZES[name]
    swiglu = name == "vitg14"
    return VisionConfig(
        patch_size=14,
        dim=dim,
        depth=depth,
        num_heads=heads,
        mlp="swiglu" if swiglu else "mlp",
        mlp_hidden_dim=(int(4 * dim * 2 / 3) + 7) // 8 * 8 if swiglu else 4 * dim,
        num_registers=registers,
        position_interpolation="antialias" if registers else "offset",
    )


def _dinov3(name: str) -> VisionConfig:
    dim, depth, heads, mlp, hidden = _DINOV3_SIZES[name]
    largest = name == "vit7b16"
    return VisionConfig(
        patch_size=16,
        dim=dim,
        depth=depth,
        num_heads=heads,
        mlp=mlp,
        mlp_hidden_dim=hidden,
        num_registers=4,
        positions="rope",
        qkv_bias=not largest,
        qkv_bias_mask=not largest,
        local_class_norm=largest,
        layer_norm_epsilon=1e-5,
    )


PRESETS: dict[str, VisionConfig] = {
    f"dinov2_{name}{suffix}": _dinov2(name, registers)
    for name in _DINOV2_SIZES
    for suffix, registers in (("", 0), ("_reg", 4))
}
PRESETS |= {f"dinov3_{name}": _dinov3(name) for name in _DINOV3_SIZES}
PRESETS |= {
    "vit_tiny_patch16_224": VisionConfig(
        patch_size=16,
        dim=192,
        depth=12,
        num_heads=3,
        mlp_hidden_dim=768,
        position_grid=14,
        layer_scale=False,
        mask_token=False,
    )
}

# Fields that differ between files of the same architecture: storage and interpolation of positions,
# and arrays that are stored but unused.
_STORAGE = {
    "position_grid",
    "position_interpolation",
    "class_position",
    "rope_theta",
    "qkv_bias_mask",
    "mask_token",
    "local_class_norm",
}


def differences(vision: VisionConfig, preset: str) -> list[str]:
    """Returns the differences between a backbone and a preset, as readable clauses."""
    expected = PRESETS[preset]
    return [
        f"{field.name} is {getattr(vision, field.name)} instead of {getattr(expected, field.name)}"
        for field in dataclasses.fields(VisionConfig)
        if field.name not in _STORAGE
        and getattr(vision, field.name) != getattr(expected, field.name)
    ]


def find_preset(vision: VisionConfig) -> str | None:
    """Returns the preset with a backbone's architecture, or None."""
    return next((name for name in PRESETS if not differences(vision, name)), None)


def head_for(vision: VisionConfig, num_blocks: int = 2, num_heads: int | None = None) -> HeadConfig:
    """Returns the released vision head, for a backbone of any width."""
    return HeadConfig(
        num_blocks=num_blocks,
        num_heads=num_heads or vision.num_heads,
        mlp_hidden_dim=swiglu_hidden_dim(vision.dim),
    )


def dinotxt_for(vision: VisionConfig) -> DinoTxtConfig:
    """Returns the dino.txt released for ViT-L/14, adapted to the width of any backbone."""
    return DinoTxtConfig(vision, head_for(vision), TextConfig(embed_dim=2 * vision.dim))
