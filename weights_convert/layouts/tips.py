"""Layouts for TIPS and TIPSv2: official torch and Scenic arrays (`.npz`), and transformers.

Axes as in `layouts.clip`. The vision transformer is DINOv2's with one register, which is a second
class token. Official files hold one tower each. Names follow `pytorch/` and `scenic/` in
google-deepmind/tips.
"""

import dataclasses

from weights_convert.layouts.big_vision import ATTENTION, FLAX_BLOCK, NORMS
from weights_convert.layouts.clip import TEXT_TOWER
from weights_convert.layouts.dinov2 import DINOV2
from weights_convert.layouts.rules import Layout, Rule, under

_SECOND_CLASS_TOKEN = Rule("register_tokens", "backbone/register_tokens", "1 1 d -> 1 d")
# Files that were written from the JAX model, which has no LayerScale, may lack it.
_TORCH_VISION = (
    *(
        dataclasses.replace(rule, feature="layer_scale") if "layer_scale" in rule.place else rule
        for rule in DINOV2.rules
    ),
    _SECOND_CLASS_TOKEN,
)


def _temperature(name: str) -> Rule:
    return Rule(name, "logit_scale", " -> ", function="negative_log", keeps_float32=True)


_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1152, 27): 16, (1536, 40): 24}
_TEXT_HEADS = {(384, 12): 6, (768, 12): 12, (1024, 12): 16, (1152, 27): 16, (1536, 12): 24}

TIPS_VISION = Layout(
    name="tips_vision",
    title="vision transformer of TIPS (torch names)",
    rules=_TORCH_VISION,
    alternatives=DINOV2.alternatives,
    vision={"position_interpolation": "bilinear"},
    vision_heads=_HEADS,
    rivals=("dinov2_reg",),
    native_format="npz",
    note="images of TIPS have pixels in [0, 1] without further normalisation",
    preprocessing={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "rule": "squash_bilinear"},
)

_TEXT_FACTS = {
    "qkv_bias": True,
    "causal": False,
    "activation": "relu",
    "pad_id": 0,
    "pooling": "mean",
    "positions": "sinusoid",
    "projection": "none",
    "context_length": 64,
}

TIPS_TEXT = Layout(
    name="tips_text",
    title="text transformer of TIPS (torch names)",
    rules=(_temperature("temperature"), *TEXT_TOWER),
    ignored={"temperature_contrastive": "a copy of the temperature"},
    text=_TEXT_FACTS,
    headless=True,
    text_heads=_TEXT_HEADS,
    pieces=lambda vocabulary_size: "tips",
)

_SAVED_MLP = (
    Rule("mlp.c_fc.weight", "mlp/fc1/kernel", "f d -> d f", "saved_mlp"),
    Rule("mlp.c_fc.bias", "mlp/fc1/bias", "f -> f", "saved_mlp"),
    Rule("mlp.c_proj.weight", "mlp/fc2/kernel", "d f -> f d", "saved_mlp"),
    Rule("mlp.c_proj.bias", "mlp/fc2/bias", "d -> d", "saved_mlp"),
)

HF_TIPSV2 = Layout(
    name="hf_tipsv2",
    title="Tipsv2Model of transformers",
    rules=(
        _temperature("temperature"),
        *under(
            "vision_encoder.",
            "",
            (*under("blocks.{layer}.", "backbone/blocks/", _SAVED_MLP), *_TORCH_VISION),
        ),
        *under("text_encoder.", "", TEXT_TOWER),
    ),
    alternatives=(("saved_mlp", "mlp", "swiglu"),),
    vision=TIPS_VISION.vision,
    text=_TEXT_FACTS,
    headless=True,
    config="dual",
    vision_heads=_HEADS,
    text_heads=_TEXT_HEADS,
    pieces=lambda vocabulary_size: "tips",
    note=TIPS_VISION.note,
    preprocessing=TIPS_VISION.preprocessing,
)

_FUSED_SWIGLU = (
    ("FFNSwiGluFused_0/Dense_0/kernel", "mlp/gate/kernel", "d f -> d f", "swiglu"),
    ("FFNSwiGluFused_0/Dense_0/bias", "mlp/gate/bias", "f -> f", "swiglu"),
    ("FFNSwiGluFused_0/Dense_1/kernel", "mlp/up/kernel", "d f -> d f", "swiglu"),
    ("FFNSwiGluFused_0/Dense_1/bias", "mlp/up/bias", "f -> f", "swiglu"),
    ("FFNSwiGluFused_0/Dense_2/kernel", "mlp/down/kernel", "f d -> f d", "swiglu"),
    ("FFNSwiGluFused_0/Dense_2/bias", "mlp/down/bias", "d -> d", "swiglu"),
)
_SCENIC_MLP = tuple(
    dataclasses.replace(rule, feature="mlp") for rule in FLAX_BLOCK if rule.place.startswith("mlp/")
)
_SCENIC_VISION_BLOCK = (
    *(Rule(*row) for row in (*NORMS, *ATTENTION)),
    *_SCENIC_MLP,
    *(Rule(*row) for row in _FUSED_SWIGLU),
)

TIPS_SCENIC_VISION = dataclasses.replace(
    TIPS_VISION,
    name="tips_scenic_vision",
    title="vision transformer of TIPS (Scenic names)",
    rules=under(
        "encoder/",
        "backbone/",
        (
            Rule("ToTokenSequence_0/cls", "{class_token,register_tokens+}", "1 part d -> part d"),
            Rule("ToTokenSequence_0/posembed_input", "position_embedding", "1 g j d -> (g j) d"),
            *under(
                "ToTokenSequence_0/embedding/",
                "patch_embed/",
                (
                    Rule("kernel", "kernel", "p q rgb d -> p q rgb d"),
                    Rule("bias", "bias", "d -> d"),
                ),
            ),
            *under("transformer/encoderblock_{layer}/", "blocks/", _SCENIC_VISION_BLOCK),
            Rule("encoder_norm/scale", "norm/scale", "d -> d"),
            Rule("encoder_norm/bias", "norm/bias", "d -> d"),
        ),
    ),
    # The position of the first class token is part of that token.
    vision={
        "position_interpolation": "bilinear",
        "class_position": False,
        "activation": "gelu_tanh",
    },
    rivals=(),
    note="the JAX model of TIPS uses gelu_tanh and its torch model gelu, so that the outputs of "
    "one set of weights differ by about 5e-4",
)

TIPS_SCENIC_TEXT = dataclasses.replace(
    TIPS_TEXT,
    name="tips_scenic_text",
    title="text transformer of TIPS (Scenic names)",
    rules=(
        _temperature("temperature_contrastive"),
        Rule("token_emb/emb_var", "text/token_embedding", "v d -> v d"),
        *under("transformer/encoderblock_{layer}/", "text/blocks/", FLAX_BLOCK),
        Rule("text_encoder_norm/scale", "text/norm/scale", "d -> d"),
        Rule("text_encoder_norm/bias", "text/norm/bias", "d -> d"),
    ),
    ignored={},
    text=_TEXT_FACTS | {"layer_norm_epsilon": 1e-6},
)
