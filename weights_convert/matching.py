"""Which layout a file has, and whether every array is there and has its shape.

Nothing is asked of the user that the arrays can tell: an axis of the key table has the size that
most arrays give it, so that one wrong array stands out instead of redefining all others.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from dinotxt_jax.errors import UserError
from weights_convert.layouts import LAYOUTS
from weights_convert.layouts.rules import FIXED_AXES, Layout, Rule
from weights_convert.messages import listed, quoted
from weights_convert.sources import SourceArray

_FEWEST_KNOWN = 0.5


@dataclasses.dataclass(frozen=True)
class Entry:
    """One array that the layout calls for: its row of the table, its block, and its name."""

    rule: Rule
    layer: int | None
    key: str


@dataclasses.dataclass(frozen=True)
class Match:
    """A file read with the eyes of one layout.

    Attributes:
        path, arrays: the file.
        layout: the layout.
        entries: the arrays that the layout calls for and the file has.
        depths: component -> number of blocks.
        sizes: component -> axis name -> size.
        missing, unexpected: names of arrays.
        misfits: sentences about arrays of a wrong shape or type.
        ignored: names of arrays that have no place here and need none.
    """

    path: Path
    arrays: Mapping[str, SourceArray]
    layout: Layout
    entries: tuple[Entry, ...]
    depths: Mapping[str, int]
    sizes: Mapping[str, Mapping[str, int]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    ignored: tuple[str, ...]

    @property
    def problems(self) -> str:
        """What does not fit, as one clause; empty if everything does."""
        parts = (
            listed("missing", map(quoted, self.missing)),
            listed("unexpected", map(quoted, self.unexpected)),
            listed("mis-shaped", self.misfits),
        )
        found = "; ".join(part for part in parts if part)
        return f"{self.path} ({self.layout.title}): {found}" if found else ""


def recognise(path: Path, arrays: Mapping[str, SourceArray]) -> Match:
    """Finds the layout of a file: the one with the fewest arrays unexpected, then missing.

    Args:
        path: where the arrays come from, for messages.
        arrays: the arrays of the file.

    Raises:
        UserError: no layout knows at least half of the arrays.
    """
    matches = [match(path, arrays, layout) for layout in LAYOUTS]
    best = min(matches, key=lambda found: (len(found.unexpected), len(found.missing)))
    if len(arrays) - len(best.unexpected) < _FEWEST_KNOWN * len(arrays) or not best.entries:
        names = ", ".join(quoted(key) for key in list(arrays)[:6]) or "none"
        raise UserError(
            f"{path} has no known layout (its {len(arrays)} arrays begin with {names}); known "
            f"are: {', '.join(layout.title for layout in LAYOUTS)}."
        )
    return best


def match(path: Path, arrays: Mapping[str, SourceArray], layout: Layout) -> Match:
    """Reads a file as one layout; what does not fit is noted, not raised."""
    found: dict[str, tuple[Rule, int | None]] = {}
    for key in arrays:
        for rule in layout.rules:
            if matched := rule.match(key):
                found[key] = (rule, _layer_of(rule, matched))
                break
    depths = {component: 0 for component in layout.components}
    for rule, layer in found.values():
        if layer is not None:
            depths[rule.component] = max(depths[rule.component], layer + 1)
    wanted = _wanted(layout, [rule for rule, _ in found.values()], depths)
    entries = tuple(entry for entry in wanted if entry.key in arrays)
    known = {entry.key for entry in entries}
    ignored = tuple(
        key for key in arrays if key not in known and key.split(".")[0] in layout.ignored
    )
    sizes = _measure(layout, entries, arrays)
    return Match(
        path=path,
        arrays=arrays,
        layout=layout,
        entries=entries,
        depths=depths,
        sizes=sizes,
        missing=tuple(entry.key for entry in wanted if entry.key not in arrays),
        unexpected=tuple(key for key in arrays if key not in known and key not in ignored),
        misfits=tuple(_misfits(entries, arrays, sizes)),
        ignored=ignored,
    )


def _layer_of(rule: Rule, matched: re.Match[str]) -> int | None:
    return int(matched["layer"]) if rule.stacked else None


def _wanted(layout: Layout, found: list[Rule], depths: Mapping[str, int]) -> list[Entry]:
    """Every array the layout calls for, given which features and how many blocks the file has."""
    votes = collections.Counter(rule.feature for rule in found)
    features = {"", *votes}
    for choices in layout.alternatives:
        chosen = max(choices, key=lambda feature: votes[feature])
        features = features - set(choices) | {chosen}
    wanted = []
    for rule in layout.rules:
        if rule.feature in features:
            # A file without any block still lacks its first.
            layers = range(max(depths[rule.component], 1)) if rule.stacked else (None,)
            wanted += [Entry(rule, layer, rule.key(layer)) for layer in layers]
    return wanted


def _measure(
    layout: Layout, entries: Iterable[Entry], arrays: Mapping[str, SourceArray]
) -> dict[str, dict[str, int]]:
    """The size of every axis, as the majority of arrays has it."""
    votes: dict[tuple[str, str], collections.Counter[int]] = collections.defaultdict(
        collections.Counter
    )
    for entry in entries:
        axes = entry.rule.source_axes()
        shape = arrays[entry.key].shape
        if len(shape) == len(axes):
            for axis, size in zip(axes, shape, strict=True):
                if len(axis) == 1 and axis[0] not in {"1", *FIXED_AXES}:
                    votes[entry.rule.component, axis[0]][size] += 1
    sizes: dict[str, dict[str, int]] = {component: {} for component in layout.components}
    for (component, name), counter in votes.items():
        sizes[component][name] = counter.most_common(1)[0][0]
    return sizes


def _misfits(
    entries: Iterable[Entry],
    arrays: Mapping[str, SourceArray],
    sizes: Mapping[str, Mapping[str, int]],
) -> Iterable[str]:
    for entry in entries:
        array = arrays[entry.key]
        known = dict(sizes[entry.rule.component])
        if "d" in known:
            # However the width is split into heads, the file has the same shape.
            known |= {"h": 1, "k": known["d"]}
        expected = entry.rule.source_shape(known)
        fits = len(array.shape) == len(expected) and all(
            want in (None, size) for want, size in zip(expected, array.shape, strict=True)
        )
        if not fits:
            yield f"{quoted(entry.key)} has {_shown(array.shape)}, expected {_shown(expected)}"
        elif not is_floating(array.dtype):
            yield f"{quoted(entry.key)} holds {array.dtype} numbers, expected floating point"


def is_floating(dtype: np.dtype) -> bool:
    """Whether a type is floating point, bfloat16 included (which numpy itself does not count)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _shown(shape: Iterable[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
