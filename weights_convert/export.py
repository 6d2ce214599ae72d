"""Exports a model directory to files for other libraries, one array at a time.

The key tables are applied in reverse. A file gets the source file's dtypes if the stored arrays can
represent them exactly, so a round trip returns every array bit by bit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from dinotxt_jax.errors import UserError
from dinotxt_jax.models.dinotxt import INITIAL_LOGIT_SCALE
from dinotxt_jax.storage.addresses import Address, AddressLike, to_output
from dinotxt_jax.storage.model_arrays import stored_arrays
from dinotxt_jax.storage.model_directory import ModelDescription, read_description
from dinotxt_jax.storage.pieces import StoredArray
from weights_convert.choices import SCALARS
from weights_convert.layouts import LAYOUTS
from weights_convert.layouts.rules import Layout, Rule
from weights_convert.messages import listed
from weights_convert.writing import WRITERS, FilePlan, FileRow, Place, Readable, write_planned

_LOGIT_SCALE = ("logit_scale",)
_BIAS = ("backbone", "blocks", "attention", "qkv", "bias")
_MASK = (*_BIAS[:-1], "bias_mask")
# Stored, but never used in a computation.
_UNUSED = ("mask_token", "local_class_norm")


@dataclass(frozen=True)
class Written:
    """An exported file.

    Attributes:
        path, layout: the file and its layout.
        notes: sentences about differences between the file and the model.
    """

    path: Address
    layout: Layout
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Made:
    """An array that the layout requires but the model does not store."""

    values: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    @property
    def dtype(self) -> np.dtype:
        return self.values.dtype

    def read(self, layer: int | None = None) -> np.ndarray:
        return self.values if layer is None else self.values[layer]


@dataclass(frozen=True)
class _Masked:
    """A bias multiplied by its mask, for layouts without a name for the mask."""

    bias: Readable
    mask: Readable

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bias.shape

    @property
    def dtype(self) -> np.dtype:
        return self.bias.dtype

    def read(self, layer: int | None = None) -> np.ndarray:
        return self.bias.read(layer) * self.mask.read(layer)


def export(
    model: AddressLike,
    output: AddressLike,
    *,
    layout: str | None = None,
    part: str | None = None,
    dtype: str | None = None,
    overwrite: bool = False,
    show_progress: bool = True,
) -> list[Written]:
    """Writes a model directory as `.safetensors` or `.npz` with a released layout's array names.

    Args:
        model: the model directory.
        output: the file. If the layouts keep parts in separate files, one file per part is written
            and the part is appended to the name: FILE_head.safetensors.
        layout: layout name; default: the source's layout, and for a trained head and text
            transformer the official release's layout for this kind of backbone.
        part: "backbone", "head", "text", or "trained" (head and text); default: everything.
        dtype: dtype for all arrays; default: the source's dtypes.
        overwrite: replace existing files.
        show_progress: show a progress bar on standard error.

    Raises:
        UserError: not a model directory, a layout that does not fit the model or the part, numbers
            too large for `dtype`, or an existing file.
    """
    description = read_description(model)
    if part not in (None, "backbone"):
        description.dinotxt  # noqa: B018 (raises for a backbone alone)
    stored = stored_arrays(model, description)
    files = _files(description, stored, to_output(output, "--output"), layout, part)
    for path in files:
        if path.exists() and not overwrite:
            raise UserError(f"{path} exists already; choose another --output, or add --overwrite.")
    plans = [
        _planned(path, files[path], stored, description, str(model), layout is not None)
        for path in files
    ]
    _verify(stored, show_progress)
    total = sum(len(plan.rows) for plan in plans)
    bar = tqdm(total=total, desc="exporting", unit="array", disable=not show_progress)
    with bar:
        for plan in plans:
            write_planned(plan, dtype, bar)
    return [Written(plan.path, plan.layout, plan.notes) for plan in plans]


def _verify(stored: Mapping[Place, StoredArray], show_progress: bool) -> None:
    """Reads all arrays and compares them with their checksums, before a file is written."""
    for array in tqdm(stored.values(), "verifying", unit="array", disable=not show_progress):
        if array.checksum is not None:
            for _ in array.layers():
                pass


def _files(
    description: ModelDescription,
    stored: Mapping[Place, StoredArray],
    output: Address,
    layout: str | None,
    part: str | None,
) -> dict[Address, Layout]:
    """Returns the files to write, each with its layout."""
    if output.suffix not in WRITERS:
        raise UserError(
            f"--output={output} ends in neither of {' and '.join(WRITERS)}; name one of these."
        )
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"--layout={layout} is not known; known are: {', '.join(LAYOUTS)}.")
    present = {place[0] for place in stored}
    whole = tuple(name for name in ("backbone", "head", "text") if name in present)
    trained = tuple(name for name in whole if name != "backbone")
    chosen = {None: whole, "trained": trained}.get(part, (part or "",))
    if missing := [name for name in chosen if name not in present]:
        raise UserError(f"the model has no arrays of a {missing[0]}; choose another --part.")
    names = dict.fromkeys(layout or _default_layout(name, description, part) for name in chosen)
    tables = [LAYOUTS[name] for name in names]
    for table in tables:
        more = [name for name in _main_parts(table) if name not in chosen]
        if part is not None and more:
            raise UserError(
                f"files of the layout {table.name} also hold the {' and '.join(more)}; omit "
                "--part, or choose another --layout."
            )
    if len(tables) == 1:
        return {output: tables[0]}
    return {
        output.with_name(f"{output.stem}_{'_'.join(_main_parts(table))}{output.suffix}"): table
        for table in tables
    }


def _main_parts(layout: Layout) -> tuple[str, ...]:
    return tuple(part for part in layout.components if part not in SCALARS)


def _default_layout(name: str, description: ModelDescription, part: str | None) -> str:
    """Returns the layout of a component's source, or else the official release's layout."""
    for source in description.sources:
        parts = _main_parts(LAYOUTS[source.layout]) if source.layout in LAYOUTS else ()
        # A single part from a file that held the whole model is exported in the official layout.
        if name in parts and (part is None or len(parts) < 3):
            return source.layout
    # Trained parts have no source, and directories of format version 1 do not record sources.
    return next(
        layout.name
        for layout in LAYOUTS.values()
        if name in layout.components and layout.default_export(description.vision)
    )


def _planned(
    path: Address,
    layout: Layout,
    stored: Mapping[Place, StoredArray],
    description: ModelDescription,
    model: str,
    layout_is_chosen: bool,
) -> FilePlan:
    """Plans one file.

    Raises:
        UserError: the layout has no name for an array, or requires an array that is missing.
    """
    arrays: dict[Place, Readable] = {
        place: array for place, array in stored.items() if place[0] in layout.components
    }
    for name, make in layout.synthesised.items():
        made = tuple(name.split("/"))
        missing_bias = _BIAS in arrays and made not in arrays
        if missing_bias and not np.any(arrays[_BIAS].read()[:, 1]):
            arrays[made] = _Made(make(description.vision))
    rules = [
        rule
        for rule in layout.rules
        if not rule.feature or all(place in arrays for place in rule.paths)
    ]
    # Of two names that files may have for one array, the table's first is written.
    first = {rule.place: rule for rule in reversed(rules)}
    rules = [rule for rule in rules if first[rule.place] is rule]
    used = {place for rule in rules for place in rule.paths}
    notes = []
    for place in sorted(set(arrays) - used):
        note = _without(place, arrays, layout, description)
        if note is not None:
            del arrays[place]
            notes += [note] if note else []
    homeless = sorted("/".join(place) for place in set(arrays) - used)
    absent = sorted("/".join(place) for place in used - set(arrays))
    if homeless or absent:
        problems = "; ".join(
            filter(None, (listed("no place for", homeless), listed("not in the model", absent)))
        )
        raise UserError(
            f"{model} cannot be written as {layout.title}: {problems}; choose another --layout, or "
            "omit it."
        )
    metadata = {"format": "pt"}
    left_out = sorted({place[0] for place in stored} - set(layout.components) - set(SCALARS))
    if left_out and layout_is_chosen:
        notes.append(f"the {' and '.join(left_out)} of the model are not part of this layout")
    if "head" in layout.components and "logit_scale" not in layout.components:
        scale = float(stored[_LOGIT_SCALE].read())
        metadata["logit_scale"] = repr(scale)
        if abs(scale - INITIAL_LOGIT_SCALE) > 1e-6:
            notes.append(
                f"the trained logit_scale, {scale:.6f}, has no name in this layout; it is in the "
                "metadata of the file"
            )
    sizes = {part: _sizes(part, rules, arrays) for part in layout.components}
    needed = [_with_needed_names(rule, arrays, sizes[rule.component]) for rule in rules]
    for usual, rule in zip(rules, needed, strict=True):
        for i in usual.absent - rule.absent:
            notes.append(f"config.json must say {rule.switches[i]}=true for this file")
    rows = [
        FileRow(rule, layer, sizes[rule.component])
        for rule in needed
        for layer in (range(arrays[rule.paths[0]].shape[0]) if rule.stacked else (None,))
    ]
    source = next((s for s in description.sources if s.layout == layout.name), None)
    unique = tuple(dict.fromkeys(notes))
    return FilePlan(path, layout, rows, arrays, source, metadata, unique)


def _with_needed_names(
    rule: Rule, arrays: Mapping[Place, Readable], sizes: Mapping[str, int]
) -> Rule:
    """Returns the rule without the names that files usually lack, unless their values are not 0."""
    if not rule.absent:
        return rule
    layers = range(arrays[rule.paths[0]].shape[0]) if rule.stacked else (None,)
    written = [
        rule.to_source([arrays[place].read(layer) for place in rule.paths], sizes)
        for layer in layers
    ]
    zero = {i for i in rule.absent if not any(np.any(file_arrays[i]) for file_arrays in written)}
    return dataclasses.replace(rule, absent=frozenset(zero))


def _without(
    place: Place,
    arrays: dict[Place, Readable],
    layout: Layout,
    description: ModelDescription,
) -> str | None:
    """Tries to represent an array that the layout has no name for.

    Returns:
        A note for the user, "" if the exported model computes exactly the same, None if the array
        cannot be left out.
    """
    compute = layout.computed.get("/".join(place))
    if compute is not None:
        stored, computed = arrays[place].read(), compute(description.vision)
        if np.array_equal(stored, computed):
            return ""
        # Released periods are rounded to bfloat16.
        if stored.shape == computed.shape and np.allclose(stored, computed, rtol=2**-8):
            return f"{place[-1]} will be computed without the rounding they have here"
    if place == _MASK and _BIAS in arrays:
        arrays[_BIAS] = _Masked(arrays[_BIAS], arrays[place])
        return ""
    if place[0] == "backbone" and place[1] in _UNUSED:
        return f"{place[1]}, which nothing uses, has no name in this layout and is left out"
    return None


def _sizes(
    component: str, rules: Sequence[Rule], arrays: Mapping[Place, Readable]
) -> dict[str, int]:
    """Returns axis name -> size for a component, from the stored arrays."""
    sizes: dict[str, int] = {}
    for rule in rules:
        if rule.component == component:
            shape = arrays[rule.paths[0]].shape
            for axis, size in zip(rule.axis_names(), shape[int(rule.stacked) :], strict=True):
                if axis.startswith("("):  # rows and columns of a square grid
                    sizes |= dict.fromkeys(axis.strip("()").split(), math.isqrt(size))
                else:
                    sizes[axis] = size
    return sizes
