"""Opens checkpoint files in any supported format as named arrays, read one at a time."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import ml_dtypes
import numpy as np
import safetensors

from dinotxt_jax.errors import UserError
from weights_convert.messages import listed, quoted
from weights_convert.torch_file import read_arrays

SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
# Of arrays that no backbone has, but that may be next to one.
_OTHER_DTYPES = {
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
}
_INDEX = ".index.json"
_IN_FOLDERS = (
    f"model.safetensors{_INDEX}",
    "model.safetensors",
    "model.fp16.safetensors",
    f"pytorch_model.bin{_INDEX}",
    "pytorch_model.bin",
)


class SourceArray(Protocol):
    """An array in a checkpoint file, read on request."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""

    @property
    def dtype(self) -> np.dtype:
        """The dtype; bfloat16 is `ml_dtypes.bfloat16`."""

    def read(self) -> np.ndarray:
        """Reads the elements; the memory is freed with the last reference."""


@dataclass(frozen=True)
class SafetensorsArray:
    """An array in a `.safetensors` file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """Copies the array from the file."""
        # Reopened for each array: mapped pages that stay open count as resident memory.
        with safetensors.safe_open(self.path, "np") as file:
            return file.get_tensor(self.name)


@dataclass(frozen=True)
class Checkpoint:
    """A source: one file, or all shards of one checkpoint.

    Attributes:
        name: the name that the user gave.
        files: all files with arrays.
        arrays: array by name, in file order.
        metadata: metadata in a `.safetensors` header.
    """

    name: str
    files: tuple[Path, ...]
    arrays: Mapping[str, SourceArray]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def settings_beside(self, prefix: str = "") -> dict[str, Any]:
        """Reads settings from `config.json` and `preprocessor_config.json` next to the file.

        Keys are those that `--set` takes, "activation", the MLP's activation function, and
        "switches", which biases exist (`Rule.switches`).

        Args:
            prefix: prefix of the backbone's arrays in the file; a model that contains a backbone
                describes it in a part of its config.
        """
        folder = self.files[0].parent
        config = _backbone_config(_json_beside(folder / "config.json"), prefix)
        return _from_config(config) | _from_processor(
            _json_beside(folder / "preprocessor_config.json")
        )


def open_checkpoint(path: Path, name: str = "") -> Checkpoint:
    """Opens a checkpoint without reading its arrays.

    Args:
        path: a safetensors or torch file, whatever its ending; the index of a sharded one
            (`*.index.json`); or a folder with one of these, as `transformers` saves.
        name: name for messages; default: the path.

    Raises:
        UserError: the file is missing, damaged, or has no known format.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; pass the path of a checkpoint file.")
    name = name or str(path)
    file = _in_folder(path) if path.is_dir() else path
    files: tuple[Path, ...] = (file,)
    arrays: Mapping[str, SourceArray]
    if file.name.endswith(_INDEX):
        files, arrays = _open_sharded(file)
    else:
        arrays = _open_file(file)
    return Checkpoint(name, files, arrays, _metadata(file))


def _open_file(file: Path) -> dict[str, SourceArray]:
    return _open_safetensors(file) if _is_safetensors(file) else dict(read_arrays(file))


def _is_safetensors(file: Path) -> bool:
    """Decides by the first bytes, and by the ending if they show neither format."""
    with file.open("rb") as stream:
        beginning = stream.read(9)
    if beginning.startswith(b"PK"):
        return False
    return beginning[8:] == b"{" or file.suffix.lower() == ".safetensors"


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    if (folder / ".metadata").is_file() and any(folder.glob("*.distcp")):
        raise UserError(
            f"{folder} is a folder of torch.distributed.checkpoint, which only torch reads; make "
            "one file of it with python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
            f"{folder} FILE.pth and pass FILE.pth."
        )
    raise UserError(
        f"{folder} is a directory without any of {', '.join(_IN_FOLDERS)}; pass a checkpoint file, "
        "or a folder that transformers saved."
    )


def _open_sharded(index: Path) -> tuple[tuple[Path, ...], dict[str, SourceArray]]:
    """Opens exactly the arrays that an index lists, from all shards."""
    shard_of = _json(index).get("weight_map")
    if not (isinstance(shard_of, dict) and all(isinstance(n, str) for n in shard_of.values())):
        raise UserError(f"{index} has no weight_map (array -> file); download it again.")
    shards = tuple(index.parent / name for name in dict.fromkeys(shard_of.values()))
    for name, shard in zip(dict.fromkeys(shard_of.values()), shards, strict=True):
        if name != shard.name:
            raise UserError(
                f"{index} names {quoted(name)}, which is not the name of a file next to it; "
                "download it again."
            )
        if not shard.is_file():
            raise UserError(f"{shard} is missing, but {index.name} names it; put it there.")
    opened = {shard.name: _open_file(shard) for shard in shards}
    absent = [quoted(key) for key, name in shard_of.items() if key not in opened[name]]
    if absent:
        raise UserError(
            f"{index} does not fit its files: {listed('missing arrays', absent)}; download them "
            "again."
        )
    return shards, {key: opened[name][key] for key, name in shard_of.items()}


def _metadata(path: Path) -> dict[str, str]:
    if path.name.endswith(_INDEX) or not _is_safetensors(path):
        return {}
    with safetensors.safe_open(path, "np") as file:
        return dict(file.metadata() or {})


def _open_safetensors(path: Path) -> dict[str, SourceArray]:
    arrays: dict[str, SourceArray] = {}
    if path.is_file() and not path.stat().st_size:
        raise UserError(f"{path} is empty, expected a checkpoint; download it again.")
    try:
        with safetensors.safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                entry = file.get_slice(name)
                kind = entry.get_dtype()
                dtype = (SAFETENSORS_DTYPES | _OTHER_DTYPES).get(kind)
                if dtype is None:
                    raise UserError(
                        f"{path} stores {quoted(name)} as {kind}, which cannot be converted; "
                        "save it as F32, F16 or BF16."
                    )
                shape = tuple(entry.get_shape())
                arrays[name] = SafetensorsArray(path, name, shape, dtype)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a complete .safetensors file ({error}); download it again."
        ) from error
    return arrays


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
    return _json(file) if file.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error}); download it again.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object; download it again.")
    return values
