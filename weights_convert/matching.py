"""Recognises a file's layout, and checks that every array is present with the right shape.

The user is not asked for anything that the arrays determine. Each axis in the key table gets the
size on which most arrays agree, so one wrong array is reported instead of redefining all others.
Training checkpoints wrap the weights, so the array name prefix is recognised too.
"""

import collections
import contextlib
import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dinotxt_jax.errors import UserError
from weights_convert.configs import described_beside
from weights_convert.layouts import LAYOUTS
from weights_convert.layouts.rules import FIXED_AXES, Layout, Rule, source_pattern
from weights_convert.messages import listed, quoted
from weights_convert.sources import Checkpoint, SourceArray

_FEWEST_KNOWN = 0.5
_PREFERRED = ("teacher", "model_ema", "ema_model", "ema")
_MOST_PREFIXES = 8
# Names that torch adds for wrapped modules, and block chunks in DINOv2's training code (the second
# number counts blocks across all chunks).
_WRAPPERS = re.compile(r"(?<![^.])(?:_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
_CHUNKS = re.compile(r"(?<![^.])blocks\.\d+\.(?=\d+\.)")


@dataclasses.dataclass(frozen=True)
class LayoutArray:
    """An array that the layout requires: a row in the table, the block, and the names in the file.

    A name is "" if the row stands for zeros.
    """

    rule: Rule
    layer: int | None
    keys: tuple[str, ...]

    @property
    def present(self) -> tuple[str, ...]:
        """The names that the file must contain."""
        return tuple(filter(None, self.keys))


@dataclasses.dataclass(frozen=True)
class Match:
    """A file interpreted by one layout.

    Attributes:
        source: the file.
        arrays: the arrays under `prefix`, by name without the prefix.
        prefix: prefix that the file puts before these names.
        layout: the layout.
        entries: the layout's entries that the file contains.
        depths: component -> number of blocks.
        sizes: component -> axis name -> size.
        missing, unexpected: array names.
        misfits: clauses about arrays with a wrong shape or dtype.
        ignored: names of arrays that the model does not need, with the reason.
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
        """All differences from the layout, as one clause; empty if there are none."""
        parts = (
            listed("missing", map(quoted, self.missing)),
            listed("unexpected", map(quoted, self.unexpected)),
            listed("mis-shaped", self.misfits),
        )
        problems = "; ".join(part for part in parts if part)
        return f"{self.name} ({self.layout.title}): {problems}" if problems else ""

    @property
    def badness(self) -> tuple[int, int]:
        """Sort key for the layouts tried on a file, best first: wrong arrays minus known ones."""
        # A single absurd block number can make any number of arrays missing.
        missing = min(len(self.missing), self.known // 2)
        return len(self.unexpected) + missing - self.known, len(self.misfits)

    @property
    def known(self) -> int:
        """Number of arrays in the file that the layout knows."""
        return sum(len(entry.present) for entry in self.entries)


def recognise(source: Checkpoint, layout: str | None = None, prefix: str | None = None) -> Match:
    """Finds the layout with the most known arrays minus unexpected and missing ones.

    Args:
        source: the file.
        layout: the only layout to try, by name.
        prefix: prefix of the array names; None recognises it.

    Raises:
        UserError: no layout knows at least half the arrays, or the file holds several models.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UserError(f"--layout={layout} is not known; known are: {', '.join(LAYOUTS)}.")
    candidates = LAYOUTS.values() if layout is None else (LAYOUTS[layout],)
    arrays = _without_wrappers(source)
    matches = [
        match(source, arrays, candidate, text)
        for candidate in candidates
        for text in (_prefixes(arrays, candidate) if prefix is None else [prefix])
    ]
    best = min(matches, key=lambda match: match.badness)
    considered = sum(not reason.startswith("outside") for reason in best.ignored.values())
    considered += len(best.unexpected) + best.known
    _check_no_other_model(source, arrays)
    by_chance = best.prefix and best.known < len(best.missing)
    if by_chance or best.known < max(_FEWEST_KNOWN * considered, 1):
        names = ", ".join(quoted(key) for key in list(arrays)[:6]) or "none"
        layouts = ", ".join(f"{candidate.name} ({candidate.title})" for candidate in candidates)
        raise UserError(
            f"{source.name} has no known layout (its {len(arrays)} arrays begin with {names}); "
            f"known are: {layouts}."
        )
    _check_one_model(best, matches)
    return _without_rival(best, matches)


# Names of arrays in models that exist but are not read, with a description.
_OTHER_MODELS = {
    "attnpool.": "a ResNet of CLIP",
    "visual.trunk.stages.": "a convolutional network of open_clip",
}


def _check_no_other_model(source: Checkpoint, arrays: Iterable[str]) -> None:
    for key in arrays:
        for name, description in _OTHER_MODELS.items():
            if name in key:
                raise UserError(
                    f"{source.name} is {description} (it has {quoted(key)}), expected a model "
                    "with a vision transformer; convert one of these."
                )


def _without_wrappers(source: Checkpoint) -> dict[str, SourceArray]:
    """Returns a file's arrays, without the names that training frameworks insert."""
    unwrapped: dict[str, SourceArray] = {}
    for key, array in source.arrays.items():
        if 0 in array.shape:  # a model without registers in transformers has an empty array
            continue
        name = _CHUNKS.sub("blocks.", _WRAPPERS.sub("", key))
        if name in unwrapped:
            raise UserError(
                f"{source.name} has two arrays {quoted(name)} once wrappers are taken off their "
                "names; save the weights of the bare model."
            )
        unwrapped[name] = array
    return unwrapped


def _prefixes(arrays: Iterable[str], layout: Layout) -> list[str]:
    """Returns the prefix that most known names have; several if they are equally common."""
    pattern = _anywhere(layout.rules)
    votes = collections.Counter(
        matched["prefix"] for key in arrays if (matched := pattern.fullmatch(key))
    )
    highest = max(votes.values(), default=0)
    leading = [prefix for prefix, count in votes.items() if count == highest]
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


def _without_rival(best: Match, matches: Iterable[Match]) -> Match:
    """Returns the match of the layout that a file has if its arrays fit two.

    Raises:
        UserError: neither the arrays nor the format decide, and the outputs differ.
    """
    for other in matches:
        if other.badness != best.badness or best.problems:
            continue
        for one, two in ((best, other), (other, best)):
            if two.layout.name not in one.layout.rivals:
                continue
            if one.source.format == one.layout.native_format:
                return one
            raise UserError(
                f"{best.name} may be a {one.layout.title} or a {two.layout.title}, whose outputs "
                f"differ at other image sizes; say which with --layout={one.layout.name} or "
                f"--layout={two.layout.name}."
            )
    return best


@functools.cache
def _anywhere(rules: tuple[Rule, ...]) -> re.Pattern[str]:
    """Matches any name in a table after the shortest possible prefix."""
    names = dict.fromkeys(name for rule in rules for name in rule.names if name)
    # A regular expression may define a group name only once.
    alternatives = (source_pattern(name).replace("?P<layer>", "?:") for name in names)
    return re.compile(f"(?P<prefix>(?:[^.]+\\.)*?)(?:{'|'.join(alternatives)})")


def match(
    source: Checkpoint, arrays: Mapping[str, SourceArray], layout: Layout, prefix: str
) -> Match:
    """Interprets a file by one layout; problems are recorded, not raised."""
    inside = {
        key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
    }
    ignored = {key: f"outside {prefix!r}" for key in arrays if not key.startswith(prefix)}
    matched_rows: list[tuple[Rule, int | None]] = []
    for key in inside:
        for rule in layout.rules:
            if matched := rule.match(key):
                matched_rows.append((rule, _layer_of(rule, matched)))
                break
    depths = {component: 0 for component in layout.components}
    for rule, layer in matched_rows:
        # There are fewer blocks than arrays: a larger number is one wrong name, not a deep model.
        if layer is not None and layer < len(inside):
            depths[rule.component] = max(depths[rule.component], layer + 1)
    features = [rule.feature for rule, _ in matched_rows]
    required = _required(layout, _rules_for(source, inside, layout, prefix), features, depths)
    entries = tuple(entry for entry in required if all(key in inside for key in entry.present))
    known_keys = {key for entry in required for key in entry.present}
    for key in inside:
        for beginning, reason in layout.ignored.items():
            if key not in known_keys and key.startswith(beginning):
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
        missing=tuple(key for entry in required for key in entry.present if key not in inside),
        unexpected=tuple(key for key in inside if key not in known_keys and key not in ignored),
        misfits=tuple(_misfits(entries, inside, sizes)),
        ignored=ignored,
    )


