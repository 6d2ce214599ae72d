"""Writes a planned `.safetensors` or `.npz` file one array at a time."""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Protocol

import numpy as np
from tqdm import tqdm

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.model_directory import SourceCheckpoint
from weights_convert.choices import EXPORT_DTYPES
from weights_convert.layouts.rules import Layout, Rule
from weights_convert.messages import quoted
from weights_convert.sources import SAFETENSORS_DTYPES

_KINDS = {dtype: kind for kind, dtype in SAFETENSORS_DTYPES.items()}
_ALIGNMENT = 64

Place = tuple[str, ...]


class Readable(Protocol):
    """An array to write: a stored one, or one computed from others."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def read(self, layer: int | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class FileRow:
    """A layout row for one block."""

    rule: Rule
    layer: int | None
    sizes: Mapping[str, int]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.rule.keys(self.layer)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size or 0 for size in self.rule.source_shape(self.sizes))


@dataclass(frozen=True)
class FilePlan:
    """Everything needed to write a file."""

    path: Address
    layout: Layout
    rows: Sequence[FileRow]
    arrays: Mapping[Place, Readable]
    source: SourceCheckpoint | None
    metadata: Mapping[str, str]
    notes: tuple[str, ...]


def write_planned(plan: FilePlan, dtype: str | None, bar: tqdm) -> None:
    """Writes a planned file in the format that its suffix names (a key of `WRITERS`)."""
    dtypes = {
        key: _dtype(key, plan.arrays[row.rule.paths[0]].dtype, plan.source, dtype)
        for row in plan.rows
        for key in filter(None, row.keys)
    }
    with new_file(plan.path) as partial, partial.open("wb") as file:
        WRITERS[plan.path.suffix](file, plan, dtypes, bar)


def _written_arrays(
    plan: FilePlan, dtypes: Mapping[str, np.dtype], bar: tqdm
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields all arrays of a file as they are written."""
    for row in plan.rows:
        for key, array in _arrays(row, plan.arrays):
            yield key, _rounded(key, array, dtypes[key])
        bar.update()


def _write_safetensors(
    file: IO[bytes], plan: FilePlan, dtypes: Mapping[str, np.dtype], bar: tqdm
) -> None:
    """Writes the size of a JSON header, the header, and all arrays in sequence.

    The safetensors library needs all arrays in memory at once, so it is not used here.
    """
    header: dict[str, object] = {"__metadata__": plan.metadata}
    end = 0
    for row in plan.rows:
        for key in filter(None, row.keys):
            start, end = end, end + math.prod(row.shape) * dtypes[key].itemsize
            header[key] = {
                "dtype": _KINDS[dtypes[key]],
                "shape": list(row.shape),
                "data_offsets": [start, end],
            }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, array in _written_arrays(plan, dtypes, bar):
        file.write(array.tobytes())


def _write_npz(file: IO[bytes], plan: FilePlan, dtypes: Mapping[str, np.dtype], bar: tqdm) -> None:
    """Writes one `.npy` member per array; `np.savez` needs all arrays in memory at once."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for key, array in _written_arrays(plan, dtypes, bar):
            with archive.open(f"{key}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


WRITERS: dict[str, Callable[[IO[bytes], FilePlan, Mapping[str, np.dtype], tqdm], None]] = {
    ".safetensors": _write_safetensors,
    ".npz": _write_npz,
}
"""What writes a file, by its suffix."""


def _arrays(row: FileRow, arrays: Mapping[Place, Readable]) -> Iterator[tuple[str, np.ndarray]]:
    ours = [arrays[place].read(row.layer) for place in row.rule.paths]
    for key, array in zip(row.keys, row.rule.to_source(ours, row.sizes), strict=True):
        if key:
            yield key, array.reshape(row.shape)
        elif np.any(array):
            raise UserError(
                f"the layout has no name for a part of {quoted(row.rule.places[0])} that is not "
                "zero; choose another --layout."
            )


def _rounded(key: str, array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        rounded = array.astype(dtype)
    if not np.isfinite(rounded).all() and np.isfinite(array).all():
        raise UserError(
            f"{quoted(key)} holds numbers too large for {dtype.name}; choose another --dtype."
        )
    return rounded


def _dtype(
    key: str, stored_dtype: np.dtype, source: SourceCheckpoint | None, requested: str | None
) -> np.dtype:
    """Returns the dtype to write: the given one, the source file's, or the stored one."""
    if requested is not None:
        return EXPORT_DTYPES[requested]
    name = "" if source is None else source.other_dtypes.get(key, source.dtype)
    # Arrays that were rounded for storage keep the narrow dtype: widening would only look exact.
    if stored_dtype == EXPORT_DTYPES["float32"] and name in EXPORT_DTYPES:
        return EXPORT_DTYPES[name]
    return stored_dtype
