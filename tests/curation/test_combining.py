"""Intersection and union of lists of kept examples, to an exact number."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dinotxt_jax import UserError
from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.curation.combining import combine, thinned
from dinotxt_jax.curation.draws import hashes, uniform
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import read_kept, write_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.storage.addresses import to_address

CONFIG = CurationConfig(data=DataConfig(num_scenes=30))
FIRST, SECOND = np.arange(30) % 2, np.arange(30) % 3


@pytest.fixture
def lists(tmp_path: Path) -> list[str]:
    identity = data_identity(open_source(CONFIG.data), 0)
    for name, counts in (("a.npz", FIRST), ("b.npz", SECOND)):
        write_kept(tmp_path / name, counts, identity, {})
    return [str(tmp_path / "a.npz"), str(tmp_path / "b.npz")]


def test_lists_are_intersected_or_united(lists: list[str], tmp_path: Path) -> None:
    output = tmp_path / "both.npz"
    assert combine(CONFIG, lists, output) == "10 of 30 examples are kept (10 before target)."
    np.testing.assert_array_equal(read_kept(output, "x").rows.counts(30), np.minimum(FIRST, SECOND))
    combine(dataclasses.replace(CONFIG, combine="union"), lists, output)
    np.testing.assert_array_equal(read_kept(output, "x").rows.counts(30), np.maximum(FIRST, SECOND))


def test_the_target_is_met_exactly_and_depends_on_the_seed_only(
    lists: list[str], tmp_path: Path
) -> None:
    counts = []
    for seed in (0, 0, 1):
        config = dataclasses.replace(CONFIG, combine="union", target=12, seed=seed)
        combine(config, lists, tmp_path / "c.npz")
        counts.append(read_kept(tmp_path / "c.npz", "x").rows.counts(30))
        assert counts[-1].sum() == 12
        assert (counts[-1] <= np.maximum(FIRST, SECOND)).all()
    assert counts[0].tolist() == counts[1].tolist() != counts[2].tolist()


def test_every_use_is_equally_likely_to_be_left_out() -> None:
    left = sum(thinned(np.array([1, 3, 0, 2]), 3, seed) for seed in range(3000))
    # 3 of 6 uses stay; hypergeometric, five standard deviations are at most 200.
    np.testing.assert_allclose(left, [1500, 4500, 0, 3000], atol=200)


def test_draws_are_uniform_and_independent() -> None:
    first = hashes(0, [f"{n}" for n in range(300)])
    second = hashes(0, [f"entry {n}" for n in range(300)])
    draws = uniform(first[:, None], second[None, :])
    counts = np.histogram(draws, 20, (0, 1))[0]
    # Chi-squared with 19 degrees of freedom: 60 has a probability below 1e-5.
    assert ((counts - 4500) ** 2 / 4500).sum() < 60
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.02


def test_wrong_lists_and_targets_end_in_a_sentence(lists: list[str], tmp_path: Path) -> None:
    output = tmp_path / "c.npz"
    with pytest.raises(UserError, match="1 lists are given, expected at least two"):
        combine(CONFIG, lists[:1], output)
    thinned_list = tmp_path / "thinned.npz"
    combine(dataclasses.replace(CONFIG, target=3), lists[:1], thinned_list)
    rows = read_kept(to_address(thinned_list), "").rows.counts(30)
    before = read_kept(to_address(lists[0]), "").rows.counts(30)
    assert rows.sum() == 3
    assert (rows <= before).all()
    with pytest.raises(UserError, match="another pool: 30 examples there, 31 here"):
        combine(dataclasses.replace(CONFIG, data=DataConfig(num_scenes=31)), lists, output)
    with pytest.raises(UserError, match="config.target is 11, expected at most the 10 examples"):
        combine(dataclasses.replace(CONFIG, target=11), lists, output)
    assert not output.exists()