def _layer_of(rule: Rule, matched: re.Match[str]) -> int | None:
    return int(matched["layer"]) if rule.stacked else None


def _rules_for(
    source: Checkpoint, inside: Mapping[str, SourceArray], layout: Layout, prefix: str
) -> tuple[Rule, ...]:
    """Returns the rules, which know the arrays that such a file does not have."""
    if not any(rule.switches for rule in layout.rules):
        return layout.rules
    switches = {}
    # A config that cannot be read is an error only if the layout that needs it is chosen.
    with contextlib.suppress(UserError):
        switches = described_beside(source.files[0], layout.config, prefix).get("switches", {})
    return tuple(rule.as_in(inside, switches) for rule in layout.rules)


def _required(
    layout: Layout, rules: Iterable[Rule], votes: Sequence[str], depths: Mapping[str, int]
) -> list[LayoutArray]:
    """Returns all entries for a file's number of blocks and features, one vote for each array."""
    counts = collections.Counter(votes)
    features = {"", *votes}
    for choices in layout.alternatives:
        chosen = max(choices, key=lambda feature: counts[feature])
        features = features - set(choices) | {chosen}
    entries = []
    for rule in rules:
        if rule.feature in features:
            # In a file without any block, the first block is reported as missing.
            layers = range(max(depths[rule.component], 1)) if rule.stacked else (None,)
            entries += [LayoutArray(rule, layer, rule.keys(layer)) for layer in layers]
    return entries


