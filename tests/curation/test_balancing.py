"""Thresholds, probabilities and draws: the published formulas, and independence from order."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dinotxt_jax import UserError
from dinotxt_jax.curation.balancing import (
    count,
    critical_factors,
    merge,
    probabilities,
    sample,
    tail_share,
    tail_threshold,
    thresholds_by_language,
)
from dinotxt_jax.curation.draws import hashes
from dinotxt_jax.curation.matching import Matches, joined_matches

COUNTS = np.array([1000, 300, 50, 30, 20, 0])


def matches_of(*rows: list[int]) -> Matches:
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return Matches(ends, np.array(list(itertools.chain(*rows)), np.int32))


def test_counts_of_parts_add_up_in_any_order() -> None:
    parts = [matches_of([0, 1], []), matches_of([1, 3]), matches_of([3])]
    counts = [count(part, 5) for part in parts]
    sparse = [(np.flatnonzero(each), each[each > 0]) for each in counts]
    assert merge(sparse, 5).tolist() == merge(sparse[::-1], 5).tolist() == [1, 2, 0, 2, 0]
    assert merge(sparse, 5).tolist() == count(joined_matches(parts), 5).tolist()


def test_the_threshold_has_the_nearest_tail_share() -> None:
    # Ascending, the cumulative shares are 0, 1.4 %, 3.6 %, 7.1 %, 28.6 % and 100 %.
    expected = {0.0: 1, 0.01: 20, 0.04: 30, 0.06: 50, 0.2: 300, 1.0: 1000}
    assert {share: tail_threshold(COUNTS, share) for share in expected} == expected
    assert tail_share(COUNTS, 50) == 50 / 1400
    assert tail_threshold(np.zeros(3, np.int64), 0.06) == 1


def test_languages_share_the_tail_of_the_first() -> None:
    other = np.array([10, 9, 1, 600])
    assert thresholds_by_language([COUNTS, other], 0.06, 0) == [50, 10]
    # t = 60 gives the first list a tail of 100 / 1400, so the second gets 20 / 620 or more.
    assert thresholds_by_language([COUNTS, other], 0.06, 0, 60) == [60, 10]


def test_probabilities_follow_from_counts() -> None:
    np.testing.assert_allclose(probabilities(COUNTS, t=50.0), [0.05, 1 / 6, 1, 1, 1, 1])
    np.testing.assert_array_equal(
        probabilities(COUNTS, tail_share=0.06), probabilities(COUNTS, t=50.0)
    )
    with pytest.raises(ValueError, match="either tail_share or t"):
        probabilities(COUNTS)


def test_pairs_are_kept_with_the_published_probability() -> None:
    pairs = 40_000
    rows = [[], [0], [1], [0, 1], [0, 1, 2]]
    chances = probabilities(COUNTS, t=50.0)
    expected = [1 - np.prod([1 - chances[entry] for entry in row]) for row in rows]
    names = hashes(0, [f"entry {n}" for n in range(len(COUNTS))])
    for row, chance in zip(rows, expected, strict=True):
        matches = matches_of(*[row] * pairs)
        ids = hashes(0, [f"pair {n}" for n in range(pairs)])
        kept = sample(critical_factors(ids, matches, COUNTS / 50, names))
        # Five standard deviations of a binomial distribution.
        assert abs(kept.mean() - chance) <= 5 * np.sqrt(chance * (1 - chance) / pairs)


def drawn(order: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the critical factors of 200 pairs, computed in an order and put back."""
    rng = np.random.default_rng(5)
    rows = [sorted(rng.choice(6, rng.integers(0, 5), replace=False).tolist()) for _ in range(200)]
    ids = hashes(seed, [f"pair {n}" for n in order])
    names = hashes(seed, [f"entry {n}" for n in range(len(COUNTS))])
    factors = np.zeros(200)
    factors[order] = critical_factors(
        ids, matches_of(*[rows[n] for n in order]), COUNTS / 50, names
    )
    return factors


def test_draws_depend_on_pair_and_seed_only() -> None:
    order = np.random.default_rng(1).permutation(200)
    np.testing.assert_array_equal(drawn(np.arange(200)), drawn(order))
    assert (drawn(np.arange(200)) != drawn(np.arange(200), seed=1)).sum() > 100


def test_targets_are_exact_and_contain_each_other() -> None:
    factors = drawn(np.arange(200))
    available = int(np.isfinite(factors).sum())
    before = np.zeros(200, bool)
    for target in (1, 50, int((factors < 1).sum()), available):
        kept = sample(factors, target)
        assert kept.sum() == target
        assert (before <= kept).all()
        before = kept
    np.testing.assert_array_equal(sample(factors, int((factors < 1).sum())), sample(factors))
    with pytest.raises(UserError, match=rf"at most the {available} of 200 examples whose captions"):
        sample(factors, available + 1)


def test_copies_of_a_pair_do_not_exceed_a_target() -> None:
    factors = np.array([0.5, 0.2, 0.5, 0.5, np.inf])
    assert sample(factors, 3).tolist() == [True, True, True, False, False]
