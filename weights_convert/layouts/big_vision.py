"""Layouts for SigLIP and SigLIP 2 in big_vision's `.npz` files, per layer and scanned.

Axes as in `layouts.clip`; the files show the number of heads. Scanned files stack all layers on a
leading axis l. Names follow `big_vision/models/` in google-research/big_vision.
"""

import dataclasses

from weights_convert.layouts.clip import (
    SIGLIP_PIXELS,
    SIGLIP_TEXT_FACTS,
    SIGLIP_VISION,
    siglip_pieces,
)
from weights_convert.layouts.rules import Layout, Rule, under

# (name in the file, place, axes); the axes of query, key and value are those of one of them.
_Row = tuple[str, str, str]

NORMS: tuple[_Row, ...] = (
    ("LayerNorm_0/scale", "norm1/scale", "d -> d"),
    ("LayerNorm_0/bias", "norm1/bias", "d -> d"),
    ("LayerNorm_1/scale", "norm2/scale", "d -> d"),
    ("LayerNorm_1/bias", "norm2/bias", "d -> d"),
)
_ATTENTION = "MultiHeadDotProductAttention_0"
_QKV = f"{_ATTENTION}/{{query,key,value}}"
ATTENTION: tuple[_Row, ...] = (
    (f"{_QKV}/kernel", "attention/qkv/kernel", "three d h k -> d three h k"),
    (f"{_QKV}/bias", "attention/qkv/bias", "three h k -> three h k"),
    (f"{_ATTENTION}/out/kernel", "attention/out/kernel", "h k d -> h k d"),
    (f"{_ATTENTION}/out/bias", "attention/out/bias", "d -> d"),
)
MLP_ROWS: tuple[_Row, ...] = (
    ("MlpBlock_0/Dense_0/kernel", "mlp/fc1/kernel", "d f -> d f"),
    ("MlpBlock_0/Dense_0/bias", "mlp/fc1/bias", "f -> f"),
    ("MlpBlock_0/Dense_1/kernel", "mlp/fc2/kernel", "f d -> f d"),
    ("MlpBlock_0/Dense_1/bias", "mlp/fc2/bias", "d -> d"),
)
FLAX_BLOCK = tuple(Rule(*row) for row in (*NORMS, *ATTENTION, *MLP_ROWS))
"""A block of Flax's `nn.MultiHeadDotProductAttention` and an MLP, one array per layer."""


def _with_layers(rule: Rule) -> Rule:
    """Returns a rule whose arrays hold all layers on a leading axis."""
    left, right = rule.axes.split(" -> ")
    first, *rest = left.split() if len(rule.names) > 1 else ("", *left.split())
    left = " ".join(filter(None, (first, "l", *rest)))
    return dataclasses.replace(rule, axes=f"{left} -> l {right}")


_SCANNED_BLOCK = tuple(_with_layers(rule) for rule in FLAX_BLOCK)

_POOLING = (
    Rule("probe", "probe", "1 1 d -> d"),
    *(
        Rule(f"{_ATTENTION}/{name}/{array}", f"{name}/{array}", axes)
        for name in ("query", "key", "value")
        for array, axes in (("kernel", "d h k -> d h k"), ("bias", "h k -> h k"))
    ),
    Rule(f"{_ATTENTION}/out/kernel", "out/kernel", "h k d -> h k d"),
    Rule(f"{_ATTENTION}/out/bias", "out/bias", "d -> d"),
    Rule("LayerNorm_0/scale", "norm/scale", "d -> d"),
    Rule("LayerNorm_0/bias", "norm/bias", "d -> d"),
    *(Rule(*row) for row in MLP_ROWS),
)


def _rules(block: str, rows: tuple[Rule, ...], naflex: bool = False) -> tuple[Rule, ...]:
    """Returns the whole table; `block` is what stands before the names of a block."""
    pixels = "(p q rgb) d" if naflex else "p q rgb d"
    positions = "g j d -> (g j) d" if naflex else "1 n d -> n d"
    vision = (
        Rule("embedding/kernel", "patch_embed/kernel", f"{pixels} -> p q rgb d"),
        Rule("embedding/bias", "patch_embed/bias", "d -> d"),
        Rule("pos_embedding", "position_embedding", positions),
        *under(f"Transformer/{block}/", "blocks/", rows),
        Rule("Transformer/encoder_norm/scale", "norm/scale", "d -> d"),
        Rule("Transformer/encoder_norm/bias", "norm/bias", "d -> d"),
        *under("MAPHead_0/", "pooling/", _POOLING),
    )
    text = (
        Rule("Embed_0/embedding", "token_embedding", "v d -> v d"),
        Rule("pos_embedding", "position_embedding", "1 t d -> t d"),
        *under(f"Encoder_0/{block}/", "blocks/", rows),
        Rule("Encoder_0/encoder_norm/scale", "norm/scale", "d -> d"),
        Rule("Encoder_0/encoder_norm/bias", "norm/bias", "d -> d"),
        Rule("head/kernel", "projection/kernel", "d e -> d e", "projection"),
        Rule("head/bias", "projection/bias", "e -> e", "projection"),
    )
    return under(
        "params/",
        "",
        (
            Rule("t", "logit_scale", "1 -> "),
            Rule("b", "logit_bias", "1 -> "),
            *under("img/", "backbone/", vision),
            *under("txt/", "text/", text),
        ),
    )


BIG_VISION = Layout(
    name="big_vision",
    title="SigLIP of big_vision",
    rules=_rules("encoderblock_{layer}", FLAX_BLOCK),
    vision=SIGLIP_VISION | {"activation": "gelu_tanh"},
    text=SIGLIP_TEXT_FACTS | {"activation": "gelu_tanh"},
    headless=True,
    pieces=siglip_pieces,
    preprocessing=SIGLIP_PIXELS | {"rule": "squash_bilinear"},
)

BIG_VISION_SCANNED = dataclasses.replace(
    BIG_VISION,
    name="big_vision_scanned",
    title="SigLIP of big_vision, scanned",
    rules=_rules("encoderblock", _SCANNED_BLOCK),
)

BIG_VISION_NAFLEX = dataclasses.replace(
    BIG_VISION_SCANNED,
    name="big_vision_naflex",
    title="SigLIP 2 NaFlex of big_vision, scanned",
    rules=_rules("encoderblock", _SCANNED_BLOCK, naflex=True),
    vision=SIGLIP_VISION | {"activation": "gelu_tanh", "position_interpolation": "bilinear"},
    preprocessing=SIGLIP_PIXELS | {"rule": "naflex"},
)
