"""Layouts for dual encoders in `transformers`: CLIPModel, SiglipModel and Siglip2Model.

Axes as in `layouts.clip`. Query, key and value are separate arrays. SigLIP 2 with a fixed size is
stored as `SiglipModel`; `Siglip2Model` is NaFlex, whose patch embedding is a linear layer.
"""

import dataclasses

from weights_convert.layouts.clip import (
    CLIP_HEADS,
    CLIP_PIXELS,
    CLIP_TEXT_FACTS,
    CLIP_TEXT_HEADS,
    CLIP_VISION,
    SIGLIP_PIXELS,
    SIGLIP_TEXT_FACTS,
    SIGLIP_VISION,
    siglip_pieces,
)
from weights_convert.layouts.dinov2 import MLP
from weights_convert.layouts.rules import Layout, Rule, under

_PROJECTIONS = "self_attn.{q_proj,k_proj,v_proj}"
_MLP = tuple(dataclasses.replace(rule, feature="") for rule in MLP)
_LAYER = (
    Rule("layer_norm1.weight", "norm1/scale", "d -> d"),
    Rule("layer_norm1.bias", "norm1/bias", "d -> d"),
    Rule("layer_norm2.weight", "norm2/scale", "d -> d"),
    Rule("layer_norm2.bias", "norm2/bias", "d -> d"),
    Rule(f"{_PROJECTIONS}.weight", "attention/qkv/kernel", "three (h k) d -> d three h k"),
    Rule(f"{_PROJECTIONS}.bias", "attention/qkv/bias", "three (h k) -> three h k"),
    Rule("self_attn.out_proj.weight", "attention/out/kernel", "d (h k) -> h k d"),
    Rule("self_attn.out_proj.bias", "attention/out/bias", "d -> d"),
    *_MLP,
)
_VISION = (
    Rule("embeddings.position_embedding.weight", "position_embedding", "n d -> n d"),
    *under("encoder.layers.{layer}.", "blocks/", _LAYER),
    Rule("post_layernorm.weight", "norm/scale", "d -> d"),
    Rule("post_layernorm.bias", "norm/bias", "d -> d"),
)
_PATCHES = Rule("embeddings.patch_embedding.weight", "patch_embed/kernel", "d rgb p q -> p q rgb d")
_PATCH_BIAS = Rule("embeddings.patch_embedding.bias", "patch_embed/bias", "d -> d")
_TEXT = (
    Rule("embeddings.token_embedding.weight", "token_embedding", "v d -> v d"),
    Rule("embeddings.position_embedding.weight", "position_embedding", "t d -> t d"),
    *under("encoder.layers.{layer}.", "blocks/", _LAYER),
    Rule("final_layer_norm.weight", "norm/scale", "d -> d"),
    Rule("final_layer_norm.bias", "norm/bias", "d -> d"),
)
_INDICES = {
    "vision_model.embeddings.position_ids": "indices that are always the same",
    "text_model.embeddings.position_ids": "indices that are always the same",
}

HF_CLIP = Layout(
    name="hf_clip",
    title="CLIPModel of transformers",
    rules=(
        Rule("logit_scale", "logit_scale", " -> "),
        *under(
            "vision_model.",
            "backbone/",
            (
                Rule("embeddings.class_embedding", "class_token", "d -> d"),
                _PATCHES,
                Rule("pre_layrnorm.weight", "pre_norm/scale", "d -> d"),
                Rule("pre_layrnorm.bias", "pre_norm/bias", "d -> d"),
                *_VISION,
            ),
        ),
        Rule("visual_projection.weight", "head/projection/kernel", "e d -> d e"),
        *under("text_model.", "text/", _TEXT),
        Rule("text_projection.weight", "text/projection/kernel", "e d -> d e"),
    ),
    ignored=_INDICES,
    vision=CLIP_VISION | {"position_interpolation": "bicubic"},
    text=CLIP_TEXT_FACTS,
    headless=True,
    config="dual",
    asked={"activation": "arrays do not show whether it is quick_gelu or gelu"},
    vision_heads=CLIP_HEADS,
    text_heads=CLIP_TEXT_HEADS,
    preprocessing=CLIP_PIXELS,
)

_POOLING = (
    Rule("probe", "probe", "1 1 d -> d"),
    Rule("attention.in_proj_weight", "{query,key,value}/kernel", "(part h k) d -> part d h k"),
    Rule("attention.in_proj_bias", "{query,key,value}/bias", "(part h k) -> part h k"),
    Rule("attention.out_proj.weight", "out/kernel", "d (h k) -> h k d"),
    Rule("attention.out_proj.bias", "out/bias", "d -> d"),
    Rule("layernorm.weight", "norm/scale", "d -> d"),
    Rule("layernorm.bias", "norm/bias", "d -> d"),
    *_MLP,
)
_SIGLIP_SCALARS = (
    Rule("logit_scale", "logit_scale", "1 -> "),
    Rule("logit_bias", "logit_bias", "1 -> "),
)
_SIGLIP_TEXT = (
    *under("text_model.", "text/", _TEXT),
    Rule("text_model.head.weight", "text/projection/kernel", "e d -> d e"),
    Rule("text_model.head.bias", "text/projection/bias", "e -> e"),
)


def _siglip(patches: Rule) -> tuple[Rule, ...]:
    vision = (patches, _PATCH_BIAS, *_VISION, *under("head.", "pooling/", _POOLING))
    return (*_SIGLIP_SCALARS, *under("vision_model.", "backbone/", vision), *_SIGLIP_TEXT)


HF_SIGLIP = Layout(
    name="hf_siglip",
    title="SiglipModel of transformers",
    rules=_siglip(_PATCHES),
    ignored=_INDICES,
    vision=SIGLIP_VISION | {"position_interpolation": "bicubic", "activation": "gelu_tanh"},
    text=SIGLIP_TEXT_FACTS | {"activation": "gelu_tanh"},
    headless=True,
    config="dual",
    vision_heads={(768, 12): 12, (1024, 24): 16, (1152, 27): 16, (1536, 40): 16},
    text_heads={(768, 12): 12, (1024, 24): 16, (1152, 27): 16},
    pieces=siglip_pieces,
    preprocessing=SIGLIP_PIXELS | {"rule": "squash"},
)

HF_SIGLIP2 = dataclasses.replace(
    HF_SIGLIP,
    name="hf_siglip2",
    title="Siglip2Model (NaFlex) of transformers",
    rules=_siglip(dataclasses.replace(_PATCHES, axes="d (p q rgb) -> p q rgb d")),
    vision=SIGLIP_VISION | {"position_interpolation": "bilinear", "activation": "gelu_tanh"},
    preprocessing=SIGLIP_PIXELS | {"rule": "naflex"},
)
