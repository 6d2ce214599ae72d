"""Torch files written byte by byte: the tests do not need torch and can write invalid files."""

import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STORAGE_NAMES = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}


@dataclass(frozen=True)
class Tensor:
    """A tensor as declared in the pickle; the declaration may be false."""

    storage: str
    key: str
    count: int
    offset: int
    shape: Sequence[int]
    strides: Sequence[int]


class TorchFiles:
    """Writes torch files into a folder."""

    tensor = Tensor

    def __init__(self, folder: Path):
        self.folder = folder

    def write(self, arrays: Mapping[str, np.ndarray], name: str = "weights.pth") -> Path:
        """Writes a file as `torch.save` would for a state dict with contiguous arrays."""
        tensors, storages = {}, {}
        for key, (array_name, array) in enumerate(arrays.items()):
            strides = (
                np.cumprod([1, *array.shape[:0:-1]])[::-1][-array.ndim :] if array.ndim else ()
            )
            tensors[array_name] = Tensor(
                STORAGE_NAMES[array.dtype.name],
                str(key),
                array.size,
                0,
                array.shape,
                [int(stride) for stride in strides],
            )
            storages[str(key)] = array.tobytes()
        return self.write_raw(self.state_dict(tensors), storages, name)

    def write_raw(
        self,
        pickled: bytes,
        storages: Mapping[str, bytes] | None = None,
        name: str = "weights.pth",
        *,
        compression: int = zipfile.ZIP_STORED,
        extra: Mapping[str, bytes] | None = None,
    ) -> Path:
        """Writes a zip with a pickle, storages, and extra records under `archive/`."""
        path = self.folder / name
        records = {f"data/{key}": content for key, content in (storages or {}).items()}
        with zipfile.ZipFile(path, "w", compression) as archive:
            archive.writestr("archive/data.pkl", pickled)
            for record, content in {**records, **(extra or {})}.items():
                archive.writestr(f"archive/{record}", content)
        return path

    def state_dict(self, tensors: Mapping[str, Tensor], *, metadata: bool = True) -> bytes:
        """Returns an OrderedDict with tensors and `_metadata`, in the opcodes that torch writes."""
        items = b"".join(text(name) + tensor_code(tensor) for name, tensor in tensors.items())
        body = b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u"
        if metadata:
            versions = b"ccollections\nOrderedDict\n)R" + text("") + b"}" + text("version")
            body += b"}" + text("_metadata") + versions + b"K\x01ss" + b"sb"
        return body + b"."

    def dictionary(self, values: Mapping[str, bytes]) -> bytes:
        """Returns a plain dict whose values are given as opcodes."""
        items = b"".join(text(name) + code for name, code in values.items())
        return b"\x80\x02}(" + items + b"u."

    def tensor_code(self, tensor: Tensor) -> bytes:
        """Returns the opcodes that rebuild a tensor."""
        return tensor_code(tensor)


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def numbers(values: Sequence[int]) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor_code(tensor: Tensor) -> bytes:
    storage = f"ctorch\n{tensor.storage}\n".encode()
    reference = b"(" + text("storage") + storage + text(tensor.key) + text("cpu")
    reference += number(tensor.count) + b"tQ"
    layout = number(tensor.offset) + numbers(tensor.shape) + numbers(tensor.strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + reference + layout + hooks + b"tR"
