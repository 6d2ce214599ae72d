"""Layouts for timm's DINOv3 (`vit_*_patch16_dinov3*`), plain and gated.

Axes and names as in `layouts.dinov2` and `timm/models/eva.py`. The periods are not stored but
computed, like in `layouts.huggingface`. Models named `_qkvb` have a bias on queries and values. A
classifier is ignored.
"""

import dataclasses

from weights_convert.layouts.dinov2 import ATTENTION_BLOCK, IMAGENET, MLP, PATCHES
from weights_convert.layouts.dinov3 import computed_periods, swiglu
from weights_convert.layouts.rules import Layout, Rule, under

_BLOCK = (
    *ATTENTION_BLOCK,
    Rule(
        "attn.{q_bias,,v_bias}",
        "attention/qkv/bias",
        "three (h k) -> three h k",
        "qkv_bias",
    ),
    Rule("gamma_1", "layer_scale1/scale", "d -> d"),
    Rule("gamma_2", "layer_scale2/scale", "d -> d"),
)


def _rules(mlp: tuple[Rule, ...]) -> tuple[Rule, ...]:
    registers = Rule("reg_token", "register_tokens", "1 r d -> r d", "registers")
    blocks = under("blocks.{layer}.", "blocks/", (*_BLOCK, *mlp))
    return under("", "backbone/", (*PATCHES, registers, *blocks))


TIMM_DINOV3 = Layout(
    name="timm_dinov3",
    title="timm's DINOv3",
    rules=_rules(MLP),
    alternatives=(("mlp",),),
    ignored={"head.": "the classifier, which a backbone does not use"},
    vision={"positions": "rope", "layer_norm_epsilon": 1e-5},
    computed={"backbone/rope_periods": computed_periods},
    preprocessing=IMAGENET,
    config="backbone",
)

# A separate table, because the two MLP kinds share array names.
TIMM_DINOV3_GATED = dataclasses.replace(
    TIMM_DINOV3,
    name="timm_dinov3_gated",
    title="timm's DINOv3, gated",
    rules=_rules(swiglu("mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")),
    alternatives=(("swiglu",),),
)
