"""Layout for the official DINOv2 backbones (`dinov2_vit*14[_reg4]_pretrain.pth`).

Axes: d width, r registers, n stored positions (including the class token's), p and q patch rows
and columns, h heads, k head width, f hidden MLP width. Names follow
`dinov2/models/vision_transformer.py` and `dinov2/layers/` in facebookresearch/dinov2.
"""

import dataclasses

from weights_convert.layouts.rules import Layout, Rule, under

PATCH_EMBEDDING = (
    Rule("patch_embed.proj.weight", "patch_embed/kernel", "d rgb p q -> p q rgb d"),
    Rule("patch_embed.proj.bias", "patch_embed/bias", "d -> d"),
)

PATCHES = (
    Rule("cls_token", "class_token", "1 1 d -> d"),
    *PATCH_EMBEDDING,
    Rule("norm.weight", "norm/scale", "d -> d"),
    Rule("norm.bias", "norm/bias", "d -> d"),
)
"""Arrays outside the blocks that DINOv2, DINOv3 and timm share."""

POSITIONS = (Rule("pos_embed", "position_embedding", "1 n d -> n d"),)

MASK_TOKEN = (Rule("mask_token", "mask_token", "1 d -> d"),)

ATTENTION_BLOCK = (
    Rule("norm1.weight", "norm1/scale", "d -> d"),
    Rule("norm1.bias", "norm1/bias", "d -> d"),
    Rule("attn.qkv.weight", "attention/qkv/kernel", "(three h k) d -> d three h k"),
    Rule("attn.proj.weight", "attention/out/kernel", "d (h k) -> h k d"),
    Rule("attn.proj.bias", "attention/out/bias", "d -> d"),
    Rule("norm2.weight", "norm2/scale", "d -> d"),
    Rule("norm2.bias", "norm2/bias", "d -> d"),
)
"""Arrays in every block of the family, including the dino.txt vision head."""

QKV_BIAS = (Rule("attn.qkv.bias", "attention/qkv/bias", "(three h k) -> three h k", "qkv_bias"),)

LAYER_SCALE = (
    Rule("ls1.gamma", "layer_scale1/scale", "d -> d"),
    Rule("ls2.gamma", "layer_scale2/scale", "d -> d"),
)

MLP = (
    Rule("mlp.fc1.weight", "mlp/fc1/kernel", "f d -> d f", "mlp"),
    Rule("mlp.fc1.bias", "mlp/fc1/bias", "f -> f", "mlp"),
    Rule("mlp.fc2.weight", "mlp/fc2/kernel", "d f -> f d", "mlp"),
    Rule("mlp.fc2.bias", "mlp/fc2/bias", "d -> d", "mlp"),
)


def packed_swiglu(packed: str, down: str) -> tuple[Rule, ...]:
    """Returns rules for a SwiGLU with both input projections in one array, first the gate."""
    return (
        Rule(f"{packed}.weight", "mlp/{gate,up}/kernel", "(part f) d -> part d f", "swiglu"),
        Rule(f"{packed}.bias", "mlp/{gate,up}/bias", "(part f) -> part f", "swiglu"),
        Rule(f"{down}.weight", "mlp/down/kernel", "d f -> f d", "swiglu"),
        Rule(f"{down}.bias", "mlp/down/bias", "d -> d", "swiglu"),
    )


IMAGENET = {
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "resize": 256,
    "crop": 224,
}
"""Evaluation preprocessing for the DINO families."""

DINOV2 = Layout(
    name="dinov2",
    title="official DINOv2 backbone",
    rules=under(
        "",
        "backbone/",
        (
            *PATCHES,
            *POSITIONS,
            *MASK_TOKEN,
            *under(
                "blocks.{layer}.",
                "blocks/",
                (
                    *ATTENTION_BLOCK,
                    *QKV_BIAS,
                    *LAYER_SCALE,
                    *MLP,
                    *packed_swiglu("mlp.w12", "mlp.w3"),
                ),
            ),
        ),
    ),
    alternatives=(("mlp", "swiglu"),),
    vision={"position_interpolation": "offset"},
    preprocessing=IMAGENET,
    default_export=lambda vision: (
        vision.positions == "learned" and vision.layer_scale and not vision.num_registers
    ),
)

REGISTERS = Rule("register_tokens", "backbone/register_tokens", "1 r d -> r d")

DINOV2_REG = dataclasses.replace(
    DINOV2,
    name="dinov2_reg",
    title="official DINOv2 backbone with registers",
    rules=(*DINOV2.rules, REGISTERS),
    vision={"position_interpolation": "antialias"},
    default_export=lambda vision: (
        vision.positions == "learned" and vision.layer_scale and vision.num_registers > 0
    ),
)
