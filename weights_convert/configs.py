"""Reads what files next to a checkpoint say: `config.json` and `preprocessor_config.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from dinotxt_jax.errors import UserError


def described_beside(file: Path, prefix: str = "") -> dict[str, Any]:
    """Reads settings from `config.json` and `preprocessor_config.json` next to a checkpoint file.

    Keys are those that `--set` takes, "activation", the MLP's activation function, and "switches",
    which biases exist (`Rule.switches`).

    Args:
        file: the checkpoint, or its first shard.
        prefix: prefix of the backbone's arrays in the file; a model that contains a backbone
            describes it in a part of its config.
    """
    config = _backbone_config(_json_beside(file.with_name("config.json")), prefix)
    processor = _json_beside(file.with_name("preprocessor_config.json"))
    return _from_config(config) | _from_processor(processor)


# The parts of a transformers config that describe a backbone inside a larger model (DPT, Depth
# Anything, UperNet; vision-text dual encoders).
_PARTS = ("backbone_config", "vision_config")
_BACKBONES = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")


def _backbone_config(config: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Returns the part of a config that describes the backbone whose arrays have this prefix.

    The numbers of the larger model, such as heads of a decoder, are never taken for the backbone's:
    without a part for the backbone, nothing is known about it.
    """
    for part in _PARTS:
        if prefix and isinstance(config.get(part), dict):
            return config[part]
    kind = config.get("model_type")
    return config if not prefix or kind is None or kind in _BACKBONES else {}


# The beginnings of timm's names, and the heads of such a transformer; longer beginnings come first.
_TIMM_HEADS = {
    "vit_huge_plus": 20,
    "vit_tiny": 3,
    "vit_small": 6,
    "vit_base": 12,
    "vit_large": 16,
    "vit_huge": 16,
    "vit_giant_patch14_reg4_dinov2": 24,
    "vit_giant_patch14_dinov2": 24,
    "vit_giant": 16,
    "vit_gigantic": 16,
    "vit_7b": 32,
}


def _timm_heads(config: Mapping[str, Any]) -> int | None:
    """Returns the number of heads in a `config.json` of timm: from arguments, or from the name."""
    arguments, name = config.get("model_args"), config.get("architecture")
    heads = arguments.get("num_heads") if isinstance(arguments, dict) else None
    if _is_number(heads) and heads > 0:
        return int(heads)
    if isinstance(arguments, dict) and "embed_dim" in arguments:
        return None  # the width is not the one that the name implies
    sizes = (size for size in _TIMM_HEADS if isinstance(name, str) and name.startswith(size))
    return next((_TIMM_HEADS[size] for size in sizes), None)


# The keys with which a config of DINOv3 says which projections have a bias.
_SWITCHES = ("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias")


def _from_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Reads architecture settings from a `config.json` that transformers or timm saved."""
    rope = config.get("rope_parameters")
    values = {**config, **(rope if isinstance(rope, dict) else {})}
    settings: dict[str, Any] = {}
    if isinstance(config.get("hidden_act"), str):
        # transformers writes the same function in two ways.
        settings["activation"] = config["hidden_act"].removesuffix("_python")
    if config.get("model_type") == "dinov2_with_registers":
        # Without registers its arrays look like Dinov2's, but it still interpolates antialiased.
        settings["position_interpolation"] = "antialias"
    settings["switches"] = {
        key: config[key] for key in _SWITCHES if isinstance(config.get(key), bool)
    }
    for theirs, ours, kind in (
        ("num_attention_heads", "num_heads", int),
        ("layer_norm_eps", "layer_norm_epsilon", float),
        ("rope_theta", "rope_theta", float),
    ):
        value = values.get(theirs)
        if _is_number(value) and value > 0:
            settings[ours] = kind(value)
    timm = config.get("pretrained_cfg")
    if isinstance(timm, Mapping):
        if heads := _timm_heads(config):
            settings["num_heads"] = heads
        settings |= _three("mean", timm.get("mean")) | _three("std", timm.get("std"))
        size, share = timm.get("input_size"), timm.get("crop_pct")
        side = size[1] if isinstance(size, list) and len(size) == 3 else None
        if _is_number(side) and _is_number(share) and share > 0:
            settings |= {"crop": int(side), "resize": math.floor(side / share)}
    return settings


def _from_processor(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads image preprocessing from a `preprocessor_config.json` that transformers saved."""
    settings = _three("mean", values.get("image_mean")) | _three("std", values.get("image_std"))
    size, crop = values.get("size"), values.get("crop_size")
    if isinstance(size, dict):
        side = size.get("shortest_edge", size.get("height"))
        if isinstance(side, int):
            settings |= {"resize": side, "crop": side}
    if isinstance(crop, dict) and isinstance(crop.get("height"), int):
        settings["crop"] = crop["height"]
    return settings


def _three(name: str, value: Any) -> dict[str, Any]:
    valid = isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))
    return {name: tuple(float(number) for number in value)} if valid else {}


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _json_beside(file: Path) -> dict[str, Any]:
    return read_json_object(file) if file.is_file() else {}


def read_json_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); download it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object; download it again.")
    return values
