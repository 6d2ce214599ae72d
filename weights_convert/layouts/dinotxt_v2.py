"""Layouts of dino.txt's trained parts on DINOv2: `..._vision_head.pth`, `..._text_encoder.pth`.

Axes: d width (of the component), f hidden width, h heads, k width of a head, v vocabulary,
t context length, e width shared by image and text descriptors. Names follow
`dinov2/hub/dinotxt.py` and `dinov2/eval/text/` of facebookresearch/dinov2. The release has no
logit_scale: it stays at ln(1/0.07).
"""

import dataclasses

from weights_convert.layouts.dinov2 import ATTENTION_BLOCK, LAYER_SCALE
from weights_convert.layouts.dinov3 import SWIGLU
from weights_convert.layouts.rules import Layout, Rule, under

# The head always has a SwiGLU, whatever MLP the backbone has.
_SWIGLU = tuple(dataclasses.replace(rule, feature="") for rule in SWIGLU)
HEAD_BLOCK = (*ATTENTION_BLOCK, *LAYER_SCALE, *_SWIGLU)

TEXT_BLOCK = (
    Rule("attention_norm.weight", "norm1/scale", "d -> d"),
    Rule("attention_norm.bias", "norm1/bias", "d -> d"),
    Rule("attention.qkv.weight", "attention/qkv/kernel", "(three h k) d -> d three h k"),
    Rule("attention.proj.weight", "attention/out/kernel", "d (h k) -> h k d"),
    Rule("attention.proj.bias", "attention/out/bias", "d -> d"),
    Rule("ffn_norm.weight", "norm2/scale", "d -> d"),
    Rule("ffn_norm.bias", "norm2/bias", "d -> d"),
    Rule("feed_forward.fc1.weight", "mlp/fc1/kernel", "f d -> d f"),
    Rule("feed_forward.fc1.bias", "mlp/fc1/bias", "f -> f"),
    Rule("feed_forward.fc2.weight", "mlp/fc2/kernel", "d f -> f d"),
    Rule("feed_forward.fc2.bias", "mlp/fc2/bias", "d -> d"),
)

HEAD_NORM = (
    Rule("ln_final.weight", "norm/scale", "d -> d"),
    Rule("ln_final.bias", "norm/bias", "d -> d"),
)

TEXT_RULES = (
    Rule("backbone.token_embedding.weight", "token_embedding", "v d -> v d"),
    Rule("backbone.positional_embedding", "position_embedding", "t d -> t d"),
    *under("backbone.blocks.{layer}.", "blocks/", TEXT_BLOCK),
    Rule("backbone.ln_final.weight", "norm/scale", "d -> d"),
    Rule("backbone.ln_final.bias", "norm/bias", "d -> d"),
    Rule("head.linear_projection.weight", "projection/kernel", "e d -> d e"),
)

VISION_HEAD = Layout(
    name="dinotxt_v2_head",
    title="dino.txt vision head",
    rules=under("", "head/", (*under("block_list.{layer}.", "blocks/", HEAD_BLOCK), *HEAD_NORM)),
    default_export=lambda vision: vision.positions == "learned",
)

TEXT_ENCODER = Layout(
    name="dinotxt_v2_text",
    title="dino.txt text encoder",
    rules=under("", "text/", TEXT_RULES),
    default_export=lambda vision: vision.positions == "learned",
)
