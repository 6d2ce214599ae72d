"""Statistics about stored examples, computed per shard and then merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from dinotxt_jax.ingestion.records import StoredExample


def bin_start(value: int) -> int:
    """Returns the smallest value in the histogram bin containing `value`; 4 bins per power of 2."""
    shift = max(value.bit_length() - 3, 0)
    return value >> shift << shift


class Distribution:
    """Count, sum, minimum, maximum and histogram for non-negative integers."""

    def __init__(self) -> None:
        self.count = self.total = 0
        self.low: int | None = None
        self.high: int | None = None
        self._bins: Counter[int] = Counter()

    def add(self, value: int) -> None:
        """Adds a value."""
        self.count += 1
        self.total += value
        self._widen(value, value)
        self._bins[bin_start(value)] += 1

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds another distribution, given as the output of `to_json`."""
        self.count += other["count"]
        self.total += other["sum"]
        if other["count"]:
            self._widen(other["min"], other["max"])
        self._bins.update({int(start): count for start, count in other["bins"].items()})

    def _widen(self, low: int, high: int) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values; `bins` maps the smallest value in each bin to the bin's count."""
        bins = {str(start): self._bins[start] for start in sorted(self._bins)}
        return {
            "count": self.count,
            "sum": self.total,
            "min": self.low,
            "max": self.high,
            "bins": bins,
        }


# Keys in the manifest. Sides are in pixels; aspect_percent is 100 x width / height.
QUANTITIES = (
    "short_side",
    "long_side",
    "aspect_percent",
    "image_bytes",
    "captions_per_example",
    "caption_characters",
)


class PairStatistics:
    """Distributions over image sizes, image formats and caption lengths."""

    def __init__(self) -> None:
        self._quantities = {name: Distribution() for name in QUANTITIES}
        self._formats: Counter[str] = Counter()

    def add(self, example: StoredExample) -> None:
        """Adds an example."""
        short, long = sorted((example.width, example.height))
        quantities = self._quantities
        quantities["short_side"].add(short)
        quantities["long_side"].add(long)
        quantities["aspect_percent"].add(100 * example.width // example.height)
        quantities["image_bytes"].add(example.image_bytes)
        quantities["captions_per_example"].add(len(example.caption_lengths))
        for length in example.caption_lengths:
            quantities["caption_characters"].add(length)
        self._formats[example.format] += 1

    def merge(self, other: Mapping[str, Any]) -> None:
        """Adds another shard's statistics, given as the output of `to_json`."""
        for name, distribution in self._quantities.items():
            distribution.merge(other[name])
        self._formats.update(other["formats"])

    def to_json(self) -> dict[str, Any]:
        """Returns the statistics as JSON values, which do not depend on the example order."""
        described: dict[str, Any] = {
            name: distribution.to_json() for name, distribution in self._quantities.items()
        }
        return {"formats": dict(sorted(self._formats.items())), **described}
