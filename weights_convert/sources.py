"""Opens checkpoint files in any supported format as named arrays, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
import safetensors

from dinotxt_jax.errors import UserError
from weights_convert.configs import read_json_object
from weights_convert.messages import listed, quoted
from weights_convert.npz_file import is_npz, open_npz
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
        format: "safetensors", "torch" or "npz".
        metadata: metadata in a `.safetensors` header.
    """

    name: str
    files: tuple[Path, ...]
    arrays: Mapping[str, SourceArray]
    format: str = "torch"
    metadata: Mapping[str, str] = field(default_factory=dict)


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
    kind = "safetensors" if file.name.endswith(_INDEX) else _format(file)
    return Checkpoint(name, files, arrays, kind, _metadata(file))


def _open_file(file: Path) -> dict[str, SourceArray]:
    openers: dict[str, Callable[[Path], Mapping[str, SourceArray]]] = {
        "safetensors": _open_safetensors,
        "npz": open_npz,
        "torch": read_arrays,
    }
    return dict(openers[_format(file)](file))


def _format(file: Path) -> str:
    """Decides by the first bytes, and by the ending if they show no format."""
    with file.open("rb") as stream:
        beginning = stream.read(9)
    if beginning.startswith(b"PK"):
        return "npz" if is_npz(file) else "torch"
    is_safetensors = beginning[8:] == b"{" or file.suffix.lower() == ".safetensors"
    return "safetensors" if is_safetensors else "torch"


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
    shard_of = read_json_object(index).get("weight_map")
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
    if path.name.endswith(_INDEX) or _format(path) != "safetensors":
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
