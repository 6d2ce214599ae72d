"""Reads `.pth` files written by `torch.save`, without torch and without executing anything.

The format is an uncompressed zip: `NAME/data.pkl` describes the tensors, and `NAME/data/0`,
`NAME/data/1`, ... hold the elements. The pickle is read as data (`torch_pickle`). Every tensor is
memory-mapped in place, so opening a file with many gigabytes costs nothing and reading it needs
memory for one tensor at a time.
"""

import bisect
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dinotxt_jax.errors import UserError
from weights_convert.messages import quoted
from weights_convert.torch_pickle import load_refs
from weights_convert.torch_refs import RefusedPickleError, TensorRef

MAX_PICKLE_BYTES = 8 * 2**20
"""A 7B state dict's pickle takes 0.2 MB; the elements are stored outside it."""

MAX_NESTING = 8
MAX_ENTRIES = 200_000
MAX_NAME = 1000
"""Limits for nested dictionaries; the optimizer state for a 7B model stays far below them."""

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_LOCAL_MAGIC = b"PK\x03\x04"
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    struct.error,
    ValueError,
    OverflowError,
    RuntimeError,
)


@dataclass(frozen=True)
class TorchArray:
    """A tensor in a file, read on request.

    Attributes:
        shape: the shape.
        dtype: the numpy dtype; bfloat16 is `ml_dtypes.bfloat16`.
        negative: the elements are stored with the opposite sign (torch negates lazily).
    """

    path: Path
    start: int
    count: int
    offset: int
    strides: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: np.dtype
    negative: bool

    def read(self) -> np.ndarray:
        """Maps the tensor read-only; the mapping lives as long as arrays that use it."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        size = self.count * self.dtype.itemsize
        mapped = np.memmap(self.path, np.uint8, mode="r", offset=self.start, shape=(size,))
        elements = np.asarray(mapped).view(self.dtype)[self.offset :]
        strides = tuple(stride * self.dtype.itemsize for stride in self.strides)
        view = np.lib.stride_tricks.as_strided(elements, self.shape, strides, writeable=False)
        return -view if self.negative else view


def read_arrays(path: str | os.PathLike) -> dict[str, TorchArray]:
    """Opens a `.pth` file: a state dict, or a training checkpoint that contains one.

    Args:
        path: a file written by `torch.save` with torch 1.6 or newer.

    Returns:
        Array name -> `TorchArray`, in file order. Nested dictionaries give dotted names
        ("teacher.backbone.norm.weight"); values that are not tensors are left out. No array is
        read yet.

    Raises:
        UserError: the file is missing, truncated, has another format, contains no tensors, or its
            pickle contains anything but plain values and tensors (a foreign global is refused by
            name, none is imported).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            archive = _Archive(path, file)
            value = load_refs(archive.pickle())
            return {name: archive.array(ref) for name, ref in _flat(value).items()}
    except RefusedPickleError as refused:
        raise UserError(
            f"{path} is refused: {refused}; use the official file, or save the state dict of your "
            "own model alone."
        ) from refused
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error


def _flat(value: Any) -> dict[str, TensorRef]:
    """Flattens nested dictionaries of tensors to dotted names."""
    if not isinstance(value, dict):
        kinds = {"TensorRef": "single tensor", "Other": "value without weights"}
        kind = type(value).__name__
        raise RefusedPickleError(
            f"it holds a {kinds.get(kind, kind)} where a dictionary of tensors is expected"
        )
    flat: dict[str, TensorRef] = {}
    # Iterative and bounded: a pickle can nest a dictionary in itself, or share dictionaries so that
    # the number of paths grows exponentially.
    level: list[tuple[str, Any]] = [("", value)]
    visited = 0
    for _ in range(MAX_NESTING):
        below: list[tuple[str, Any]] = []
        for prefix, mapping in level:
            visited += len(mapping)
            if visited > MAX_ENTRIES:
                raise RefusedPickleError(f"it holds more than {MAX_ENTRIES} entries")
            for key, item in mapping.items():
                name = f"{prefix}{key}"
                if len(name) > MAX_NAME:
                    raise RefusedPickleError(f"it has a name of more than {MAX_NAME} characters")
                if isinstance(item, dict):
                    below.append((f"{name}.", item))
                elif isinstance(item, TensorRef):
                    if name in flat:
                        raise RefusedPickleError(f"it has two tensors {quoted(name)}")
                    flat[name] = item
        level = below
    if level:
        raise RefusedPickleError(f"its dictionaries are nested more than {MAX_NESTING} deep")
    if not flat:
        keys = ", ".join(quoted(key) for key in list(value)[:12])
        raise RefusedPickleError(
            f"it holds no tensors but a dictionary with the keys {keys or '(none)'}"
        )
    return flat


