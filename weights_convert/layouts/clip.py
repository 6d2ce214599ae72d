"""Layouts for CLIP in OpenAI's and open_clip's names, and for SigLIP in open_clip.

Axes as in `layouts.dinov2`, plus e: the width of the shared space. OpenAI's files and open_clip's
`CLIP` have the same names; `CustomTextCLIP` puts the text transformer under `text.`. Names follow
`clip/model.py` in openai/CLIP, and `src/open_clip/` in mlfoundations/open_clip.
"""

import dataclasses

from weights_convert.layouts.dinov2 import ATTENTION_BLOCK, MLP, PATCH_EMBEDDING, QKV_BIAS
from weights_convert.layouts.rules import Layout, Rule, under

RESBLOCK = (
    Rule("ln_1.weight", "norm1/scale", "d -> d"),
    Rule("ln_1.bias", "norm1/bias", "d -> d"),
    Rule("attn.in_proj_weight", "attention/qkv/kernel", "(three h k) d -> d three h k"),
    Rule("attn.in_proj_bias", "attention/qkv/bias", "(three h k) -> three h k"),
    Rule("attn.out_proj.weight", "attention/out/kernel", "d (h k) -> h k d"),
    Rule("attn.out_proj.bias", "attention/out/bias", "d -> d"),
    Rule("ln_2.weight", "norm2/scale", "d -> d"),
    Rule("ln_2.bias", "norm2/bias", "d -> d"),
    Rule("mlp.c_fc.weight", "mlp/fc1/kernel", "f d -> d f"),
    Rule("mlp.c_fc.bias", "mlp/fc1/bias", "f -> f"),
    Rule("mlp.c_proj.weight", "mlp/fc2/kernel", "d f -> f d"),
    Rule("mlp.c_proj.bias", "mlp/fc2/bias", "d -> d"),
)

_VISION = (
    Rule("conv1.weight", "backbone/patch_embed/kernel", "d rgb p q -> p q rgb d"),
    Rule("class_embedding", "backbone/class_token", "d -> d"),
    Rule("positional_embedding", "backbone/position_embedding", "n d -> n d"),
    Rule("ln_pre.weight", "backbone/pre_norm/scale", "d -> d"),
    Rule("ln_pre.bias", "backbone/pre_norm/bias", "d -> d"),
    *under("transformer.resblocks.{layer}.", "backbone/blocks/", RESBLOCK),
    Rule("ln_post.weight", "backbone/norm/scale", "d -> d"),
    Rule("ln_post.bias", "backbone/norm/bias", "d -> d"),
    Rule("proj", "head/projection/kernel", "d e -> d e"),
)

TEXT_TOWER = (
    Rule("token_embedding.weight", "text/token_embedding", "v d -> v d"),
    *under("transformer.resblocks.{layer}.", "text/blocks/", RESBLOCK),
    Rule("ln_final.weight", "text/norm/scale", "d -> d"),
    Rule("ln_final.bias", "text/norm/bias", "d -> d"),
)
"""Text rows that CLIP, SigLIP in open_clip and TIPS share."""

_LEARNED_POSITIONS = (Rule("positional_embedding", "text/position_embedding", "t d -> t d"),)
_PROJECTION = (Rule("text_projection", "text/projection/kernel", "d e -> d e"),)
_BIASED_PROJECTION = (
    Rule("text_projection.weight", "text/projection/kernel", "e d -> d e"),
    Rule("text_projection.bias", "text/projection/bias", "e -> e"),
)
_CLIP_TEXT = (*TEXT_TOWER, *_LEARNED_POSITIONS, *_PROJECTION)
_LOGIT_SCALE = (Rule("logit_scale", "logit_scale", " -> "),)

CLIP_PIXELS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}
"""Preprocessing of CLIP; images have the size of the stored position grid."""

SIGLIP_PIXELS = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

CLIP_VISION = {
    "pre_norm": True,
    "patch_bias": False,
    "layer_norm_epsilon": 1e-5,
    "position_interpolation": "antialias",
}
SIGLIP_VISION = {
    "attention_pooling": True,
    "class_position": False,
    "position_interpolation": "antialias",
}
CLIP_TEXT_FACTS = {"qkv_bias": True}
SIGLIP_TEXT_FACTS = {
    "qkv_bias": True,
    "causal": False,
    "pooling": "last",
    "projection": "biased",
    "layer_norm_epsilon": 1e-6,
}

CLIP_HEADS = {
    (768, 12): 12,
    (1024, 24): 16,
    (1280, 32): 16,
    (1408, 40): 16,
    (1664, 48): 16,
}
"""Heads by (width, depth) of vision transformers that were released as CLIP."""

