"""Counts costs per call and device in an optimised program: FLOPs, HBM traffic, collectives."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from dinotxt_jax.planning.hlo import ArrayShape, Instruction, Program, replica_groups

COLLECTIVES = (
    *("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute"),
    "ragged-all-to-all",
)
BETWEEN_SLICES = "between slices"
# Instructions that move no bytes, or have bytes that a later instruction counts.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional"),
    *("call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier", "copy-start"),
    *("custom-call", "slice-start", "async-start", "async-update"),
}


@dataclasses.dataclass(frozen=True)
class Collective:
    """Totals for a kind of collective over the same mesh axes.

    Attributes:
        kind: an entry of `COLLECTIVES`.
        axes: mesh axes over which devices communicate, joined by "+"; or `BETWEEN_SLICES`.
        count: number of runs.
        bytes: total bytes that a device sends, assuming ring algorithms.
        dcn_bytes: the part of `bytes` that goes to other slices.
    """

    kind: str
    axes: str
    count: int
    bytes: float
    dcn_bytes: float = 0.0


def product_flops(program: Program) -> float:
    """Counts the product and convolution FLOPs on one device, including recomputation."""
    total = 0.0
    for name, instruction, times in program.runs():
        computation = program.computations[name]
        if instruction.opcode == "convolution":
            total += times * _convolution_flops(computation, instruction)
        elif instruction.opcode == "dot":
            total += times * _dot_flops(computation, instruction)
    return total


def _operand(
    computation: Mapping[str, Instruction], instruction: Instruction, position: int
) -> ArrayShape:
    return computation[instruction.operands[position]].shapes[0]


def _dot_flops(computation: Mapping[str, Instruction], instruction: Instruction) -> float:
    (contracting,) = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    left = _operand(computation, instruction, 0).dimensions
    depth = math.prod(left[int(axis)] for axis in contracting.split(",") if axis)
    return 2.0 * math.prod(instruction.shapes[0].dimensions) * depth


def _convolution_flops(computation: Mapping[str, Instruction], instruction: Instruction) -> float:
    """Counts the terms that are neither padding nor dilation gaps, like XLA.

    The TPU compiler converts every matrix product to a convolution, and a batched product's batch
    dimension to a dilated spatial dimension.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {instruction}")
    left, kernel, result = (
        dict(zip(names, shape.dimensions, strict=True))
        for names, shape in zip(
            labels.groups(),
            (
                _operand(computation, instruction, 0),
                _operand(computation, instruction, 1),
                instruction.shapes[0],
            ),
            strict=True,
        )
    )
    window = dict(re.findall(r"(\w+)=([\dx_\-]+)", _braced(instruction.attributes, "window")))
    spatial = sorted(name for name in result if name.isdigit())

    def setting(name: str, default: str) -> list[str]:
        return window[name].split("x") if name in window else [default] * len(spatial)

    terms = 2.0 * result["b"] * result["f"] * kernel["i"]
    for position, name in enumerate(spatial):
        stride, spread, gaps = (
            int(setting(key, "1")[position]) for key in ("stride", "lhs_dilate", "rhs_dilate")
        )
        before = int(setting("pad", "0_0")[position].split("_")[0])
        outputs = np.arange(result[name])[:, None] * stride
        inputs = outputs + np.arange(kernel[name])[None] * gaps - before
        inside = (inputs >= 0) & (inputs <= (left[name] - 1) * spread) & (inputs % spread == 0)
        terms *= int(inside.sum())
    return terms


def _braced(attributes: str, name: str) -> str:
    matched = re.search(name + r"=\{([^}]*)\}", attributes)
    return matched[1] if matched else ""


def collectives(program: Program, mesh_shape: Mapping[str, int]) -> list[Collective]:
    """Lists the communication between devices by kind and mesh axes, most bytes first.

    Args:
        program: program partitioned over the mesh; its device n is the mesh's device n (with
            several slices, device n in the first slice).
        mesh_shape: mesh axis sizes, in order.
    """
    devices = math.prod(mesh_shape.values())
    sums: dict[tuple[str, str], list[float]] = {}
    fused, overlapped = program.fused(), set()
    for name, instruction, times in program.runs():
        kind = instruction.opcode.removesuffix("-start")
        channel = re.search(r"channel_id=\d+", instruction.attributes)
        if name in fused and channel:
            # An asynchronous collective appears in every fusion that advances it; count it once.
            if (kind, channel[0]) in overlapped:
                continue
            overlapped.add((kind, channel[0]))
        outside = 0.0
        if kind == "send" and "_xla_megascale_transfer_type" in instruction.attributes:
            kind, sent = _between_slices(instruction)
            axes, outside = BETWEEN_SLICES, sent
        elif kind in COLLECTIVES:
            groups = _exchanging(instruction, devices)
            size, result = groups.shape[1], _result_bytes(instruction)
            # A fusion with this name keeps only this device's shard of the sum.
            if kind == "all-reduce" and name.startswith("all-reduce-scatter"):
                kind, result = "reduce-scatter", result / size
            axes, sent = "+".join(_axes(groups, mesh_shape)) or "none", _sent(kind, result, size)
        else:
            continue
        totals = sums.setdefault((kind, axes), [0, 0, 0])
        for position, value in enumerate((1, sent, outside)):
            totals[position] += times * value
    rows = [
        Collective(*key, int(count), sent, outside) for key, (count, sent, outside) in sums.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes)


