"""Layouts for timm's vision transformers: plain ViTs and copies of DINOv2.

Axes and names as in `layouts.dinov2`. The classifier is ignored. Positions are interpolated like in
timm (antialiased), even for DINOv2 copies without registers, where the official code uses an offset
instead (`--set position_interpolation=offset`).
"""

import dataclasses

from weights_convert.layouts.dinov2 import (
    ATTENTION_BLOCK,
    IMAGENET,
    LAYER_SCALE,
    MLP,
    PATCHES,
    POSITIONS,
    QKV_BIAS,
    packed_swiglu,
)
from weights_convert.layouts.rules import Layout, Rule, under

_SURROUNDINGS = under("", "backbone/", (*PATCHES, *POSITIONS))
_BLOCK = (*ATTENTION_BLOCK, *QKV_BIAS)


def _blocks(*rules: Rule) -> tuple[Rule, ...]:
    return under("blocks.{layer}.", "backbone/blocks/", (*_BLOCK, *rules))


TIMM_VIT = Layout(
    name="timm_vit",
    title="plain timm vision transformer",
    rules=(*_SURROUNDINGS, *_blocks(*MLP)),
    alternatives=(("mlp",),),
    ignored={"head.": "the classifier, which a backbone does not use"},
    # timm's preprocessing for its AugReg weights: 224 px, crop_pct 0.9.
    preprocessing={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "resize": 248, "crop": 224},
    config="backbone",
    default_export=lambda vision: vision.positions == "learned" and not vision.layer_scale,
)

TIMM_DINOV2 = dataclasses.replace(
    TIMM_VIT,
    name="timm_dinov2",
    title="timm's DINOv2",
    rules=(*_SURROUNDINGS, *_blocks(*LAYER_SCALE, *MLP)),
    preprocessing=IMAGENET,
    default_export=lambda vision: False,
)

# ViT-g: fc1 is a packed SwiGLU with a plain MLP's name.
TIMM_DINOV2_SWIGLU = dataclasses.replace(
    TIMM_DINOV2,
    name="timm_dinov2_swiglu",
    title="timm's DINOv2 ViT-g",
    rules=(*_SURROUNDINGS, *_blocks(*LAYER_SCALE, *packed_swiglu("mlp.fc1", "mlp.fc2"))),
    alternatives=(("swiglu",),),
)

_REGISTERS = Rule("reg_token", "backbone/register_tokens", "1 r d -> r d")


def _with_registers(layout: Layout) -> Layout:
    """Adds registers to a layout; timm adds the class position to the stored class token."""
    return dataclasses.replace(
        layout,
        name=f"{layout.name}_reg",
        title=f"{layout.title} with registers",
        rules=(*layout.rules, _REGISTERS),
        vision={"class_position": False},
    )


TIMM_DINOV2_REG = _with_registers(TIMM_DINOV2)
TIMM_DINOV2_SWIGLU_REG = _with_registers(TIMM_DINOV2_SWIGLU)