def _measure(
    layout: Layout, entries: Iterable[LayoutArray], arrays: Mapping[str, SourceArray]
) -> dict[str, dict[str, int]]:
    """Returns the size on which most arrays agree, for every axis."""
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
                    elif axis == ["p", "q", "rgb"]:  # a patch in one axis is square
                        for name in ("p", "q"):
                            side = math.isqrt(size // FIXED_AXES["rgb"])
                            votes[entry.rule.component, name][side] += 1
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
        axis_sizes = dict(sizes[entry.rule.component])
        if "d" in axis_sizes and "h" not in axis_sizes:
            # The shape in the file does not depend on how the width is split into heads.
            axis_sizes |= {"h": 1, "k": axis_sizes["d"]}
        expected = entry.rule.source_shape(axis_sizes)
        for key in entry.present:
            array = arrays[key]
            fits = len(array.shape) == len(expected) and all(
                want in (None, size) for want, size in zip(expected, array.shape, strict=True)
            )
            if not fits:
                actual = _formatted(array.shape)
                yield f"{quoted(key)} has {actual}, expected {_formatted(expected)}"
            elif not is_floating(array.dtype):
                expected_kind = "expected floating point of 16 to 64 bits"
                yield f"{quoted(key)} holds {array.dtype} numbers, {expected_kind}"


def is_floating(dtype: np.dtype) -> bool:
    """Returns whether a dtype is floating point, including bfloat16 (unknown to numpy)."""
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _formatted(shape: Iterable[int | None]) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