def _between_slices(instruction: Instruction) -> tuple[str, float]:
    """Returns kind and bytes that a device sends to other slices, assuming they form a ring."""
    (kind,) = re.findall(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    slices = re.search(r'_xla_megascale_target="\{([\d,]+)\}', instruction.attributes)
    count = len(slices[1].split(",")) if slices else 2
    kind, local = kind.lower().replace("_", "-"), instruction.shapes[0].bytes
    if kind not in COLLECTIVES:
        return kind, local
    result = {"all-gather": local * count, "reduce-scatter": local / count}.get(kind, local)
    return kind, _sent(kind, result, count)


def _result_bytes(instruction: Instruction) -> float:
    """Returns the result's bytes; results of "-start" instructions begin with the operands."""
    shapes: Sequence[ArrayShape] = instruction.shapes
    if instruction.opcode in ("all-gather-start", "collective-permute-start"):
        arrays = [
            shape for shape in shapes if shape.dimensions or shape.dtype not in ("u32", "s32")
        ]
        shapes = arrays[len(arrays) // 2 :]
    return sum(shape.bytes for shape in shapes)


def _sent(kind: str, result: float, devices: int) -> float:
    """Returns the bytes that each of `devices` sends in a ring for `result` bytes of output."""
    others = devices - 1
    if kind == "all-reduce":
        return 2 * result * others / devices
    if kind == "reduce-scatter":
        return result * others
    if kind == "collective-permute":
        return result
    return result * others / devices


def _exchanging(instruction: Instruction, devices: int) -> np.ndarray:
    pairs = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", instruction.attributes)
    if pairs:
        devices_of_pairs = re.findall(r"(\d+),(\d+)", pairs[1])
        return np.asarray([[int(source), int(target)] for source, target in devices_of_pairs])
    groups = replica_groups(instruction.attributes)
    return np.arange(devices)[None] if groups is None or not groups.size else groups


def _axes(groups: np.ndarray, mesh_shape: Mapping[str, int]) -> list[str]:
    """Returns the mesh axes along which the devices in a group differ."""
    coordinates = np.stack(np.unravel_index(groups, tuple(mesh_shape.values())))
    differ = (coordinates != coordinates[..., :1]).any(axis=(1, 2))
    return [name for name, used in zip(mesh_shape, differ, strict=True) if used]


def memory_traffic(program: Program) -> float:
    """Estimates the bytes that a device reads from and writes to HBM.

    The estimate assumes that an instruction reads each operand once and writes each result once. If
    a fusion reads or updates only a slice, only the slice counts. Arrays in on-chip memory do not
    count.
    """
    fused, total = program.fused(), 0.0
    for name, instruction, times in program.runs():
        if name in fused or instruction.opcode in _FREE:
            continue
        total += times * _moved(program, program.computations[name], instruction)
    return total


def _moved(
    program: Program, computation: Mapping[str, Instruction], instruction: Instruction
) -> float:
    read = [computation[name].shapes for name in instruction.operands if name in computation]
    written = _in_hbm(instruction.shapes)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * written
    if instruction.opcode == "dynamic-update-slice":
        return 2 * _in_hbm(read[1])
    if instruction.opcode != "fusion":
        return written + sum(_in_hbm(shapes) for shapes in read)
    (called,) = instruction.called("calls")
    inner = program.computations[called]
    moved = written
    for position, shapes in enumerate(read):
        part = _taken(program, inner, position)
        moved += _in_hbm(shapes) if part is None else min(part, _in_hbm(shapes))
    for update in inner.values():
        if update.opcode == "dynamic-update-slice":
            # In-place update: only the slice moves, not the whole array.
            whole = _in_hbm(update.shapes)
            part = _in_hbm(_operand_shapes(inner, update, 1))
            moved += min(0.0, part - whole)
    return max(moved, 0.0)


def _operand_shapes(
    computation: Mapping[str, Instruction], instruction: Instruction, position: int
) -> tuple[ArrayShape, ...]:
    return computation[instruction.operands[position]].shapes


def _taken(program: Program, inner: Mapping[str, Instruction], parameter: int) -> float | None:
    """Returns the bytes that a fusion reads from a parameter if it reads only slices, else None."""
    (name,) = [
        instruction.name
        for instruction in inner.values()
        if instruction.opcode == "parameter" and instruction.constant == str(parameter)
    ]
    return _used(program, inner, name)


def _used(program: Program, inner: Mapping[str, Instruction], name: str) -> float | None:
    total = 0.0
    for user in inner.values():
        if name not in user.operands:
            continue
        part: float | None = None
        if user.opcode in ("dynamic-slice", "slice", "gather"):
            part = sum(shape.bytes for shape in user.shapes)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            part = 0.0
        elif user.opcode == "bitcast":
            part = _used(program, inner, user.name)
        elif user.opcode == "fusion":
            (called,) = user.called("calls")
            deeper = program.computations[called]
            part = _taken(program, deeper, user.operands.index(name))
        if part is None:
            return None
        total += part
    return total


def _in_hbm(shapes: Sequence[ArrayShape]) -> float:
    return sum(shape.bytes for shape in shapes if shape.in_hbm)
