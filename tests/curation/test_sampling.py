"""Hierarchical balanced sampling: exact numbers, flat shares, repetition, mistakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from blobs import pool_config
from hypothesis import given
from hypothesis import strategies as st

from dinotxt_jax import UserError
from dinotxt_jax.config import CurationConfig
from dinotxt_jax.config.image_curation import ImageCurationConfig
from dinotxt_jax.curation.cluster_folder import ClusterFolder
from dinotxt_jax.curation.kmeans import Clustering
from dinotxt_jax.curation.sampling import distributed, sample_clusters, sampled_counts
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import read_kept, write_kept
from dinotxt_jax.data.sources import open_source

# Six clusters of level 1, in two of level 2: sizes 100, 10, 2 and 50, 30, 8.
SIZES = np.array([100, 10, 2, 50, 30, 8])
PARENTS = np.array([0, 0, 0, 1, 1, 1], np.int32)
COUNT = int(SIZES.sum())


def clusterings() -> list[Clustering]:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(6), SIZES)).astype(np.int32)
    distances = np.random.default_rng(1).uniform(size=COUNT).astype(np.float32)
    zeros = np.zeros((6, 2), np.float32)
    return [
        Clustering(zeros, labels, distances),
        Clustering(zeros[:2], PARENTS, np.zeros(6, np.float32)),
    ]


LEVELS = clusterings()
EVERY = np.ones(COUNT, bool)


def config(target: int, seed: int = 0, **image: Any) -> CurationConfig:
    image = {"levels": (6, 2), "rounds": (0, 0), **image}
    return pool_config(COUNT, target=target, seed=seed, image=ImageCurationConfig(**image))


def per_cluster(counts: np.ndarray) -> list[int]:
    return np.bincount(LEVELS[0].labels, weights=counts, minlength=6).astype(int).tolist()


def test_shares_are_as_equal_as_sizes_allow_on_each_level() -> None:
    # 60: 30 per cluster of level 2; 18, 10 and 2 below the first, and 11, 11 and 8 below the other.
    assert per_cluster(sampled_counts(LEVELS, EVERY, config(60))) == [18, 10, 2, 11, 11, 8]


@pytest.mark.parametrize("target", [1, 7, 60, 133, COUNT])
@pytest.mark.parametrize("draw", ["random", "closest"])
def test_the_target_is_met_exactly_without_repetition(target: int, draw: str) -> None:
    counts = sampled_counts(LEVELS, EVERY, config(target, draw=draw))
    assert counts.sum() == target
    assert counts.max() == 1


def test_draws_depend_on_the_seed_and_closest_examples_do_not() -> None:
    first, same, other = (sampled_counts(LEVELS, EVERY, config(60, seed)) for seed in (0, 0, 1))
    assert (first == same).all()
    assert (first != other).any()
    counts = sampled_counts(LEVELS, EVERY, config(60, draw="closest"))
    for label, size in enumerate([18, 10, 2, 11, 11, 8]):
        inside = np.flatnonzero(LEVELS[0].labels == label)
        closest = inside[np.argsort(LEVELS[0].distances[inside])][:size]
        assert set(np.flatnonzero(counts)) & set(inside) == set(closest)


def test_random_draws_are_uniform_within_a_cluster() -> None:
    total = sum(sampled_counts(LEVELS, EVERY, config(60, seed)) for seed in range(400))
    largest = total[LEVELS[0].labels == 0]  # 18 or 17 of 100, by the remainder
    expected = largest.mean()
    assert 68 <= expected <= 74
    # Binomial with a standard deviation of about 7.7: five of them.
    assert np.abs(largest - expected).max() < 40


def test_a_multiplier_repeats_whole_clusters_first() -> None:
    with pytest.raises(UserError, match="config.target is 300, expected at most 200, the 200"):
        sampled_counts(LEVELS, EVERY, config(300))
    counts = sampled_counts(LEVELS, EVERY, config(300, multiplier=2))
    assert counts.sum() == 300
    assert counts.max() <= 2
    shares = per_cluster(counts)
    assert shares == [126, 20, 4, 67, 60, 16] or shares == [126, 20, 4, 74, 60, 16]
    for label in (1, 2, 4, 5):
        assert set(counts[LEVELS[0].labels == label]) == {2}
    assert set(counts[LEVELS[0].labels == 0]) == {1, 2}
    with pytest.raises(UserError, match=r"at most 300, the 200 examples in clusters times config"):
        sampled_counts(LEVELS, EVERY, config(301, multiplier=1.5))


def test_excluded_examples_are_not_drawn_and_their_cluster_is_smaller() -> None:
    allowed = LEVELS[0].labels != 3
    allowed[np.flatnonzero(LEVELS[0].labels == 0)[:95]] = False
    counts = sampled_counts(LEVELS, allowed, config(40))
    assert (counts[~allowed] == 0).all()
    assert per_cluster(counts) == [5, 10, 2, 0, 15, 8]


@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(-1, 3)), min_size=1, max_size=20),
    st.data(),
)
def test_distribution_is_exact_and_even(clusters: list[tuple[int, int]], data: Any) -> None:
    sizes, parents = (np.array(values) for values in zip(*clusters, strict=True))
    most = [int(sizes[parents == parent].sum()) for parent in range(4)]
    targets = np.array([data.draw(st.integers(0, total)) for total in most])
    result = distributed(sizes, parents, targets, np.random.default_rng(0).random(len(sizes)))
    assert ((result >= 0) & (result <= sizes)).all()
    for parent in range(4):
        own = parents == parent
        assert result[own].sum() == targets[parent]
        # A cluster that could give more gives at most one less than any other.
        spare = own & (result < sizes)
        if spare.any():
            assert result[own].max() <= result[spare].min() + 1
    assert (result[parents < 0] == 0).all()


@pytest.fixture
def clusters(tmp_path: Path) -> str:
    folder = ClusterFolder(tmp_path / "clusters")
    pool = data_identity(open_source(config(1).data), 0)
    folder.start({"pool": pool, "embeddings": {}, "settings": {"levels": [6, 2]}})
    for number, level in enumerate(LEVELS, start=1):
        folder.save_clustering(f"level{number}", level)
    return str(tmp_path / "clusters")


def test_the_list_holds_the_sample_of_what_other_lists_keep(clusters: str, tmp_path: Path) -> None:
    odd = np.arange(COUNT) % 2
    pool = data_identity(open_source(config(1).data), 0)
    write_kept(tmp_path / "odd.npz", odd, pool, {})
    output = tmp_path / "list.npz"
    sentence = sample_clusters(config(50), [clusters, str(tmp_path / "odd.npz")], output)
    assert sentence == (
        "50 examples are sampled, 50 different ones of 100 in clusters, from 200 in the pool."
    )
    kept = read_kept(output, "x")
    counts = kept.rows.counts(COUNT)
    np.testing.assert_array_equal(counts, sampled_counts(LEVELS, odd > 0, config(50)))
    assert kept.description["origin"]["sample"] == 50


def test_mistakes_end_in_a_sentence(clusters: str, tmp_path: Path) -> None:
    output = tmp_path / "list.npz"
    with pytest.raises(UserError, match="no folder of clusters is given"):
        sample_clusters(config(5), [], output)
    with pytest.raises(UserError, match="config.target is 0, expected the number of examples"):
        sample_clusters(config(0), [clusters], output)
    with pytest.raises(UserError, match=r"holds no clusters\.json, expected a folder of clusters"):
        sample_clusters(config(5), [str(tmp_path)], output)
    with pytest.raises(UserError, match="config.target is 201, expected at most 200"):
        sample_clusters(config(201), [clusters], output)
    changed = dataclasses.replace(config(5), data=dataclasses.replace(config(5).data, num_scenes=9))
    with pytest.raises(UserError, match="made for another pool: 200 examples there, 9 here"):
        sample_clusters(changed, [clusters], output)
    (tmp_path / "clusters" / "level2.npz").unlink()
    with pytest.raises(UserError, match="lacks level 2 of 2, expected all levels"):
        sample_clusters(config(5), [clusters], output)
    assert not output.exists()
