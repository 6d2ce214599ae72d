"""Balances captions over metadata entries: entries with many captions give some of them up.

A matched entry with count c keeps a pair with probability p = t / max(c, t); a pair is kept if the
draw of any of its entries says so, which has probability 1 - prod(1 - p) (arXiv 2309.16671, section
3). The only global state is one count per entry.

Every draw is a hash of (seed, pair, entry). An entry with draw u keeps a pair if u < t / c, so a
pair is kept if t is above min(u c). The sets for growing t contain each other, and the t for an
exact number of pairs follows from sorting.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float64, Int64, UInt64

from dinotxt_jax.curation.draws import uniform
from dinotxt_jax.curation.matching import Matches
from dinotxt_jax.errors import UserError

# Entries that occur, without repetition, and the number of their captions.
SparseCounts = tuple[Int64[np.ndarray, " _"], Int64[np.ndarray, " _"]]


def count(matches: Matches, entries: int) -> Int64[np.ndarray, " e"]:
    """Returns how many captions match each entry.

    Args:
        matches: the matched entries of each caption.
        entries: number of entries.
    """
    return np.bincount(matches.entries, minlength=entries).astype(np.int64)


def merge(parts: Iterable[SparseCounts], entries: int) -> Int64[np.ndarray, " e"]:
    """Returns the counts of several parts of a pool together; the order makes no difference.

    Args:
        parts: for each part, the entries that occur and the number of their captions.
        entries: number of entries.
    """
    counts = np.zeros(entries, np.int64)
    for occurring, numbers in parts:
        counts[occurring] += numbers
    return counts


def tail_share(counts: Int64[np.ndarray, " e"], threshold: float) -> float:
    """Returns the share of all matches that entries with fewer than `threshold` captions have."""
    return float(counts[counts < threshold].sum() / max(int(counts.sum()), 1))


def tail_threshold(counts: Int64[np.ndarray, " e"], share: float) -> int:
    """Returns the t with the tail share nearest to `share` (arXiv 2507.22062).

    The result is one of the counts, and at least 1.

    Args:
        counts: captions per entry.
        share: share of the tail, from 0 to 1.
    """
    ordered = np.sort(counts)
    total = int(ordered.sum())
    if not total:
        return 1
    nearest = np.argmin(np.abs(np.cumsum(ordered) / total - share))
    return max(int(ordered[nearest]), 1)


def thresholds_by_language(
    counts: Sequence[Int64[np.ndarray, " _"]], share: float, reference: int, threshold: int = 0
) -> list[int]:
    """Returns the threshold t of each language: all have the same tail share.

    Args:
        counts: captions per entry, for each language.
        share: the tail share, if no threshold is given.
        reference: the language that `threshold` is for.
        threshold: a t whose tail share all other languages take over (0: use `share`).
    """
    if not threshold:
        return [tail_threshold(each, share) for each in counts]
    share = tail_share(counts[reference], threshold)
    return [
        threshold if number == reference else tail_threshold(each, share)
        for number, each in enumerate(counts)
    ]


def probabilities(
    counts: Int64[np.ndarray, " e"],
    *,
    tail_share: float | None = None,
    t: float | Int64[np.ndarray, " e"] | None = None,
) -> Float64[np.ndarray, " e"]:
    """Returns the probability with which each entry keeps a caption.

    Args:
        counts: captions per entry.
        tail_share: tail share, from which t follows; or
        t: the threshold itself, for all entries or for each.
    """
    if (tail_share is None) == (t is None):
        raise ValueError("give either tail_share or t")
    threshold = t if tail_share is None else tail_threshold(counts, tail_share)
    assert threshold is not None
    return threshold / np.maximum(counts, threshold)


def critical_factors(
    pairs: UInt64[np.ndarray, " n"],
    matches: Matches,
    excess: Float64[np.ndarray, " e"],
    names: UInt64[np.ndarray, " e"],
) -> Float64[np.ndarray, " n"]:
    """Returns the factor of the thresholds above which each pair is kept; inf if nothing matches.

    Args:
        pairs: hash of each pair.
        matches: the matched entries of each pair.
        excess: count / t of each entry.
        names: hash of each entry.
    """
    drawn = uniform(np.repeat(pairs, matches.lengths), names[matches.entries])
    factors = np.full(len(pairs), np.inf)
    matched = np.flatnonzero(matches.lengths)
    if len(matched):
        starts = matches.ends[matched] - matches.lengths[matched]
        factors[matched] = np.minimum.reduceat(drawn * excess[matches.entries], starts)
    return factors


def sample(factors: Float64[np.ndarray, " n"], target: int = 0) -> Bool[np.ndarray, " n"]:
    """Returns which pairs are kept: those with a critical factor below 1, or exactly `target`.

    A target multiplies the thresholds by one factor, so that the pairs with the smallest critical
    factors are kept. Equal factors, which copies of a pair have, are ordered by position.

    Raises:
        UserError: fewer pairs than `target` match an entry.
    """
    if not target:
        return factors < 1
    available = int(np.isfinite(factors).sum())
    if target > available:
        raise UserError(
            f"config.target is {target}, expected at most the {available} of {len(factors)} "
            "examples whose captions match an entry; lower it, or add entries to the metadata."
        )
    limit = np.partition(factors, target - 1)[target - 1]
    is_kept = factors < limit
    equal = np.flatnonzero(factors == limit)
    is_kept[equal[: target - int(is_kept.sum())]] = True
    return is_kept