CLIP_TEXT_HEADS = {(512, 12): 8, (768, 12): 12, (1024, 24): 16, (1280, 32): 20}

_QUICK = (
    "arrays do not show whether CLIP was trained with quick_gelu (OpenAI, DFN, MetaCLIP) or gelu "
    "(LAION, DataComp)"
)

CLIP = Layout(
    name="clip",
    title="CLIP in OpenAI's and open_clip's names",
    rules=(*_LOGIT_SCALE, *under("visual.", "", _VISION), *_CLIP_TEXT),
    ignored={
        "input_resolution": "a number that the arrays show",
        "context_length": "a number that the arrays show",
        "vocab_size": "a number that the arrays show",
        "attn_mask": "the causal mask",
    },
    vision=CLIP_VISION,
    text=CLIP_TEXT_FACTS,
    headless=True,
    config="open_clip",
    asked={"activation": _QUICK},
    # Only OpenAI's files contain this number.
    marks={"input_resolution": {"activation": "quick_gelu"}},
    vision_heads=CLIP_HEADS,
    text_heads=CLIP_TEXT_HEADS,
    preprocessing=CLIP_PIXELS,
)

CLIP_CUSTOM_TEXT = dataclasses.replace(
    CLIP,
    name="clip_custom_text",
    title="CustomTextCLIP of open_clip",
    rules=(*_LOGIT_SCALE, *under("visual.", "", _VISION), *under("text.", "", _CLIP_TEXT)),
    ignored={"text.attn_mask": "the causal mask"},
    marks={},
)

_TIMM_POOLING = (
    Rule("latent", "probe", "1 1 d -> d"),
    Rule("q.weight", "query/kernel", "(h k) d -> d h k"),
    Rule("q.bias", "query/bias", "(h k) -> h k"),
    Rule("kv.weight", "{key,value}/kernel", "(part h k) d -> part d h k"),
    Rule("kv.bias", "{key,value}/bias", "(part h k) -> part h k"),
    Rule("proj.weight", "out/kernel", "d (h k) -> h k d"),
    Rule("proj.bias", "out/bias", "d -> d"),
    Rule("norm.weight", "norm/scale", "d -> d"),
    Rule("norm.bias", "norm/bias", "d -> d"),
    Rule("mlp.fc1.weight", "mlp/fc1/kernel", "f d -> d f"),
    Rule("mlp.fc1.bias", "mlp/fc1/bias", "f -> f"),
    Rule("mlp.fc2.weight", "mlp/fc2/kernel", "d f -> f d"),
    Rule("mlp.fc2.bias", "mlp/fc2/bias", "d -> d"),
)
_TIMM_VISION = (
    *PATCH_EMBEDDING,
    Rule("pos_embed", "position_embedding", "1 n d -> n d"),
    Rule("norm.weight", "norm/scale", "d -> d"),
    Rule("norm.bias", "norm/bias", "d -> d"),
    *under("blocks.{layer}.", "blocks/", (*ATTENTION_BLOCK, *QKV_BIAS, *MLP)),
    *under("attn_pool.", "pooling/", _TIMM_POOLING),
)


def siglip_pieces(vocabulary_size: int) -> str:
    """Returns which SigLIP has a vocabulary; only SigLIP 2 has Gemma's, of 256,000 IDs."""
    return "siglip2" if vocabulary_size == 256_000 else "siglip"


OPEN_CLIP_SIGLIP = Layout(
    name="open_clip_siglip",
    title="SigLIP of open_clip",
    rules=(
        *_LOGIT_SCALE,
        Rule("logit_bias", "logit_bias", " -> "),
        *under("visual.trunk.", "backbone/", _TIMM_VISION),
        *under("text.", "", (*TEXT_TOWER, *_LEARNED_POSITIONS, *_BIASED_PROJECTION)),
    ),
    alternatives=(("mlp",),),
    vision=SIGLIP_VISION,
    text=SIGLIP_TEXT_FACTS,
    headless=True,
    config="open_clip",
    asked={
        "activation": "open_clip computes most SigLIP weights with gelu, although they were "
        "trained with gelu_tanh, which transformers and big_vision use and published figures "
        "belong to"
    },
    vision_heads={(768, 12): 12, (1024, 24): 16, (1152, 27): 16, (1536, 40): 16},
    text_heads={(768, 12): 12, (1024, 24): 16, (1152, 27): 16},
    pieces=siglip_pieces,
    preprocessing=SIGLIP_PIXELS | {"rule": "squash"},
)
