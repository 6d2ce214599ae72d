"""Layout for the official DINOv3 backbones (`dinov3_vit*16_pretrain_*.pth`).

Axes as in `layouts.dinov2`, plus o: the stored periods, a quarter of a head's width. Names follow
`dinov3/models/vision_transformer.py` and `dinov3/layers/` in facebookresearch/dinov3. The mask on
the query/key/value bias is kept as an array; it removes the key bias.
"""

import numpy as np

from dinotxt_jax.config.architecture import VisionConfig
from weights_convert.layouts.dinov2 import (
    ATTENTION_BLOCK,
    IMAGENET,
    LAYER_SCALE,
    MASK_TOKEN,
    MLP,
    PATCHES,
    QKV_BIAS,
)
from weights_convert.layouts.rules import Layout, Rule, under


def swiglu(gate: str, up: str, down: str, switches: tuple[str, ...] = ()) -> tuple[Rule, ...]:
    """Returns rules for a SwiGLU with three projections; `switches` as in `Rule`, for biases."""
    return (
        Rule(f"{gate}.weight", "mlp/gate/kernel", "f d -> d f", "swiglu"),
        Rule(f"{gate}.bias", "mlp/gate/bias", "f -> f", "swiglu", switches=switches),
        Rule(f"{up}.weight", "mlp/up/kernel", "f d -> d f", "swiglu"),
        Rule(f"{up}.bias", "mlp/up/bias", "f -> f", "swiglu", switches=switches),
        Rule(f"{down}.weight", "mlp/down/kernel", "d f -> f d", "swiglu"),
        Rule(f"{down}.bias", "mlp/down/bias", "d -> d", "swiglu", switches=switches),
    )


SWIGLU = swiglu("mlp.w1", "mlp.w2", "mlp.w3")
"""Separate gate, up and down projections, as in DINOv3 and the dino.txt vision head."""

BIAS_MASK = Rule(
    "attn.qkv.bias_mask", "attention/qkv/bias_mask", "(three h k) -> three h k", "bias_mask"
)

LOCAL_NORM = (
    Rule("local_cls_norm.weight", "local_class_norm/scale", "d -> d", "local_class_norm"),
    Rule("local_cls_norm.bias", "local_class_norm/bias", "d -> d", "local_class_norm"),
)
"""Present in the 7B file only."""


def _mask_of_keys(vision: VisionConfig) -> np.ndarray:
    """Returns the mask that removes the key bias, [layers 3 heads head_dim]."""
    mask = np.ones((vision.depth, 3, vision.num_heads, vision.dim // vision.num_heads), np.float32)
    mask[:, 1] = 0
    return mask


def computed_periods(vision: VisionConfig) -> np.ndarray:
    """Returns the rotary periods, for the libraries that do not store them, [o]."""
    from dinotxt_jax.models.rope import make_periods  # imports JAX

    return make_periods(vision.rope_theta, vision.dim // vision.num_heads)


DINOV3 = Layout(
    name="dinov3",
    title="official DINOv3 backbone",
    rules=under(
        "",
        "backbone/",
        (
            *PATCHES,
            *MASK_TOKEN,
            *LOCAL_NORM,
            Rule("storage_tokens", "register_tokens", "1 r d -> r d", "registers"),
            Rule("rope_embed.periods", "rope_periods", "o -> o", keeps_float32=True),
            *under(
                "blocks.{layer}.",
                "blocks/",
                (*ATTENTION_BLOCK, *QKV_BIAS, BIAS_MASK, *LAYER_SCALE, *MLP, *SWIGLU),
            ),
        ),
    ),
    alternatives=(("mlp", "swiglu"),),
    vision={"positions": "rope", "layer_norm_epsilon": 1e-5},
    synthesised={"backbone/blocks/attention/qkv/bias_mask": _mask_of_keys},
    preprocessing=IMAGENET,
    default_export=lambda vision: vision.positions == "rope",
)