class _Archive:
    """The zip archive; checks that records are complete, uncompressed and do not overlap."""

    def __init__(self, path: Path, file: Any):
        self.path = path
        self.file = file
        self.size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        if magic != _LOCAL_MAGIC:
            self._fail(_describe_magic(magic))
        try:
            directory = zipfile.ZipFile(file)
            entries = directory.infolist()
        except _ZIP_ERRORS:
            self._fail(
                "is damaged or truncated (its zip directory cannot be read); download it again"
            )
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            self._fail("has two records of one name, which torch never writes")
        pickles = [
            name for name in self.entries if name.count("/") == 1 and name.endswith("/data.pkl")
        ]
        if len(pickles) != 1:
            self._fail(
                f"is a zip with {len(pickles)} NAME/data.pkl records where a torch file has one"
            )
        self.prefix = pickles[0].removesuffix("data.pkl")
        self.begins = sorted([*(entry.header_offset for entry in entries), directory.start_dir])
        self.spans: dict[str, tuple[int, int]] = {}
        self._check_byte_order()

    def pickle(self) -> bytes:
        name = f"{self.prefix}data.pkl"
        if self.entries[name].file_size > MAX_PICKLE_BYTES:
            self._fail(
                f"has a data.pkl of more than {MAX_PICKLE_BYTES} bytes, far more than arrays need"
            )
        return self._read(name)

    def array(self, ref: TensorRef) -> TorchArray:
        """Places a tensor in the file."""
        storage = ref.storage
        start, size = self._span(f"{self.prefix}data/{storage.key}")
        expected = storage.count * storage.dtype.itemsize
        if size != expected:
            self._fail(
                f"has {size} bytes in storage {quoted(storage.key)}, and its pickle says {expected}"
            )
        return TorchArray(
            self.path,
            start,
            storage.count,
            ref.offset,
            ref.strides,
            ref.shape,
            storage.dtype,
            ref.negative,
        )

    def _read(self, name: str) -> bytes:
        start, size = self._span(name)
        self.file.seek(start)
        return self.file.read(size)

    def _check_byte_order(self) -> None:
        name = f"{self.prefix}byteorder"
        if (
            name in self.entries
            and self.entries[name].file_size < 16
            and self._read(name) != b"little"
        ):
            self._fail(
                "is not little-endian; load it with torch on a little-endian machine and save it "
                "again"
            )

    def _span(self, name: str) -> tuple[int, int]:
        """Returns (start, size) of a record's bytes in the file."""
        if name in self.spans:
            return self.spans[name]
        if name not in self.entries:
            self._fail(
                f"lacks the record {quoted(name)}; it is damaged or was not written by torch"
            )
        entry = self.entries[name]
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.flag_bits & 1
            or entry.compress_size != entry.file_size
        ):
            self._fail(
                f"has the record {quoted(name)} compressed or encrypted, which torch never does; "
                "unpack it and pack it again with zip -0"
            )
        self.file.seek(entry.header_offset)
        header = self.file.read(_LOCAL_HEADER.size)
        if len(header) != _LOCAL_HEADER.size or header[:4] != _LOCAL_MAGIC:
            self._fail(f"is damaged (no record starts where {quoted(name)} should begin)")
        _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        start = entry.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        if start + entry.file_size > self.size:
            self._fail(f"is truncated (the record {quoted(name)} ends beyond it)")
        following = bisect.bisect_left(self.begins, entry.header_offset) + 1
        if following >= len(self.begins):
            self._fail(f"is damaged (the record {quoted(name)} is after the zip's directory)")
        if self.begins[following] < start + entry.file_size:
            self._fail(
                f"has other records inside the record {quoted(name)}, which torch never writes"
            )
        self.spans[name] = (start, entry.file_size)
        return self.spans[name]

    def _fail(self, problem: str) -> NoReturn:
        raise UserError(f"{self.path} {problem.rstrip('.')}.")


def _describe_magic(magic: bytes) -> str:
    if not magic:
        return "is empty, expected a checkpoint; download it again"
    if magic[:1] == b"\x80":
        return "has the format of torch before 1.6; load it with torch and save it again"
    return "is not a torch file (a zip with data.pkl); pass a .pth or .safetensors file"
