"""Key tables: one row an array, read in both directions.

A row names an array of the released file, its place in this project's tree, and how the axes of the
one become the axes of the other:

    Rule("blocks.{layer}.attn.qkv.weight", "backbone/blocks/attention/qkv/kernel",
         "(three h k) d -> d three h k")

`{layer}` counts blocks; in our tree the arrays of equal blocks are stacked on a new leading axis.
`{gate,up}` in a place means that the leading axis of the result is taken apart into these places;
`{query,key,value}` in a name means that the arrays of these names are stacked on a new leading axis
before anything else, where no name, as in `{q_proj,,v_proj}`, stands for zeros that the file leaves
out. A pattern is einops notation, hence a permutation and regrouping of axes: swapping its sides
inverts it, bit by bit, and its left side says which shape the file must have. An axis of one name
has one size within a component (backbone, head, text).
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence

import einops
import numpy as np

from dinotxt_jax.config.architecture import VisionConfig

FIXED_AXES = {"three": 3, "rgb": 3}
"""Axes whose size is known before any file is read: query/key/value, and colour."""

_LAYER = "(?P<layer>0|[1-9][0-9]{0,3})"
_AXES = re.compile(r"\([^)]*\)|\S+")
_BRACES = re.compile(r"\{(\w*(?:,\w*)+)\}")


@dataclasses.dataclass(frozen=True)
class Rule:
    """One array here, and the array or arrays of a released file that it is made of.

    Attributes:
        source: the name in the file; `{layer}` stands for the index of a block.
        place: where it goes in our tree, '/'-separated from the component on.
        axes: einops pattern, file -> ours, of one layer.
        feature: what an array belongs to that a model may lack; all rules of a feature hold as soon
            as the file has one array of it. Rules without a feature always hold.
        keeps_float32: never stored in another dtype here.
    """

    source: str
    place: str
    axes: str
    feature: str = ""
    keeps_float32: bool = False

    @property
    def component(self) -> str:
        """The top of the place: "backbone", "head", "text" or "logit_scale"."""
        return self.place.split("/", 1)[0]

    @property
    def places(self) -> tuple[str, ...]:
        """The places, with `{gate,up}` written out."""
        return _written_out(self.place)

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """The places taken apart: their names from the component on."""
        return tuple(tuple(place.split("/")) for place in self.places)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names, with `{query,key,value}` written out; "" for zeros."""
        return _written_out(self.source)

    @property
    def stacked(self) -> bool:
        """Whether there is one such array a block."""
        return "{layer}" in self.source

    def match(self, key: str) -> re.Match[str] | None:
        """Matches the name of an array in the file; the group `layer` is the index of its block."""
        return next(filter(None, (p.fullmatch(key) for p in _patterns(self.sources))), None)

    def keys(self, layer: int | None = None) -> tuple[str, ...]:
        """The names in the file, "" for zeros."""
        return tuple(s if layer is None else s.format(layer=layer) for s in self.sources)

    def source_axes(self) -> list[list[str]]:
        """Per axis of an array of the file the names it is made of; "1" for one of size one."""
        axes = [axis.strip("()").split() for axis in _AXES.findall(self._sides()[0])]
        return axes[1:] if len(self.sources) > 1 else axes

    def source_shape(self, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
        """The shape in the file; None where an axis has a name that `sizes` lacks."""
        known = self._known(sizes) | {"1": 1}
        return tuple(
            math.prod(known[name] for name in axis) if known.keys() >= set(axis) else None
            for axis in self.source_axes()
        )

    def axis_names(self) -> tuple[str, ...]:
        """The names of the axes of each place, for one layer."""
        axes = tuple(self._sides()[1].split())
        return axes[1:] if len(self.places) > 1 else axes

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of each place, for one layer."""
        known = self._known(sizes)
        return tuple(known[name] for name in self.axis_names())

    def to_ours(
        self, arrays: Sequence[np.ndarray | None], sizes: Mapping[str, int]
    ) -> tuple[np.ndarray, ...]:
        """Arrays of the file as the arrays of the places (views, where numpy can).

        Args:
            arrays: one for each of `sources`, of `source_shape(sizes)`; None where there is none.
            sizes: axis name -> size.
        """
        given = next(array for array in arrays if array is not None)
        filled = [np.zeros_like(given) if array is None else array for array in arrays]
        array = np.stack(filled) if len(filled) > 1 else filled[0]
        ours = einops.rearrange(array, self.axes, **self._used(sizes))
        return tuple(ours) if len(self.places) > 1 else (ours,)

    def to_source(
        self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]
    ) -> tuple[np.ndarray, ...]:
        """The inverse of `to_ours`, for writing a model back under its released names."""
        ours = np.stack(arrays) if len(self.places) > 1 else arrays[0]
        left, right = self._sides()
        array = einops.rearrange(ours, f"{right} -> {left}", **self._used(sizes))
        return tuple(array) if len(self.sources) > 1 else (array,)

    def _sides(self) -> tuple[str, str]:
        left, right = self.axes.split("->")
        return left.strip(), right.strip()

    def _known(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return FIXED_AXES | {"part": len(self.places)} | dict(sizes)

    def _used(self, sizes: Mapping[str, int]) -> dict[str, int]:
        named = set(self.axes.replace("(", " ").replace(")", " ").split())
        return {name: size for name, size in self._known(sizes).items() if name in named}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The key table of one kind of file.

    Attributes:
        name: its short name.
        title: what it is, for people.
        rules: the table.
        alternatives: sets of features of which a file has exactly one.
        ignored: beginnings of names of arrays that have no place here, with the reason.
        vision: what all backbones of this layout share and arrays cannot tell (`VisionConfig`).
        computed: places of arrays that files of this layout leave out, and how to make them.
        synthesised: places of arrays that files of this layout need, though a model may have been
            made from one without, and how to make them.
        preprocessing: how images are prepared for a backbone of this layout.
        described_by_config: whether a `config.json` beside such files describes the model.
        gate_follows_config: whether the activation that `config.json` names is that of a gated MLP
            too; otherwise gates always use silu.
        default_export: whether a model of this architecture is exported in this layout
            if nothing says which layout its parts were read from.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    vision: Mapping[str, object] = dataclasses.field(default_factory=dict)
    computed: Mapping[str, Callable[[VisionConfig], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    synthesised: Mapping[str, Callable[[VisionConfig], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    preprocessing: Mapping[str, object] = dataclasses.field(default_factory=dict)
    described_by_config: bool = False
    gate_follows_config: bool = False
    default_export: Callable[[VisionConfig], bool] = lambda vision: False

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


def _written_out(name: str) -> tuple[str, ...]:
    """`a{b,,c}d` as ("abd", "", "acd")."""
    braces = _BRACES.search(name)
    if braces is None:
        return (name,)
    before, after = name[: braces.start()], name[braces.end() :]
    return tuple(before + part + after if part else "" for part in braces[1].split(","))


@functools.cache
def _patterns(sources: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(source_pattern(source)) for source in sources if source)


def source_pattern(source: str) -> str:
    """The regular expression of a name in which `{layer}` is any number."""
    return re.escape(source).replace(re.escape("{layer}"), _LAYER)
