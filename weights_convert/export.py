"""A model directory back to files that PyTorch users load, one array at a time.

The key tables are read from right to left. A file gets the dtypes that its source had, where what
is stored can still give them exactly; so a round trip returns every array bit by bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from etils import epath
from tqdm import tqdm

from dinotxt_jax import storage
from dinotxt_jax.errors import UserError
from dinotxt_jax.models.directory import ARRAYS, ModelDescription, Source, read_description
from weights_convert.layouts import LAYOUTS
from weights_convert.layouts.rules import Layout, Rule
from weights_convert.messages import listed, quoted
from weights_convert.sources import SAFETENSORS_DTYPES

DTYPES = {
    "float32": np.dtype(np.float32),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float16": np.dtype(np.float16),
}
PARTS = ("backbone", "head", "text", "trained")
_KINDS = {dtype: kind for kind, dtype in SAFETENSORS_DTYPES.items()}
_ALIGNMENT = 64


@dataclass(frozen=True)
class _Row:
    """One row of a table for one block: what is read, and what is written of it."""

    rule: Rule
    layer: int | None
    sizes: Mapping[str, int]

    @property
    def keys(self) -> tuple[str, ...]:
        return self.rule.keys(self.layer)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(size or 0 for size in self.rule.source_shape(self.sizes))


Stored = Mapping[tuple[str, ...], storage.StoredArray]


def export(
    model: epath.PathLike,
    output: Path,
    *,
    layout: str | None = None,
    part: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> dict[Path, Layout]:
    """Writes a model directory as `.safetensors` under the names of a released layout.

    Args:
        model: the model directory.
        output: the file. Where the layout of a part is a file of its own, several are written, with
            the part behind the name: FILE_head.safetensors.
        layout: name of the key table; default: that of the sources, and for a trained head and
            text transformer that of the official release on such a backbone.
        part: "backbone", "head", "text", or "trained" (head and text); default: everything.
        dtype: what all arrays are written as; default: as the sources had them.
        overwrite: replace files of that name.
        show_progress: a progress bar on standard error.

    Returns:
        File -> its layout.

    Raises:
        UserError: not a model directory, a layout that does not fit the model, or a file in the
            way.
    """
    description = read_description(model)
    if part not in (None, "backbone"):
        description.dinotxt  # noqa: B018 (says so where there is none)
    stored = _stored_arrays(epath.Path(model), description)
    files = _files(description, Path(output), layout, part)
    for path in files:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; choose another --output, or add --overwrite.")
    plans = {path: _rows(table, stored, description, str(model)) for path, table in files.items()}
    total = sum(len(rows) for rows in plans.values())
    bar = tqdm(total=total, desc="exporting", unit="array", disable=not show_progress)
    with bar:
        for path, rows in plans.items():
            source = _source_of(files[path], description)
            _write_safetensors(path, rows, stored, source, dtype, bar)
    return files


def _stored_arrays(model: epath.Path, description: ModelDescription) -> Stored:
    found = dict(storage.open_arrays(model / ARRAYS))
    if description.backbone_path is not None:
        elsewhere = storage.open_arrays(epath.Path(description.backbone_path) / ARRAYS)
        found |= {place: array for place, array in elsewhere.items() if place[0] == "backbone"}
    return found


def _files(
    description: ModelDescription, output: Path, layout: str | None, part: str | None
) -> dict[Path, Layout]:
    """Which files, each with its layout."""
    if output.suffix != ".safetensors":
        raise UserError(f"--output={output} does not end in .safetensors; only these are written.")
    if layout is not None:
        if layout not in LAYOUTS:
            raise UserError(f"--layout={layout} is not known; known are: {', '.join(LAYOUTS)}.")
        return {output: LAYOUTS[layout]}
    wanted = {
        None: ("backbone", "head", "text") if description.head is not None else ("backbone",),
        "trained": ("head", "text"),
    }.get(part, (part,))
    names = dict.fromkeys(_default_layout(name, description) for name in wanted if name)
    tables = [LAYOUTS[name] for name in names]
    if len(tables) == 1:
        return {output: tables[0]}
    return {
        output.with_stem(f"{output.stem}_{'_'.join(_main_parts(table))}"): table for table in tables
    }


def _main_parts(layout: Layout) -> tuple[str, ...]:
    return tuple(part for part in layout.components if part != "logit_scale")


def _default_layout(part: str, description: ModelDescription) -> str:
    """That of the source of a part; without one, that of the official release."""
    for source in description.sources:
        if source.layout in LAYOUTS and part in LAYOUTS[source.layout].components:
            return source.layout
    vision = description.vision
    if part != "backbone":
        return "dinotxt_v3" if vision.positions == "rope" else f"dinotxt_v2_{part}"
    # A directory of format 1 does not say what it was made from.
    if vision.positions == "rope":
        return "dinov3"
    if not vision.layer_scale:
        return "timm_vit"
    return "dinov2_reg" if vision.num_registers else "dinov2"


def _source_of(layout: Layout, description: ModelDescription) -> Source | None:
    return next((source for source in description.sources if source.layout == layout.name), None)


def _rows(layout: Layout, stored: Stored, description: ModelDescription, model: str) -> list[_Row]:
    """Every row to write.

    Raises:
        UserError: the layout has no place for an array of its parts, or wants one that is not
            there.
    """
    placed = {place: array for place, array in stored.items() if place[0] in layout.components}
    rules = [
        rule
        for rule in layout.rules
        if not rule.feature or all(tuple(place.split("/")) in placed for place in rule.places)
    ]
    used = {tuple(place.split("/")) for rule in rules for place in rule.places}
    computed = {tuple(place.split("/")) for place in layout.computed}
    for place, compute in layout.computed.items():
        array = placed.get(tuple(place.split("/")))
        if array is None or not np.array_equal(array.read(), compute(description.vision)):
            computed.discard(tuple(place.split("/")))
    homeless = sorted("/".join(place) for place in set(placed) - used - computed)
    absent = sorted("/".join(place) for place in used - set(placed))
    if homeless or absent:
        found = "; ".join(
            filter(None, (listed("no place for", homeless), listed("not in the model", absent)))
        )
        raise UserError(
            f"{model} cannot be written as {layout.title}: {found}; choose another --layout, or "
            "leave it out."
        )
    sizes = {name: _sizes(name, rules, placed, description) for name in layout.components}
    return [
        _Row(rule, layer, sizes[rule.component])
        for rule in rules
        for layer in (range(_depth(rule, placed)) if rule.stacked else (None,))
    ]


def _depth(rule: Rule, stored: Stored) -> int:
    return stored[tuple(rule.places[0].split("/"))].shape[0]


def _sizes(
    component: str, rules: Sequence[Rule], stored: Stored, description: ModelDescription
) -> dict[str, int]:
    """Axis name -> size, read off our arrays."""
    sizes: dict[str, int] = {}
    for rule in rules:
        if rule.component == component:
            shape = stored[tuple(rule.places[0].split("/"))].shape
            sizes |= dict(zip(rule.axis_names(), shape[int(rule.stacked) :], strict=True))
    return sizes


def _write_safetensors(
    path: Path,
    rows: Sequence[_Row],
    stored: Stored,
    source: Source | None,
    dtype: str | None,
    bar: tqdm,
) -> None:
    """The format: the size of a JSON header, the header, and the arrays one behind the other.

    Written here because the library wants all arrays in memory at once.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    dtypes: dict[str, np.dtype] = {}
    end = 0
    for row in rows:
        kept = stored[tuple(row.rule.places[0].split("/"))].dtype
        for key in filter(None, row.keys):
            dtypes[key] = _dtype(key, kept, source, dtype)
            start, end = end, end + math.prod(row.shape) * dtypes[key].itemsize
            header[key] = {
                "dtype": _KINDS[dtypes[key]],
                "shape": list(row.shape),
                "data_offsets": [start, end],
            }
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % _ALIGNMENT)
    partial = path.with_name(f"{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for row in rows:
                for key, array in _arrays(row, stored):
                    np.ascontiguousarray(array.astype(dtypes[key])).tofile(file)
                bar.update()
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _arrays(row: _Row, stored: Stored) -> Iterator[tuple[str, np.ndarray]]:
    ours = [stored[tuple(place.split("/"))].read(row.layer) for place in row.rule.places]
    for key, array in zip(row.keys, row.rule.to_source(ours, row.sizes), strict=True):
        if key:
            yield key, array.reshape(row.shape)
        elif np.any(array):
            raise UserError(
                f"the layout has no name for a part of {quoted(row.rule.places[0])} that is not "
                "zero; choose another --layout."
            )


def _dtype(key: str, kept: np.dtype, source: Source | None, given: str | None) -> np.dtype:
    """What an array is written as: as told, or as its source had it, or as it is stored."""
    if given is not None:
        return DTYPES[given]
    name = "" if source is None else source.other_dtypes.get(key, source.dtype)
    # Widening what was rounded for storage would only look exact.
    if kept == DTYPES["float32"] and name in DTYPES:
        return DTYPES[name]
    return kept
