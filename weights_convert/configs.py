"""Reads the config files that transformers, timm and open_clip save next to a checkpoint."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

from dinotxt_jax.errors import UserError


def described_beside(file: Path, kind: str, prefix: str = "") -> dict[str, Any]:
    """Reads settings from the config files next to a checkpoint file.

    Keys are those that `--set` takes, and

        activation   the MLP's activation function, which need not be known here
        switches     which biases exist (`Rule.switches`)
        sizes        {(component, axis): size} that the arrays must have
        text         `TextConfig` fields that the layout does not determine
        rule         how images are resized (`Preprocessing.rule`)

    Args:
        file: the checkpoint, or its first shard.
        kind: a key of `READERS`; "" reads nothing.
        prefix: prefix of the backbone's arrays in the file; a model that contains a backbone
            describes it in a part of its config.
    """
    return READERS[kind](file, prefix)


def _backbone(file: Path, prefix: str) -> dict[str, Any]:
    """Reads a backbone's `config.json` of transformers or timm."""
    config = _backbone_config(_json_beside(file.with_name("config.json")), prefix)
    processor = _json_beside(file.with_name("preprocessor_config.json"))
    return _from_config(config) | _from_processor(processor)


# transformers' names of the functions that are known here.
_ACTIVATIONS = {
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "swish": "silu",
}
# Axes of the key tables, and the names of their sizes in the parts of a dual encoder's config.
_VISION_SIZES = {"d": "hidden_size", "f": "intermediate_size", "p": "patch_size"}
_TEXT_SIZES = {"d": "hidden_size", "f": "intermediate_size", "v": "vocab_size"}
# All old configs of CLIP, OpenAI's among them, state this ID, which means the largest one.
_LEGACY_END_ID = 2


def _dual(file: Path, prefix: str) -> dict[str, Any]:
    """Reads the `config.json` of a dual encoder in transformers."""
    config = _json_beside(file.with_name("config.json"))
    vision, text = (_part(config, f"{name}_config") for name in ("vision", "text"))
    settings = _from_config(vision)
    of_text = _from_config(text)
    for ours in ("activation", "layer_norm_epsilon"):
        if ours in of_text:
            settings[f"text_{ours}"] = of_text[ours]
    if "num_heads" in of_text:
        settings["text_num_heads"] = of_text["num_heads"]
    end = text.get("eos_token_id")
    if config.get("model_type") == "clip" and _is_number(end) and end != _LEGACY_END_ID:
        settings["end_id"] = int(end)
    length = text.get("max_position_embeddings")
    if _is_number(length):
        settings["text"] = {"context_length": int(length)}
    settings["sizes"] = _sizes("backbone", vision, _VISION_SIZES) | _sizes(
        "text", text, _TEXT_SIZES
    )
    processor = _json_beside(file.with_name("preprocessor_config.json"))
    return settings | _from_processor(processor)


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _sizes(
    component: str, values: Mapping[str, Any], names: Mapping[str, str]
) -> dict[tuple[str, str], int]:
    found = {axis: values.get(name) for axis, name in names.items()}
    return {(component, axis): int(n) for axis, n in found.items() if _is_number(n)}


def _open_clip(file: Path, prefix: str) -> dict[str, Any]:
    """Reads `open_clip_config.json`: the whole file, or the model's part alone."""
    config = _json_beside(file.with_name("open_clip_config.json"))
    model = _part(config, "model_cfg") or config
    vision, text = _part(model, "vision_cfg"), _part(model, "text_cfg")
    settings: dict[str, Any] = {}
    trunk = vision.get("timm_model_name")
    if model and not trunk:
        settings["activation"] = "quick_gelu" if model.get("quick_gelu") is True else "gelu"
    width, head = vision.get("width"), vision.get("head_width", 64)
    if _is_number(width) and _is_number(head) and head > 0:
        settings["num_heads"] = int(width) // int(head)
    elif heads := _timm_heads({"architecture": trunk, "model_args": config.get("timm_trunk")}):
        settings["num_heads"] = heads
    if _is_number(text.get("heads")):
        settings["text_num_heads"] = int(text["heads"])
    epsilon = _part(text, "norm_kwargs").get("eps")
    if _is_number(epsilon):
        settings["text_layer_norm_epsilon"] = float(epsilon)
    settings["text"] = _open_clip_text(file, text)
    settings["sizes"] = _sizes("backbone", vision, {"d": "width", "p": "patch_size"}) | _sizes(
        "text", text, {"d": "width", "v": "vocab_size", "t": "context_length"}
    )
    pixels = _part(config, "preprocess_cfg")
    settings |= _three("mean", pixels.get("mean")) | _three("std", pixels.get("std"))
    return settings | _open_clip_resize(file, pixels)


# open_clip's names of the pooled token. "eos" reads the first token with the ID `eos_id`.
_OPEN_CLIP_POOLINGS = {"argmax": "end", "eos": "end", "last": "last"}


def _open_clip_text(file: Path, text: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `TextConfig` fields from the text part of an open_clip config."""
    if not text:
        return {}
    pooling = text.get("pool_type", "argmax")
    if pooling not in _OPEN_CLIP_POOLINGS:
        raise UserError(
            f"open_clip_config.json next to {file} says pool_type={pooling!r}, expected "
            f"{' or '.join(_OPEN_CLIP_POOLINGS)}; such a text transformer cannot be converted."
        )
    fields: dict[str, Any] = {
        "pooling": _OPEN_CLIP_POOLINGS[pooling],
        "causal": text.get("no_causal_mask") is not True,
    }
    if pooling == "eos" and _is_number(text.get("eos_id")):
        fields["end_id"] = int(text["eos_id"])
    return fields


def _open_clip_resize(file: Path, pixels: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the resize rule from the preprocessing part of an open_clip config."""
    mode, filter_name = pixels.get("resize_mode"), pixels.get("interpolation", "bicubic")
    rules = {
        ("shortest", "bicubic"): "center_crop",
        ("squash", "bicubic"): "squash",
        ("squash", "bilinear"): "squash_bilinear",
    }
    if mode is None:
        return {}
    if (mode, filter_name) not in rules:
        raise UserError(
            f"open_clip_config.json next to {file} resizes images by {mode!r} with "
            f"{filter_name!r}, expected one of {', '.join(map(' with '.join, rules))}; such images "
            "cannot be prepared here."
        )
    return {"rule": rules[mode, filter_name]}


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
        name = config["hidden_act"]
        settings["activation"] = _ACTIVATIONS.get(name, name)
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


# PIL's numbers of filters -> the rule that resizes a whole image to a square with it.
_SQUASHES = {2: "squash_bilinear", 3: "squash"}


def _from_processor(values: Mapping[str, Any]) -> dict[str, Any]:
    """Reads image preprocessing from a `preprocessor_config.json` that transformers saved."""
    settings = _three("mean", values.get("image_mean")) | _three("std", values.get("image_std"))
    size, crop = values.get("size"), values.get("crop_size")
    crops = values.get("do_center_crop") is True
    if isinstance(size, dict):
        side = size.get("shortest_edge", size.get("height"))
        if isinstance(side, int):
            settings |= {"resize": side, "crop": side}
        if "height" in size and not crops and values.get("resample") in _SQUASHES:
            settings["rule"] = _SQUASHES[values["resample"]]
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


READERS: dict[str, Callable[[Path, str], dict[str, Any]]] = {
    "": lambda file, prefix: {},
    "backbone": _backbone,
    "dual": _dual,
    "open_clip": _open_clip,
}
"""What reads the files next to a checkpoint, by `Layout.config`."""
