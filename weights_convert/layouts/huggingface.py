"""Layouts for backbones in `transformers`: Dinov2, Dinov2WithRegisters and DINOv3ViT.

Axes as in `layouts.dinov2`. Query, key and value are separate arrays. DINOv3's keys usually have no
bias (`config.json` says which projections have one), and the periods are not stored but computed
from `rope_theta`. Dinov2 interpolates positions bicubically, without the official offset. A
classifier is ignored.
"""

import dataclasses

from weights_convert.layouts.dinov2 import IMAGENET, MLP, packed_swiglu
from weights_convert.layouts.dinov3 import computed_periods, swiglu
from weights_convert.layouts.rules import Layout, Rule, under

_CLASSIFIER = {"classifier.": "the classifier, which a backbone does not use"}

_NORMS = (
    Rule("norm1.weight", "norm1/scale", "d -> d"),
    Rule("norm1.bias", "norm1/bias", "d -> d"),
    Rule("norm2.weight", "norm2/scale", "d -> d"),
    Rule("norm2.bias", "norm2/bias", "d -> d"),
    Rule("layer_scale1.lambda1", "layer_scale1/scale", "d -> d"),
    Rule("layer_scale2.lambda1", "layer_scale2/scale", "d -> d"),
)
_QKV_KERNEL = ("attention/qkv/kernel", "three (h k) d -> d three h k")
_QKV_BIAS = ("attention/qkv/bias", "three (h k) -> three h k", "qkv_bias")

_DINOV2_BLOCK = (
    *_NORMS,
    Rule("attention.attention.{query,key,value}.weight", *_QKV_KERNEL),
    Rule("attention.attention.{query,key,value}.bias", *_QKV_BIAS),
    Rule("attention.output.dense.weight", "attention/out/kernel", "d (h k) -> h k d"),
    Rule("attention.output.dense.bias", "attention/out/bias", "d -> d"),
    *MLP,
    *packed_swiglu("mlp.weights_in", "mlp.weights_out"),
)

HF_DINOV2 = Layout(
    name="hf_dinov2",
    title="Dinov2 of transformers",
    rules=under(
        "",
        "backbone/",
        (
            Rule("embeddings.cls_token", "class_token", "1 1 d -> d"),
            Rule("embeddings.mask_token", "mask_token", "1 d -> d", "mask_token"),
            Rule("embeddings.position_embeddings", "position_embedding", "1 n d -> n d"),
            Rule(
                "embeddings.patch_embeddings.projection.weight",
                "patch_embed/kernel",
                "d rgb p q -> p q rgb d",
            ),
            Rule("embeddings.patch_embeddings.projection.bias", "patch_embed/bias", "d -> d"),
            *under("encoder.layer.{layer}.", "blocks/", _DINOV2_BLOCK),
            Rule("layernorm.weight", "norm/scale", "d -> d"),
            Rule("layernorm.bias", "norm/bias", "d -> d"),
        ),
    ),
    alternatives=(("mlp", "swiglu"),),
    ignored=_CLASSIFIER,
    vision={"position_interpolation": "bicubic"},
    preprocessing=IMAGENET,
    # Dinov2 in transformers always gates with silu, whatever `hidden_act` says.
    config="backbone",
)

_REGISTERS = Rule("embeddings.register_tokens", "backbone/register_tokens", "1 r d -> r d")

HF_DINOV2_REG = dataclasses.replace(
    HF_DINOV2,
    name="hf_dinov2_reg",
    title="Dinov2WithRegisters of transformers",
    rules=(*HF_DINOV2.rules, _REGISTERS),
    vision={"position_interpolation": "antialias"},
)

_DINOV3_BLOCK = (
    *_NORMS,
    Rule("attention.{q_proj,k_proj,v_proj}.weight", *_QKV_KERNEL),
    Rule(
        "attention.{q_proj,k_proj,v_proj}.bias",
        *_QKV_BIAS,
        switches=("query_bias", "key_bias", "value_bias"),
        absent=frozenset({1}),
    ),
    Rule("attention.o_proj.weight", "attention/out/kernel", "d (h k) -> h k d"),
    Rule("attention.o_proj.bias", "attention/out/bias", "d -> d", switches=("proj_bias",)),
)
_MLP_BIAS = ("mlp_bias",)
_DINOV3_MLP = (
    Rule("mlp.up_proj.weight", "mlp/fc1/kernel", "f d -> d f", "mlp"),
    Rule("mlp.up_proj.bias", "mlp/fc1/bias", "f -> f", "mlp", switches=_MLP_BIAS),
    Rule("mlp.down_proj.weight", "mlp/fc2/kernel", "d f -> f d", "mlp"),
    Rule("mlp.down_proj.bias", "mlp/fc2/bias", "d -> d", "mlp", switches=_MLP_BIAS),
)
_DINOV3_GATED_MLP = swiglu("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", _MLP_BIAS)
_DINOV3_SURROUNDINGS = (
    Rule("embeddings.cls_token", "class_token", "1 1 d -> d"),
    Rule("embeddings.mask_token", "mask_token", "1 1 d -> d", "mask_token"),
    Rule("embeddings.register_tokens", "register_tokens", "1 r d -> r d", "registers"),
    Rule("embeddings.patch_embeddings.weight", "patch_embed/kernel", "d rgb p q -> p q rgb d"),
    Rule("embeddings.patch_embeddings.bias", "patch_embed/bias", "d -> d"),
    Rule("norm.weight", "norm/scale", "d -> d"),
    Rule("norm.bias", "norm/bias", "d -> d"),
)


def _dinov3_rules(mlp: tuple[Rule, ...]) -> tuple[Rule, ...]:
    blocks = under("layer.{layer}.", "blocks/", (*_DINOV3_BLOCK, *mlp))
    return under("", "backbone/", (*_DINOV3_SURROUNDINGS, *blocks))


HF_DINOV3 = Layout(
    name="hf_dinov3",
    title="DINOv3ViT of transformers",
    rules=_dinov3_rules(_DINOV3_MLP),
    alternatives=(("mlp",),),
    ignored=_CLASSIFIER,
    vision={"positions": "rope", "layer_norm_epsilon": 1e-5},
    computed={"backbone/rope_periods": computed_periods},
    preprocessing=IMAGENET,
    config="backbone",
    gate_follows_config=True,
)

# A separate table, because the two MLP kinds share array names.
HF_DINOV3_GATED = dataclasses.replace(
    HF_DINOV3,
    name="hf_dinov3_gated",
    title="DINOv3ViT of transformers, gated",
    rules=_dinov3_rules(_DINOV3_GATED_MLP),
    alternatives=(("swiglu",),),
)
