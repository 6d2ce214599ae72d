"""Parses optimised programs that XLA prints: instructions, and how often each one runs."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

_ARRAY = re.compile(r"\b([a-z]+\d*)(?:e\d+m\d+\w*)?\[([\d,]*)\](\{[^}]*\})?")
_HEADER = re.compile(r"(?:ENTRY )?%?(\S+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(\S+) = ")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|%?([\w.\-]+))"
)
# Instructions that call a computation per array element, which does not count as a run.
_ELEMENTWISE = {
    *("reduce", "all-reduce", "reduce-scatter", "scatter", "sort", "map", "reduce-window"),
    *("select-and-scatter", "all-reduce-start", "reduce-scatter-start"),
}


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """An array on one device: dtype name, dimensions, and whether it is stored in HBM."""

    dtype: str
    dimensions: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> float:
        """Size without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = int(digits[0]) if digits else 8 * (self.dtype == "pred")
        return math.prod(self.dimensions) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An instruction in a computation.

    Attributes:
        name, opcode: as printed.
        shapes: result shapes; several for a tuple.
        operands: names of instructions in the same computation.
        attributes: the text after the operands.
        constant: the text inside the operand parentheses.
    """

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    attributes: str
    constant: str = ""

    def called(self, kind: str | None = None) -> list[str]:
        """Returns the called computations, all or only one kind ("body", "calls", ...)."""
        return [
            name.strip().lstrip("%")
            for attribute, names, single_name in _CALLED.findall(self.attributes)
            if kind in (None, attribute)
            for name in (names.split(",") if names else [single_name])
        ]


@dataclasses.dataclass(frozen=True)
class Program:
    """A module: computation name -> instruction name -> instruction (in order), and the entry."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    def runs(self) -> Iterator[tuple[str, Instruction, int]]:
        """Yields (computation, instruction, runs per call to the program).

        The body of a loop with unknown length counts once (`unknown_loops`). All branches of
        a conditional count.
        """
        for name, times in self._executions().items():
            for instruction in self.computations[name].values():
                yield name, instruction, times

    def fused(self) -> set[str]:
        """Returns the names of computations that are fusion bodies."""
        return {
            called
            for computation in self.computations.values()
            for instruction in computation.values()
            if instruction.opcode == "fusion"
            for called in instruction.called("calls")
        }

    def unknown_loops(self) -> int:
        """Returns the number of loops with unknown length."""
        return sum(
            instruction.opcode == "while" and self.trip_count(instruction) is None
            for name in self._executions()
            for instruction in self.computations[name].values()
        )

    def trip_count(self, loop: Instruction) -> int | None:
        """Returns how often a loop's body runs: the annotated count, or the counter's limit.

        Returns None if the count is unknown.
        """
        annotated = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        if annotated:
            return int(annotated[1])
        (name,) = loop.called("condition")
        condition = self.computations[name]
        limits = [
            int(instruction.constant)
            for instruction in condition.values()
            if instruction.opcode == "constant" and instruction.constant.isdigit()
        ]
        compared = any("direction=LT" in other.attributes for other in condition.values())
        return limits[0] if compared and len(limits) == 1 else None

    def _executions(self) -> dict[str, int]:
        """Returns how often each computation runs; callers come before callees."""
        counts: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
            """Counts a computation, and the computations that it calls."""
            counts[name] = counts.get(name, 0) + times
            for instruction in self.computations[name].values():
                if instruction.opcode in _ELEMENTWISE:
                    continue
                inner = times
                if instruction.opcode == "while":
                    inner *= self.trip_count(instruction) or 1
                for called in instruction.called():
                    visit(called, inner)

        visit(self.entry, 1)
        return counts


def parse(text: str) -> Program:
    """Parses the text that `compiled.as_text()` returns."""
    computations: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    entry = ""
    for line in text.splitlines():
        if not line.startswith(" "):
            header = _HEADER.match(line)
            if header and not line.startswith("HloModule"):
                current = computations[header[1]] = {}
                entry = header[1] if line.startswith("ENTRY") else entry
            continue
        matched = _INSTRUCTION.match(line)
        if matched:
            instruction = _instruction(matched[1], line[matched.end() :])
            current[instruction.name] = instruction
    return Program(computations, entry)


def _instruction(name: str, rest: str) -> Instruction:
    """Parses "SHAPE OPCODE(OPERANDS), ATTRIBUTES"."""
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    opened = rest.index("(", end)
    closed = _closing(rest, opened)
    inside = rest[opened + 1 : closed - 1]
    return Instruction(
        name=name,
        opcode=rest[end:opened].strip(),
        shapes=tuple(
            ArrayShape(
                dtype,
                tuple(map(int, sizes.split(","))) if sizes else (),
                "S(" not in layout,
            )
            for dtype, sizes, layout in _ARRAY.findall(rest[:end])
        ),
        operands=tuple(_OPERAND.findall(inside)),
        attributes=rest[closed:],
        constant=inside,
    )


def _closing(text: str, opened: int) -> int:
    """Returns the position after the parenthesis that matches the parenthesis at `opened`."""
    depth = 0
    for position in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError(f"a parenthesis is not closed: {text[opened : opened + 80]}")


def replica_groups(attributes: str) -> np.ndarray | None:
    """Parses a collective's device groups, int[groups devices]; None if not printed.

    XLA prints lists, a reshaped and transposed range `[2,4]<=[4,2]T(1,0)`, or mesh axes
    `mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}`.
    """
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes)
    if listed:
        groups = re.findall(r"\{([\d, ]+)\}", listed[1])
        return np.asarray([[int(number) for number in group.split(",")] for group in groups])
    ranged = re.search(r"replica_groups=\[([\d,]+)\](<=\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if ranged:
        return _range(ranged[2]).reshape(_numbers(ranged[1]))
    meshed = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^{]*)\))? \{([^}]*)\}", attributes
    )
    if meshed is None:
        return None
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
    ids = _range(f"<={meshed[2]}") if meshed[2] else np.arange(math.prod(sizes.values()))
    chosen = re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", meshed[3])
    shape: list[int] = []
    group_axes: list[int] = []
    for name, size in sizes.items():
        parts = [(int(before), int(part)) for axis, before, part in chosen if axis == name and part]
        if parts:  # a sub-axis: split the axis into the sizes before, inside and after it
            before, part = parts[0]
            group_axes.append(len(shape) + 1)
            shape += [before, part, size // before // part]
            continue
        if any(axis == name for axis, *_ in chosen):
            group_axes.append(len(shape))
        shape.append(size)
    ids_by_group = np.moveaxis(ids.reshape(shape), group_axes, range(-len(group_axes), 0))
    return ids_by_group.reshape(-1, math.prod(shape[axis] for axis in group_axes))


def _range(text: str) -> np.ndarray:
    """Parses "<=[4,2]T(1,0)"."""
    shape, _, permutation = text.removeprefix("<=").partition("T")
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(permutation)) if permutation else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
