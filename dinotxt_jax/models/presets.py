"""Architectures with a name: the released DINOv2 sizes and the dino.txt built on each.

Source: `dinov2/hub/backbones.py` (backbones, positions of 518 px / 14 = 37 patches a side) and
`dinov2/hub/dinotxt.py` (head and text transformer) of facebookresearch/dinov2.
"""

from __future__ import annotations

from dinotxt_jax.models.dinotxt import DinoTxtConfig, HeadConfig, swiglu_hidden_dim
from dinotxt_jax.models.text import TextConfig
from dinotxt_jax.models.vit import VisionConfig

_SIZES = {  # dim, depth, heads
    "vits14": (384, 12, 6),
    "vitb14": (768, 12, 12),
    "vitl14": (1024, 24, 16),
    "vitg14": (1536, 40, 24),
}


def _dinov2(name: str, registers: int) -> VisionConfig:
    dim, depth, heads = _SIZES[name]
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


PRESETS: dict[str, VisionConfig] = {
    f"dinov2_{name}{suffix}": _dinov2(name, registers)
    for name in _SIZES
    for suffix, registers in (("", 0), ("_reg", 4))
} | {
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


def head_for(vision: VisionConfig, num_blocks: int = 2, num_heads: int | None = None) -> HeadConfig:
    """The vision head as released, for a backbone of any width."""
    return HeadConfig(
        num_blocks=num_blocks,
        num_heads=num_heads or vision.num_heads,
        mlp_hidden_dim=swiglu_hidden_dim(vision.dim),
    )


def dinotxt_for(vision: VisionConfig) -> DinoTxtConfig:
    """dino.txt as released for ViT-L/14, on any backbone (only the shared width follows it)."""
    return DinoTxtConfig(vision, head_for(vision), TextConfig(embed_dim=2 * vision.dim))
