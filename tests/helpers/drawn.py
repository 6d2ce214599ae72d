"""Small random checkpoints in any layout, built from the key table and always identical."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping

import numpy as np

from dinotxt_jax.models.rope import make_periods
from weights_convert.layouts import LAYOUTS

BACKBONE = {"d": 64, "f": 32, "n": 10, "r": 2, "p": 2, "q": 2, "h": 4, "k": 16, "o": 4}
BACKBONE |= {"g": 3, "j": 3, "l": 2}
SIZES = {
    "backbone": BACKBONE,
    "head": {"d": 64, "f": 40, "h": 4, "k": 16, "e": 40},
    "text": {"d": 64, "f": 32, "v": 50, "t": 6, "e": 128, "h": 2, "k": 32, "l": 2},
    "logit_scale": {},
    "logit_bias": {},
}


def checkpoint(
    layout: str,
    *,
    depth: int = 2,
    without: Collection[str] = (),
    switches: Mapping[str, bool] | None = None,
    **sizes: int,
) -> dict[str, np.ndarray]:
    """Returns the float32 arrays of a checkpoint file in one layout.

    Args:
        layout: the layout's name.
        depth: number of blocks in every component.
        without: features to leave out; among alternatives, the first remaining one is used.
        switches: which biases exist, as in a `config.json`; default: the usual ones.
        sizes: axis name -> size, overriding `SIZES`.
    """
    table = LAYOUTS[layout]
    dropped = set(without)
    for choices in table.alternatives:
        left = [feature for feature in choices if feature not in dropped]
        dropped |= set(left[1:])
    arrays = {}
    for rule in table.rules:
        if rule.feature and rule.feature in dropped:
            continue
        known = SIZES[rule.component] | sizes
        for layer in range(depth) if rule.stacked else (None,):
            for key in filter(None, rule.as_in((), switches or {}).keys(layer)):
                arrays[key] = values(key, rule.place, rule.source_shape(known))
    return arrays


def values(key: str, place: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random numbers with plausible magnitudes that depend only on the name."""
    if place.endswith("bias_mask"):
        mask = np.ones((3, math.prod(shape) // 3), np.float32)
        mask[1] = 0
        return mask.reshape(shape)
    if place.endswith("rope_periods"):
        return make_periods(100.0, 4 * shape[0]).astype(np.float32)
    if "temperature" in key:
        return np.full(shape, 0.005, np.float32)
    # Raw bits, because numpy guarantees stability only for these.
    bits = np.random.PCG64(zlib.crc32(key.encode())).random_raw(math.prod(shape))
    unit = np.asarray((bits >> np.uint64(40)).astype(np.float32).reshape(shape) / 2**23 - 1)
    if "norm" in place and place.endswith("scale"):
        return 1 + 0.3 * unit
    if place == "image":
        return 2 * unit
    if "layer_scale" in place:
        return 0.55 + 0.45 * unit
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 16
    return np.asarray(unit * np.float32(min(1.5 / math.sqrt(fan_in), 0.5)))


# The checkpoints of which benchmarks/third_party.py recorded the libraries' own outputs.
_DINOV2 = {"f": 256, "r": 4, "p": 14, "q": 14}
_TIMM_SWIGLU = {"f": 80, "p": 14, "q": 14}
_DINOV3 = {"f": 96, "r": 4, "p": 16, "q": 16}
ONLY_VALUE_BIAS = {"query_bias": False, "proj_bias": False, "mlp_bias": False}
THIRD_PARTY: dict[str, tuple[str, dict]] = {
    "hf_dinov2": ("hf_dinov2", _DINOV2),
    "hf_dinov2 swiglu": ("hf_dinov2", {**_DINOV2, "f": 176, "without": ["mlp"]}),
    "hf_dinov2_reg": ("hf_dinov2_reg", _DINOV2),
    "hf_dinov3": ("hf_dinov3", _DINOV3),
    "hf_dinov3_gated": ("hf_dinov3_gated", _DINOV3),
    "hf_dinov3 key bias": ("hf_dinov3", {**_DINOV3, "switches": {"key_bias": True}}),
    "hf_dinov3 value bias": ("hf_dinov3", {**_DINOV3, "switches": ONLY_VALUE_BIAS}),
    "hf_dinov3_gated value bias": (
        "hf_dinov3_gated",
        {**_DINOV3, "switches": ONLY_VALUE_BIAS},
    ),
    "timm_vit": ("timm_vit", {"f": 256, "p": 16, "q": 16}),
    "timm_dinov2": ("timm_dinov2", _DINOV2),
    "timm_dinov2_reg": ("timm_dinov2_reg", {**_DINOV2, "n": 9}),
    "timm_dinov2_swiglu": ("timm_dinov2_swiglu", _TIMM_SWIGLU),
    "timm_dinov2_swiglu_reg": ("timm_dinov2_swiglu_reg", {**_TIMM_SWIGLU, "n": 9, "r": 4}),
    "timm_dinov3": ("timm_dinov3", {**_DINOV3, "without": ["qkv_bias"]}),
    "timm_dinov3 qkvb": ("timm_dinov3", _DINOV3),
    "timm_dinov3_gated": ("timm_dinov3_gated", _DINOV3),
}


def images(patch: int) -> dict[str, np.ndarray]:
    """Returns normalised images with 3x3 (the stored grid) and 2x5 patches, float32 [1 h w 3]."""
    result = {}
    for rows, columns in ((3, 3), (2, 5)):
        shape = (1, rows * patch, columns * patch, 3)
        result[f"{rows}x{columns}"] = values(f"image {rows}x{columns}", "image", shape)
    return result
