"""Distributes training positions among the sources in a mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """A source's index range, and how often training uses the source.

    Attributes:
        first: index of the source's first example in the concatenated sources.
        size: number of examples.
        weight: fraction of the training positions, relative to the other weights.
    """

    first: int
    size: int
    weight: int


def shared(position: int, shares: Sequence[Share]) -> tuple[int, int]:
    """Returns the number of the share that gets a position, and the share's earlier positions.

    Each share is spread as evenly as possible: with the fraction f of the total weight, it gets f*n
    among any n consecutive positions, up to an error of the number of shares. Positions are split
    between the first share and the rest, and the rest recursively in the same way. For a fraction
    a/b, the first share gets floor(p*a/b) among the first p positions (Bresenham's line algorithm).
    """
    rest = sum(share.weight for share in shares)
    for number, share in enumerate(shares[:-1]):
        before, after = (p * share.weight // rest for p in (position, position + 1))
        if after > before:
            return number, before
        position -= before
        rest -= share.weight
    return len(shares) - 1, position
