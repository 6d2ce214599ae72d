"""The official DINOv2 backbones (`dinov2_vit*14_pretrain.pth` and `..._reg4_pretrain.pth`).

Axes: d width, r registers, n 1 + stored positions, p and q rows and columns of a patch, h heads,
k width of a head, f hidden width of the MLP. Names read off `dinov2/models/vision_transformer.py`
and `dinov2/layers/` of facebookresearch/dinov2.
"""

from weights_convert.layouts.rules import Layout, Rule, under

EMBEDDING = (
    Rule("cls_token", "class_token", "1 1 d -> d"),
    Rule("pos_embed", "position_embedding", "1 n d -> n d"),
    Rule("patch_embed.proj.weight", "patch_embed/kernel", "d rgb p q -> p q rgb d"),
    Rule("patch_embed.proj.bias", "patch_embed/bias", "d -> d"),
    Rule("norm.weight", "norm/scale", "d -> d"),
    Rule("norm.bias", "norm/bias", "d -> d"),
)
"""What surrounds the blocks, in DINOv2 and timm alike."""

ATTENTION_BLOCK = (
    Rule("norm1.weight", "norm1/scale", "d -> d"),
    Rule("norm1.bias", "norm1/bias", "d -> d"),
    Rule("attn.qkv.weight", "attention/qkv/kernel", "(three h k) d -> d three h k"),
    Rule("attn.proj.weight", "attention/out/kernel", "d (h k) -> h k d"),
    Rule("attn.proj.bias", "attention/out/bias", "d -> d"),
    Rule("norm2.weight", "norm2/scale", "d -> d"),
    Rule("norm2.bias", "norm2/bias", "d -> d"),
)
"""What every block of the family has, also those of the dino.txt vision head."""

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

PACKED_SWIGLU = (
    Rule("mlp.w12.weight", "mlp/{gate,up}/kernel", "(part f) d -> part d f", "swiglu"),
    Rule("mlp.w12.bias", "mlp/{gate,up}/bias", "(part f) -> part f", "swiglu"),
    Rule("mlp.w3.weight", "mlp/down/kernel", "d f -> f d", "swiglu"),
    Rule("mlp.w3.bias", "mlp/down/bias", "d -> d", "swiglu"),
)
"""The MLP of ViT-g: both input projections in one, the gate (through silu) first."""

DINOV2 = Layout(
    name="dinov2",
    title="official DINOv2 backbone",
    rules=(
        *under("", "backbone/", EMBEDDING),
        Rule("register_tokens", "backbone/register_tokens", "1 r d -> r d", "registers"),
        Rule("mask_token", "backbone/mask_token", "1 d -> d", "mask_token"),
        *under(
            "blocks.{layer}.",
            "backbone/blocks/",
            (*ATTENTION_BLOCK, *QKV_BIAS, *LAYER_SCALE, *MLP, *PACKED_SWIGLU),
        ),
    ),
    alternatives=(("mlp", "swiglu"),),
    offset_positions=True,
    preprocessing={
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "resize": 256,
        "crop": 224,
    },
)
