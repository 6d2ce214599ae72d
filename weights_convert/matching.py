"""Which layout a file has, and whether every array is there and has its shape.

Nothing is asked of the user that the arrays can tell: an axis of the key table has the size that
most arrays give it, so that one wrong array stands out instead of redefining all others. Training
checkpoints wrap the weights: what stands before the names of a layout is found out too.
"""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dinotxt_jax.errors import UserError
from weights_convert.layouts import LAYOUTS
from weights_convert.layouts.rules import FIXED_AXES, Layout, Rule, source_pattern
from weights_convert.messages import listed, quoted
from weights_convert.sources import Checkpoint, SourceArray

_FEWEST_KNOWN = 0.5
_PREFERRED = ("teacher", "model_ema", "ema_model", "ema")
_MOST_PREFIXES = 8
# What torch wraps modules in, and the chunks of blocks of DINOv2's training code (whose second
# number counts through all chunks).
_WRAPPERS = re.compile(r"(?<![^.])(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
_CHUNKS = re.compile(r"(?<![^.])blocks\.\d+\.(?=\d+\.)")


@dataclasses.dataclass(frozen=True)
class LayoutArray:
    """What the layout calls for: a row of the table, its block, and the names in the file.

    A name is "" where the row stands for zeros.
    """

    rule: Rule
    layer: int | None
    keys: tuple[str, ...]

    @property
    def present(self) -> tuple[str, ...]:
        """The names that the file must have."""
        return tuple(filter(None, self.keys))


@dataclasses.dataclass(frozen=True)
class Match:
    """A file read with the eyes of one layout.

    Attributes:
        source: the file.
        arrays: its arrays by the names that the layout knows.
        prefix: what stood before these names in the file.
        layout: the layout.
        entries: what the layout calls for and the file has.
        depths: component -> number of blocks.
        sizes: component -> axis name -> size.
        missing, unexpected: names of arrays.
        misfits: sentences about arrays of a wrong shape or type.
        ignored: names of arrays that have no place here and need none, with the reason.
    """

    source: Checkpoint
    arrays: Mapping[str, SourceArray]
    prefix: str
    layout: Layout
    entries: tuple[LayoutArray, ...]
    depths: Mapping[str, int]
    sizes: Mapping[str, Mapping[str, int]]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[str, ...]
    ignored: Mapping[str, str]

    @property
    def name(self) -> str:
        """The file, for messages."""
        return self.source.name

    @property
    def problems(self) -> str:
        """What does not fit, as one clause; empty if everything does."""
        parts = (
            listed("missing", map(quoted, self.missing)),
            listed("unexpected", map(quoted, self.unexpected)),
            listed("mis-shaped", self.misfits),
        )
        found = "; ".join(part for part in parts if part)
        return f"{self.name} ({self.layout.title}): {found}" if found else ""

    @property
    def badness(self) -> tuple[int, int]:
        """Orders the layouts tried on a file, the best first: arrays known less those wrong."""
        # One absurd block number can make any number of arrays missing.
        missing = min(len(self.missing), self.known // 2)
        return len(self.unexpected) + missing - self.known, len(self.misfits)

    @property
    def known(self) -> int:
        """How many arrays of the file the layout has a place for."""
        return sum(len(entry.present) for entry in self.entries)


def recognise(source: Checkpoint, layout: str | None = None, prefix: str | None = None) -> Match:
    """Finds the layout of a file: the one with most arrays known less those unexpected or missing.

    Args:
        source: the file.
        layout: name of the only layout to try.
        prefix: what stands before the names of the layout; found out if not given.

    Raises:
        UserError: no layout knows at least half of the arrays, or the file holds several models.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"--layout={layout} is not known; known are: {', '.join(LAYOUTS)}.")
    tried = LAYOUTS.values() if layout is None else (LAYOUTS[layout],)
    arrays = _without_wrappers(source)
    matches = [
        match(source, arrays, candidate, found)
        for candidate in tried
        for found in (_prefixes(arrays, candidate) if prefix is None else [prefix])
    ]
    best = min(matches, key=lambda match: match.badness)
    _check_one_model(best, matches)
    considered = sum(not reason.startswith("outside") for reason in best.ignored.values())
    considered += len(best.unexpected) + best.known
    by_chance = best.prefix and best.known < len(best.missing)
    if by_chance or best.known < max(_FEWEST_KNOWN * considered, 1):
        names = ", ".join(quoted(key) for key in list(arrays)[:6]) or "none"
        known = ", ".join(f"{candidate.name} ({candidate.title})" for candidate in tried)
        raise UserError(
            f"{source.name} has no known layout (its {len(arrays)} arrays begin with {names}); "
            f"known are: {known}."
        )
    return best


def _without_wrappers(source: Checkpoint) -> dict[str, SourceArray]:
    """The arrays of a file, names freed of what training frameworks put into them."""
    freed: dict[str, SourceArray] = {}
    for key, array in source.arrays.items():
        if 0 in array.shape:  # a model of transformers without registers has an empty array
            continue
        name = _CHUNKS.sub("blocks.", _WRAPPERS.sub("", key))
        if name in freed:
            raise UserError(
                f"{source.name} has two arrays {quoted(name)} once wrappers are taken off their "
                "names; save the weights of the bare model."
            )
        freed[name] = array
    return freed


def _prefixes(arrays: Iterable[str], layout: Layout) -> list[str]:
    """What stands before most names that a layout knows; several where they are equally many."""
    pattern = _anywhere(layout.rules)
    votes = collections.Counter(
        found["prefix"] for key in arrays if (found := pattern.fullmatch(key))
    )
    most = max(votes.values(), default=0)
    leading = [prefix for prefix, count in votes.items() if count == most]
    for word in _PREFERRED:
        preferred = [prefix for prefix in leading if word in prefix.split(".")]
        if preferred:
            return preferred[:_MOST_PREFIXES]
    return leading[:_MOST_PREFIXES] or [""]


def _check_one_model(best: Match, matches: Iterable[Match]) -> None:
    equal = {
        match.prefix
        for match in matches
        if match.layout is best.layout and match.badness == best.badness
    }
    if len(equal) > 1 and len(best.entries) > 1:
        choices = ", ".join(map(quoted, sorted(equal)))
        raise UserError(
            f"{best.name} holds {len(equal)} models of one kind, under {choices}; choose one with "
            "--prefix."
        )


@functools.cache
def _anywhere(rules: tuple[Rule, ...]) -> re.Pattern[str]:
    """Any name of a table, behind the shortest possible prefix."""
    names = dict.fromkeys(source for rule in rules for source in rule.sources if source)
    # A group can have its name once only.
    alternatives = (source_pattern(name).replace("?P<layer>", "?:") for name in names)
    return re.compile(f"(?P<prefix>(?:[^.]+\\.)*?)(?:{'|'.join(alternatives)})")


def match(
    source: Checkpoint, arrays: Mapping[str, SourceArray], layout: Layout, prefix: str
) -> Match:
    """Reads a file as one layout; what does not fit is noted, not raised."""
    inside = {
        key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
    }
    ignored = {key: f"outside {prefix!r}" for key in arrays if not key.startswith(prefix)}
    found: list[tuple[Rule, int | None]] = []
    for key in inside:
        for rule in layout.rules:
            if matched := rule.match(key):
                found.append((rule, _layer_of(rule, matched)))
                break
    depths = {component: 0 for component in layout.components}
    for rule, layer in found:
        if layer is not None:
            depths[rule.component] = max(depths[rule.component], layer + 1)
    wanted = _wanted(layout, [rule for rule, _ in found], depths)
    entries = tuple(entry for entry in wanted if all(key in inside for key in entry.present))
    known = {key for entry in wanted for key in entry.present}
    for key in inside:
        for beginning, reason in layout.ignored.items():
            if key not in known and key.startswith(beginning):
                ignored[key] = reason
    sizes = _measure(layout, entries, inside)
    return Match(
        source=source,
        arrays=inside,
        prefix=prefix,
        layout=layout,
        entries=entries,
        depths=depths,
        sizes=sizes,
        missing=tuple(key for entry in wanted for key in entry.present if key not in inside),
        unexpected=tuple(key for key in inside if key not in known and key not in ignored),
        misfits=tuple(_misfits(entries, inside, sizes)),
        ignored=ignored,
    )


def _layer_of(rule: Rule, matched: re.Match[str]) -> int | None:
    return int(matched["layer"]) if rule.stacked else None


def _wanted(layout: Layout, found: Sequence[Rule], depths: Mapping[str, int]) -> list[LayoutArray]:
    """Everything the layout calls for, given which features and how many blocks the file has."""
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
            wanted += [LayoutArray(rule, layer, rule.keys(layer)) for layer in layers]
    return wanted


def _measure(
    layout: Layout, entries: Iterable[LayoutArray], arrays: Mapping[str, SourceArray]
) -> dict[str, dict[str, int]]:
    """The size of every axis, as the majority of arrays has it."""
    votes: dict[tuple[str, str], collections.Counter[int]] = collections.defaultdict(
        collections.Counter
    )
    for entry in entries:
        axes = entry.rule.source_axes()
        for key in entry.present:
            shape = arrays[key].shape
            if len(shape) == len(axes):
                for axis, size in zip(axes, shape, strict=True):
                    if len(axis) == 1 and axis[0] not in {"1", *FIXED_AXES}:
                        votes[entry.rule.component, axis[0]][size] += 1
    sizes: dict[str, dict[str, int]] = {component: {} for component in layout.components}
    for (component, name), counter in votes.items():
        sizes[component][name] = counter.most_common(1)[0][0]
    return sizes


def _misfits(
    entries: Iterable[LayoutArray],
    arrays: Mapping[str, SourceArray],
    sizes: Mapping[str, Mapping[str, int]],
) -> Iterable[str]:
    for entry in entries:
        known = dict(sizes[entry.rule.component])
        if "d" in known:
            # However the width is split into heads, the file has the same shape.
            known |= {"h": 1, "k": known["d"]}
        expected = entry.rule.source_shape(known)
        for key in entry.present:
            array = arrays[key]
            fits = len(array.shape) == len(expected) and all(
                want in (None, size) for want, size in zip(expected, array.shape, strict=True)
            )
            if not fits:
                yield f"{quoted(key)} has {_shown(array.shape)}, expected {_shown(expected)}"
            elif not is_floating(array.dtype):
                yield f"{quoted(key)} holds {array.dtype} numbers, expected floating point"


def is_floating(dtype: np.dtype) -> bool:
    """Whether a type is floating point, bfloat16 included (which numpy itself does not count)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _shown(shape: Iterable[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
