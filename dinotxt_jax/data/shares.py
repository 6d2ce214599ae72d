"""How training shares its positions among the sources of a mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence


@dataclasses.dataclass(frozen=True, slots=True)
class Share:
    """The examples of one source, and how often training uses them.

    Attributes:
        first: the index of the first example, if all sources follow each other.
        size: the number of examples.
        weight: the share of the training positions, relative to the other weights.
    """

    first: int
    size: int
    weight: int


def shared(position: int, shares: Sequence[Share]) -> tuple[int, int]:
    """Returns which share has a position, and how many earlier positions the share has.

    The positions of a share are spread as evenly as possible: of any n consecutive positions, it
    has its part of n, give or take the number of shares. Positions are split between the first
    share and the rest, and the rest is split likewise. Among the first p positions, the first of
    two has floor(p a / b) with the fraction a / b of all (Bresenham's line algorithm).
    """
    rest = sum(share.weight for share in shares)
    for number, share in enumerate(shares[:-1]):
        before, after = (p * share.weight // rest for p in (position, position + 1))
        if after > before:
            return number, before
        position -= before
        rest -= share.weight
    return len(shares) - 1, position
