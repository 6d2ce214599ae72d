"""Mixtures of sources: weights determine how often training uses each source's examples."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from dinotxt_jax.data.examples import SECTION, Example, Source
from dinotxt_jax.data.selection import Selection
from dinotxt_jax.data.shares import Share

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig


@dataclass(frozen=True)
class Part:
    """A source in the training data.

    Attributes:
        section: the command-line name for this source's settings.
        source: the examples.
        data: the data settings for this source.
        selection: the filters and the caption choice.
        share: the index range and the weight.
    """

    section: str
    source: Source
    data: DataConfig
    selection: Selection
    share: Share


class Mixture:
    """The concatenated examples from several sources.

    An example is named SOURCE/KEY.

    Args:
        sources: (settings section, source) pairs.
        config: the data settings that define the mixture.

    Attributes:
        parts: the sources, in order.
    """

    def __init__(self, sources: Sequence[tuple[str, Source]], config: DataConfig) -> None:
        settings = [*config.mixture.values()]
        sizes = [len(source) for _, source in sources]
        weights = whole_weights([part.weight for part in settings]) or sizes
        parts, first = [], 0
        for (section, source), size, weight, part in zip(
            sources, sizes, weights, settings, strict=True
        ):
            share = Share(first, size, weight)
            data = config.of_source(part)
            parts.append(Part(section, source, data, Selection(data, section), share))
            first += size
        self.parts = tuple(parts)
        self._names = tuple(config.mixture)
        self._size = first

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        number, row = self._place(index)
        example = self.parts[number].source[row]
        return Example(example.image, example.captions, f"{self._names[number]}/{example.key}")

    def captions(self, index: int) -> tuple[str, ...]:
        number, row = self._place(index)
        return self.parts[number].source.captions(row)

    def key(self, index: int) -> str:
        """Returns an example's name."""
        number, row = self._place(index)
        return f"{self._names[number]}/{self.parts[number].source.key(row)}"

    def _place(self, index: int) -> tuple[int, int]:
        if not 0 <= index < self._size:
            raise IndexError(f"example {index} of {self._size}")
        number = part_number(self.parts, index)
        return number, index - self.parts[number].share.first

    def described(self, pairs: int) -> list[str]:
        """Returns a line per source: examples, weight, and epochs within `pairs` training pairs."""
        total = sum(part.share.weight for part in self.parts)
        lines = []
        for name, part in zip(self._names, self.parts, strict=True):
            fraction = part.share.weight / total
            passes = pairs * fraction / part.share.size
            lines.append(
                f"{name}: {part.share.size:,} examples, {fraction:.2%} of the pairs, "
                f"{passes:.3g} passes"
            )
        return lines


def whole_weights(weights: Sequence[float]) -> list[int]:
    """Returns weights as integers in the same proportions; an empty list if all weights are 0."""
    # Through decimal notation: 0.1 means exactly 1/10, not the nearest binary fraction.
    fractions = [Fraction(repr(weight)) for weight in weights]
    scale = math.lcm(*(fraction.denominator for fraction in fractions))
    return [int(fraction * scale) for fraction in fractions] if any(fractions) else []


def part_number(parts: Sequence[Part], index: int) -> int:
    """Returns the number of the part that contains an example index."""
    return bisect.bisect_right(parts, index, key=lambda part: part.share.first) - 1


def source_parts(source: Source, data: DataConfig, section: str = SECTION) -> tuple[Part, ...]:
    """Returns a mixture's parts, or a single part for any other source.

    Args:
        source: the examples.
        data: the data settings, used if the source is not a mixture.
        section: the command-line name for these settings.
    """
    if isinstance(source, Mixture):
        return source.parts
    return (Part(section, source, data, Selection(data, section), *shares_of(source)),)


def shares_of(source: Sized) -> tuple[Share, ...]:
    """Returns how training positions are shared among a mixture's sources.

    A source that is not a mixture gets a single share.
    """
    if isinstance(source, Mixture):
        return tuple(part.share for part in source.parts)
    return (Share(0, len(source), 1),)
