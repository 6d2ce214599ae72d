"""Opens checkpoint files of any format as named arrays that are read one at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
import safetensors

from dinotxt_jax.errors import UserError
from weights_convert.messages import quoted
from weights_convert.torch_file import read_state_dict

_SAFETENSORS_DTYPES = {
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


class SourceArray(Protocol):
    """An array of a checkpoint file: what it is, and its elements when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""

    @property
    def dtype(self) -> np.dtype:
        """The type of its elements; bfloat16 is `ml_dtypes.bfloat16`."""

    def read(self) -> np.ndarray:
        """Its elements; the memory is given back with the last reference."""


@dataclass(frozen=True)
class SafetensorsArray:
    """One array of a `.safetensors` file."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        """Copies the array out of the file."""
        # Opened anew for each array: pages of a mapping that stays open count as resident.
        with safetensors.safe_open(self.path, "np") as file:
            return file.get_tensor(self.name)


def open_source(path: Path) -> dict[str, SourceArray]:
    """Opens a checkpoint file without reading its arrays.

    Args:
        path: a `.safetensors` file; anything else is taken for a torch file.

    Returns:
        Array name -> array, in the order of the file.

    Raises:
        UserError: the file is missing, damaged, or of no known format.
    """
    if not path.exists():
        raise UserError(f"{path} does not exist; pass the path of a checkpoint file.")
    if path.is_dir():
        raise UserError(f"{path} is a directory; pass a .pth or .safetensors file.")
    if path.suffix == ".safetensors":
        return dict(_open_safetensors(path))
    return dict(read_state_dict(path))


def _open_safetensors(path: Path) -> dict[str, SafetensorsArray]:
    arrays = {}
    try:
        with safetensors.safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                entry = file.get_slice(name)
                kind = entry.get_dtype()
                if kind not in _SAFETENSORS_DTYPES:
                    raise UserError(
                        f"{path} stores {quoted(name)} as {kind}, which cannot be converted; "
                        "save it as F32, F16 or BF16."
                    )
                shape = tuple(entry.get_shape())
                arrays[name] = SafetensorsArray(path, name, shape, _SAFETENSORS_DTYPES[kind])
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(
            f"{path} is not a complete .safetensors file ({error}); download it again."
        ) from error
    return arrays
