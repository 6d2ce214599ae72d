"""Key tables: one row per array, applied in both directions.

A row holds an array's name in the released file, the place in this project's tree, and how axes map
from one to the other:

    Rule("blocks.{layer}.attn.qkv.weight", "backbone/blocks/attention/qkv/kernel",
         "(three h k) d -> d three h k")

`{layer}` is a block index; in our tree the arrays from all blocks are stacked on a new leading
axis. `{gate,up}` in a place splits the result's leading axis into these places; `{gate,up+}` gives
the second one a new leading axis of size 1.
`{query,key,value}` in a name first stacks the arrays with these names on a new leading axis; an
empty name, as in `{q_bias,,v_bias}`, stands for zeros that no file has. A pattern uses
einops notation and only permutes and regroups axes: swapping the two sides inverts it, bit by bit,
and the left side gives the shape in the file. An axis name has a single size within a component
(backbone, head, text).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence

import einops
import numpy as np

from dinotxt_jax.config.architecture import VisionConfig

FIXED_AXES = {"three": 3, "rgb": 3}
"""Axes with known size: query/key/value, and colour."""

_LAYER = "(?P<layer>0|[1-9][0-9]{0,3})"
_AXES = re.compile(r"\([^)]*\)|\S+")
_BRACES = re.compile(r"\{(\w*(?:,\w*\+?)+)\}")
# Our number from the file's, and back, rounded once.
_FUNCTIONS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], ...]] = {
    "negative_log": (
        lambda values: -np.log(values.astype(np.float64)),
        lambda values: np.exp(-values.astype(np.float64)),
    ),
}


@dataclasses.dataclass(frozen=True)
class Rule:
    """A row in a layout: an array in our tree and the file's array(s) that it is made from.

    Attributes:
        source: the name in the file; `{layer}` stands for a block index.
        place: the place in our tree, '/'-separated, starting with the component.
        axes: einops pattern, file -> ours, for one layer.
        feature: optional model feature that the array belongs to. If the file has any array for
            a feature, all rules for this feature apply. Rules without a feature always apply.
        keeps_float32: always stored in float32.
        switches: for each name, the key in `config.json` that says whether files have such an
            array; without it the values are zeros. Empty for arrays that every file has.
        function: "negative_log" if our number is -log of the file's: a temperature that divides the
            cosines is stored here as the logarithm of the factor that multiplies them.
        absent: positions among the names of arrays that this file does not have; in a table, of
            those that files usually do not have.
    """

    source: str
    place: str
    axes: str
    feature: str = ""
    keeps_float32: bool = False
    switches: tuple[str, ...] = ()
    function: str = ""
    absent: frozenset[int] = frozenset()

    @property
    def component(self) -> str:
        """The component: "backbone", "head", "text", "logit_scale" or "logit_bias"."""
        return self.place.split("/", 1)[0]

    @property
    def places(self) -> tuple[str, ...]:
        """The places, with `{gate,up}` expanded."""
        return tuple(place.removesuffix("+") for place in self._expanded_place)

    @property
    def _expanded_place(self) -> tuple[str, ...]:
        return _written_out(self.place)

    @property
    def _widened(self) -> tuple[bool, ...]:
        """For each place, whether it has an additional leading axis of size 1."""
        return tuple(place.endswith("+") for place in self._expanded_place)

    @property
    def paths(self) -> tuple[tuple[str, ...], ...]:
        """The places as tuples of names, starting with the component."""
        return tuple(tuple(place.split("/")) for place in self.places)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that files may have, with `{query,key,value}` expanded; "" for zeros."""
        return _written_out(self.source)

    @property
    def sources(self) -> tuple[str, ...]:
        """The names that this file has; "" for zeros."""
        return tuple("" if i in self.absent else name for i, name in enumerate(self.names))

    @property
    def stacked(self) -> bool:
        """Whether there is one such array per block."""
        return "{layer}" in self.source

    def match(self, key: str) -> re.Match[str] | None:
        """Matches an array's name in the file; the group `layer` is the block index."""
        return next(filter(None, (p.fullmatch(key) for p in _patterns(self.names))), None)

    def as_in(self, keys: Collection[str], switches: Mapping[str, bool]) -> Rule:
        """Returns the rule for a file that may lack some names.

        Args:
            keys: the names of all arrays in the file.
            switches: the switches that the file's `config.json` states.
        """
        absent = []
        for i, (name, switch) in enumerate(zip(self.names, self.switches, strict=False)):
            (pattern,) = _patterns((name,))
            is_usual = i not in self.absent or any(pattern.fullmatch(key) for key in keys)
            if not switches.get(switch, is_usual):
                absent.append(i)
        return dataclasses.replace(self, absent=frozenset(absent)) if self.switches else self

    def keys(self, layer: int | None = None) -> tuple[str, ...]:
        """The names in the file, "" for zeros."""
        return tuple(s if layer is None else s.format(layer=layer) for s in self.sources)

    def source_axes(self) -> list[list[str]]:
        """The names that each array axis in the file combines; "1" for an axis with size 1."""
        axes = [axis.strip("()").split() for axis in _AXES.findall(self._sides()[0])]
        return axes[1:] if len(self.names) > 1 else axes

    def source_shape(self, sizes: Mapping[str, int]) -> tuple[int | None, ...]:
        """The shape in the file; None for axes that `sizes` does not determine."""
        axis_sizes = self._known(sizes) | {"1": 1}
        return tuple(
            math.prod(axis_sizes[name] for name in axis) if axis_sizes.keys() >= set(axis) else None
            for axis in self.source_axes()
        )

    def axis_names(self) -> tuple[str, ...]:
        """The axis names in each place, for one layer; "(g j)" for an axis that combines two."""
        axes = tuple(_AXES.findall(self._sides()[1]))
        return axes[1:] if len(self.places) > 1 else axes

    def shape(self, sizes: Mapping[str, int], number: int = 0) -> tuple[int, ...]:
        """The shape in place `number`, for one layer."""
        axis_sizes = self._known(sizes) | {"1": 1}
        shape = tuple(
            math.prod(axis_sizes[name] for name in axis.strip("()").split())
            for axis in self.axis_names()
        )
        return (1, *shape) if self._widened[number] else shape

    def to_ours(
        self, arrays: Sequence[np.ndarray | None], sizes: Mapping[str, int]
    ) -> tuple[np.ndarray, ...]:
        """Converts the file's arrays to the arrays for all places (views where possible).

        Args:
            arrays: one per name in `sources`, with shape `source_shape(sizes)`; None for zeros.
            sizes: axis name -> size.
        """
        present = [array for array in arrays if array is not None]
        shape = tuple(size or 0 for size in self.source_shape(sizes))
        zeros = np.zeros_like(present[0]) if present else np.zeros(shape, np.float32)
        filled = [zeros if array is None else array for array in arrays]
        array = np.stack(filled) if len(filled) > 1 else filled[0]
        ours = einops.rearrange(array, self.axes, **self._used(sizes))
        if self.function:
            ours = np.asarray(_FUNCTIONS[self.function][0](ours))
        parts = tuple(ours) if len(self.places) > 1 else (ours,)
        return tuple(p[None] if w else p for p, w in zip(parts, self._widened, strict=True))

    def to_source(
        self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int]
    ) -> tuple[np.ndarray, ...]:
        """Inverts `to_ours`, for exporting a model."""
        parts = [a[0] if w else a for a, w in zip(arrays, self._widened, strict=True)]
        ours = np.stack(parts) if len(self.places) > 1 else parts[0]
        if self.function:
            ours = np.asarray(_FUNCTIONS[self.function][1](ours))
        left, right = self._sides()
        array = einops.rearrange(ours, f"{right} -> {left}", **self._used(sizes))
        return tuple(array) if len(self.names) > 1 else (array,)

    def _sides(self) -> tuple[str, str]:
        left, right = self.axes.split("->")
        return left.strip(), right.strip()

    def _known(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return FIXED_AXES | {"part": len(self.places)} | dict(sizes)

    def _used(self, sizes: Mapping[str, int]) -> dict[str, int]:
        named = set(self.axes.replace("(", " ").replace(")", " ").split())
        known = self._known(sizes).items()
        return {name: size for name, size in known if name in named and name.isidentifier()}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout that a kind of checkpoint file has.

    Attributes:
        name: short name.
        title: description for messages.
        rules: the key table.
        alternatives: feature sets; a file has exactly one feature from each set.
        ignored: name prefixes for arrays that the model does not need, with the reason.
        vision: `VisionConfig` fields that all backbones in this layout share and that array shapes
            do not determine.
        text: the same for `TextConfig` fields of text transformers.
        headless: whether texts are compared with the class token of the backbone, or with its
            projection, instead of the output of trained head blocks.
        config: which files next to a checkpoint describe the model (`configs.READERS`).
        asked: settings that must be known from `--set` or from a file next to the checkpoint, with
            the reason, because wrong ones change the outputs and arrays do not show them.
        marks: array names that only one publisher writes -> the settings that this implies.
        vision_heads, text_heads: (width, depth) -> number of heads in released models.
        rivals: layouts that have the same arrays; a file that fits both needs `--layout`, except
            for a file in the format `native_format`, which only this layout's publisher uses.
        pieces: vocabulary size -> a key of `tokenizers.PIECE_SETTINGS`, for text transformers that
            were trained with a sentencepiece file.
        note: a sentence to print after a conversion.
        computed: place -> function for arrays that files in this layout do not store.
        synthesised: place -> function for arrays that files in this layout require but that a model
            converted from another layout may lack.
        preprocessing: default image preprocessing for this layout.
        gate_follows_config: whether a gated MLP uses the activation that `config.json` names;
            otherwise gates always use silu.
        default_export: whether this layout exports a backbone with a given architecture, or parts
            trained on it, if no layout is recorded for their sources.
    """

    name: str
    title: str
    rules: tuple[Rule, ...]
    alternatives: tuple[tuple[str, ...], ...] = ()
    ignored: Mapping[str, str] = dataclasses.field(default_factory=dict)
    vision: Mapping[str, object] = dataclasses.field(default_factory=dict)
    text: Mapping[str, object] = dataclasses.field(default_factory=dict)
    headless: bool = False
    config: str = ""
    asked: Mapping[str, str] = dataclasses.field(default_factory=dict)
    marks: Mapping[str, Mapping[str, object]] = dataclasses.field(default_factory=dict)
    vision_heads: Mapping[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    text_heads: Mapping[tuple[int, int], int] = dataclasses.field(default_factory=dict)
    rivals: tuple[str, ...] = ()
    native_format: str = ""
    pieces: Callable[[int], str] | None = None
    note: str = ""
    computed: Mapping[str, Callable[[VisionConfig], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    synthesised: Mapping[str, Callable[[VisionConfig], np.ndarray]] = dataclasses.field(
        default_factory=dict
    )
    preprocessing: Mapping[str, object] = dataclasses.field(default_factory=dict)
    gate_follows_config: bool = False
    default_export: Callable[[VisionConfig], bool] = lambda vision: False

    @property
    def components(self) -> tuple[str, ...]:
        """The model components that a file in this layout contains."""
        return tuple(dict.fromkeys(rule.component for rule in self.rules))


def under(source: str, place: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """Adds one prefix to all file names in a table, and another to all places."""
    return tuple(
        dataclasses.replace(rule, source=source + rule.source, place=place + rule.place)
        for rule in rules
    )


def _written_out(name: str) -> tuple[str, ...]:
    """Expands `a{b,,c}d` to ("abd", "", "acd")."""
    braces = _BRACES.search(name)
    if braces is None:
        return (name,)
    before, after = name[: braces.start()], name[braces.end() :]
    return tuple(before + part + after if part else "" for part in braces[1].split(","))


@functools.cache
def _patterns(sources: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(source_pattern(source)) for source in sources if source)


def source_pattern(source: str) -> str:
    """Returns a regular expression for a name, in which `{layer}` matches any number."""
    return re.escape(source).replace(re.escape("{layer}"), _LAYER)
