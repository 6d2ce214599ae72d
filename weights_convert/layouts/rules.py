"""Key tables: one row an array, read in both directions.

A row names an array of the released file, its place in this project's tree, and how the axes of the
one become the axes of the other:

    Rule("blocks.{layer}.attn.qkv.weight", "backbone/blocks/attention/qkv/kernel",
         "(three h k) d -> d three h k")

`{layer}` counts blocks; in our tree the arrays of equal blocks are stacked on a new leading axis.
`{gate,up}` in a place means that the leading axis of the result is taken apart into these places. A
pattern is einops notation, hence a permutation and regrouping of axes: swapping its sides inverts
it, bit by bit, and its left side says which shape the file must have. An axis of one name has one
size within a component (backbone, head, text).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import einops
import numpy as np

FIXED_AXES = {"three": 3, "rgb": 3}
"""Axes whose size is known before any file is read: query/key/value, and colour."""

_LAYER = "(?P<layer>0|[1-9][0-9]{0,3})"
_AXES = re.compile(r"\([^)]*\)|\S+")
_BRACES = re.compile(r"\{(\w+(?:,\w+)+)\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One array of a released file and its place here.

    Attributes:
        source: its name in the file; `{layer}` stands for the index of a block.
        place: where it goes in our tree, '/'-separated from the component on.
        axes: einops pattern, file -> ours, of one layer.
        feature: what an array belongs to that a model may lack; all rules of a feature hold as soon
            as the file has one array of it. Rules without a feature always hold.
    """

    source: str
    place: str
    axes: str
    feature: str = ""

    @property
    def component(self) -> str:
        """The top of the place: "backbone", "head" or "text"."""
        return self.place.split("/", 1)[0]

    @property
    def places(self) -> tuple[str, ...]:
        """The places, with `{gate,up}` written out."""
        braces = _BRACES.search(self.place)
        if braces is None:
            return (self.place,)
        return tuple(
            self.place[: braces.start()] + part + self.place[braces.end() :]
            for part in braces[1].split(",")
        )

    @property
    def stacked(self) -> bool:
        """Whether there is one such array a block."""
        return "{layer}" in self.source

    def match(self, key: str) -> re.Match[str] | None:
        """Matches the name of an array in the file; the group `layer` is the index of its block."""
        return _source_pattern(self.source).fullmatch(key)

    def key(self, layer: int | None = None) -> str:
        """The name in the file."""
        return self.source if layer is None else self.source.format(layer=layer)

    def source_axes(self) -> list[list[str]]:
        """Per axis of the file the names that it is made of; "1" for an axis of size one."""
        return [axis.strip("()").split() for axis in _AXES.findall(self._sides()[0])]

    def source_shape(self, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
        """The shape in the file; None where an axis has a name that `sizes` lacks."""
        known = self._known(sizes) | {"1": 1}
        return tuple(
            math.prod(known[name] for name in axis) if known.keys() >= set(axis) else None
            for axis in self.source_axes()
        )

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of each place, for one layer."""
        known = self._known(sizes)
        axes = self._sides()[1].split()
        return tuple(known[name] for name in (axes[1:] if len(self.places) > 1 else axes))

    def to_ours(self, array: np.ndarray, sizes: Mapping[str, int]) -> tuple[np.ndarray, ...]:
        """An array of the file as the arrays of the places (views, where numpy can).

        Args:
            array: of `source_shape(sizes)`.
            sizes: axis name -> size.
        """
        ours = einops.rearrange(array, self.axes, **self._used(sizes))
        return tuple(ours) if len(self.places) > 1 else (ours,)

    def to_source(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        """The inverse of `to_ours`, for writing a model back under its released names."""
        ours = np.stack(arrays) if len(self.places) > 1 else arrays[0]
        left, right = self._sides()
        return einops.rearrange(ours, f"{right} -> {left}", **self._used(sizes))

    def _sides(self) -> tuple[str, str]:
        left, right = self.axes.split("->")
        return left.strip(), right.strip()

    def _known(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return FIXED_AXES | {"part": len(self.places)} | dict(sizes)

    def _used(self, sizes: Mapping[str, int]) -> dict[str, int]:
        named = {name for axis in self.source_axes() for name in axis} - {"1"}
        return {name: size for name, size in self._known(sizes).items() if name in named}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The key table of one kind of file.

    Attributes:
        name: its short name.
        title: what it is, for people.
        rules: the table.
        alternatives: sets of features of which a file has exactly one.
        ignored: first names (before the dot) of arrays that have no place here, with the reason.
        offset_positions: without register tokens, positions are interpolated by DINOv2's "offset"
            rule.
        preprocessing: how images are prepared for a backbone of this layout.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    offset_positions: bool = False
    preprocessing: Mapping[str, object] = dataclasses.field(default_factory=dict)

    @property
    def components(self) -> tuple[str, ...]:
        """The parts of a model that a file of this layout holds."""
        return tuple(dict.fromkeys(rule.component for rule in self.rules))


def under(source: str, place: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """A table moved: every name in the file gets one prefix, every place another."""
    return tuple(
        dataclasses.replace(rule, source=source + rule.source, place=place + rule.place)
        for rule in rules
    )


@functools.cache
def _source_pattern(source: str) -> re.Pattern[str]:
    return re.compile(re.escape(source).replace(re.escape("{layer}"), _LAYER))
