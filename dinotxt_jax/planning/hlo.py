"""Optimised programs as XLA prints them: instructions, and how often each of them runs."""

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
# Computations that are what an instruction does to single elements.
_ELEMENTWISE = {
    *("reduce", "all-reduce", "reduce-scatter", "scatter", "sort", "map", "reduce-window"),
    *("select-and-scatter", "all-reduce-start", "reduce-scatter-start"),
}


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """An array of one device: its dtype's name, dimensions, and whether it lies in HBM."""

    dtype: str
    dimensions: tuple[int, ...]
    in_hbm: bool = True

    @property
    def bytes(self) -> float:
        """Without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = int(digits[0]) if digits else 8 * (self.dtype == "pred")
        return math.prod(self.dimensions) * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name, opcode: as printed.
        shapes: of the result; several if it is a tuple.
        operands: names of instructions of the same computation.
        attributes: all that is printed behind the operands.
        constant: what is printed in place of operands.
    """

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    operands: tuple[str, ...]
    attributes: str
    constant: str = ""

    def called(self, kind: str | None = None) -> list[str]:
        """Computations that the instruction runs, of one kind ("body", "calls", ...) or all."""
        return [
            name.strip().lstrip("%")
            for found, several, one in _CALLED.findall(self.attributes)
            if kind in (None, found)
            for name in (several.split(",") if several else [one])
        ]


@dataclasses.dataclass(frozen=True)
class Program:
    """A module's computations by name, instructions by name in each (in order), and the entry."""

    computations: Mapping[str, Mapping[str, Instruction]]
    entry: str

    def runs(self) -> Iterator[tuple[str, Instruction, int]]:
        """Every instruction with its computation and how often one call of the program runs it.

        A loop whose length the text does not tell counts once (`unknown_loops`). All branches of
        a conditional count.
        """
        for name, times in self._executions().items():
            for instruction in self.computations[name].values():
                yield name, instruction, times

    def fused(self) -> set[str]:
        """Names of the computations that are the inside of a fusion."""
        return {
            called
            for computation in self.computations.values()
            for instruction in computation.values()
            if instruction.opcode == "fusion"
            for called in instruction.called("calls")
        }

    def unknown_loops(self) -> int:
        """Loops whose length the text does not tell."""
        return sum(
            instruction.opcode == "while" and self.trip_count(instruction) is None
            for name in self._executions()
            for instruction in self.computations[name].values()
        )

    def trip_count(self, loop: Instruction) -> int | None:
        """How often a loop's body runs, where the text tells: noted, or a counter's limit."""
        noted = re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', loop.attributes)
        if noted:
            return int(noted[1])
        (name,) = loop.called("condition")
        condition = self.computations[name]
        limits = [
            int(instruction.constant)
            for instruction in condition.values()
            if instruction.opcode == "constant" and instruction.constant.isdigit()
        ]
        compared = any("direction=LT" in one.attributes for one in condition.values())
        return limits[0] if compared and len(limits) == 1 else None

    def _executions(self) -> dict[str, int]:
        """How often each computation that runs does; callers come before what they call."""
        counts: dict[str, int] = {}

        def visit(name: str, times: int) -> None:
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
    """Reads what `compiled.as_text()` gives."""
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
    """Of "SHAPE OPCODE(OPERANDS), ATTRIBUTES"."""
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
    """The place behind the parenthesis that closes the one at `opened`."""
    depth = 0
    for place in range(opened, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    raise ValueError(f"a parenthesis is not closed: {text[opened : opened + 80]}")


def replica_groups(attributes: str) -> np.ndarray | None:
    """Numbers of the devices that take part together, int[groups devices]; None if not printed.

    Printed as lists, as a reshaped and transposed range `[2,4]<=[4,2]T(1,0)`, or as axes of a mesh
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
    places: list[int] = []
    for name, size in sizes.items():
        parts = [(int(before), int(part)) for axis, before, part in chosen if axis == name and part]
        if parts:  # a part of an axis: between what comes before it and what is left
            before, part = parts[0]
            places.append(len(shape) + 1)
            shape += [before, part, size // before // part]
            continue
        if any(axis == name for axis, *_ in chosen):
            places.append(len(shape))
        shape.append(size)
    together = np.moveaxis(ids.reshape(shape), places, range(-len(places), 0))
    return together.reshape(-1, math.prod(shape[place] for place in places))


def _range(text: str) -> np.ndarray:
    """Of "<=[4,2]T(1,0)"."""
    shape, _, permutation = text.removeprefix("<=").partition("T")
    sizes = _numbers(shape)
    numbers = np.arange(math.prod(sizes)).reshape(sizes)
    return numbers.transpose(_numbers(permutation)) if permutation else numbers


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]
