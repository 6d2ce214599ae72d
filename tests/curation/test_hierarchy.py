"""Hierarchical k-means: levels, resampling, two stages, continuation, mistakes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blobs import blobs, pool_config, write_embeddings

from dinotxt_jax import UserError, sharding
from dinotxt_jax.config import CurationConfig, MeshConfig
from dinotxt_jax.config.image_curation import ImageCurationConfig
from dinotxt_jax.curation import hierarchy, kmeans, splitting
from dinotxt_jax.curation.cluster_folder import ClusterFolder
from dinotxt_jax.curation.hierarchy import Hierarchy, cluster
from dinotxt_jax.curation.kmeans import Clustering
from dinotxt_jax.curation.points import HeldPoints
from dinotxt_jax.curation.splitting import shares

SIZES = [220, 120, 60, 40, 20, 20]
ROWS = blobs(SIZES, spread=0.02)
COUNT = sum(SIZES)


def settings(**image: Any) -> CurationConfig:
    defaults = {"levels": (24, 6), "rounds": (0, 2), "iterations": 8, "seeding_points": 0}
    return pool_config(COUNT, image=ImageCurationConfig(**{**defaults, **image}))


CONFIG = settings()
STAGED = settings(coarse=6, seeding_points=4)


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("pool") / "embeddings"
    write_embeddings(folder, ROWS, bad=[5])
    return str(folder)


def levels(folder: Path) -> list[Clustering]:
    return ClusterFolder(folder).levels()


def check_hierarchy(result: list[Clustering]) -> None:
    """Checks that levels are complete and each cluster of the top level is one blob."""
    below, top = result
    assert below.labels[5] == -1
    assert (np.delete(below.labels, 5) >= 0).all()
    assert top.labels.shape == (24,)
    blob = np.delete(np.repeat(np.arange(6), SIZES), 5)
    above = top.labels[np.delete(below.labels, 5)]
    assert len(set(zip(blob, above, strict=True))) == len(set(blob)) == 6


@pytest.mark.parametrize("config", [CONFIG, STAGED], ids=["flat", "two stages"])
def test_the_top_level_finds_blobs_however_large(
    config: CurationConfig, embeddings: str, tmp_path: Path
) -> None:
    sentence = cluster(config, [embeddings], tmp_path / "c")
    assert sentence == f"{COUNT - 1} examples are in 24, 6 clusters."
    check_hierarchy(levels(tmp_path / "c"))
    names = sorted(file.name for file in (tmp_path / "c").iterdir())
    assert names == ["clusters.json", "level1.npz", "level2.npz"]


def test_a_split_stays_in_its_coarse_cluster_and_is_a_k_means(
    embeddings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: dict[str, Clustering] = {}
    monkeypatch.setattr(
        ClusterFolder,
        "save_clustering",
        lambda self, name, clustering, /, **more: kept.update({name: clustering}),
    )
    # Groups of coarse clusters that hold at most about 100 of the 480 points.
    config = dataclasses.replace(
        STAGED, image=dataclasses.replace(STAGED.image, memory_gib=100 * 16 / 2**30)
    )
    cluster(config, [embeddings], tmp_path / "c")
    with pytest.raises(UserError, match="lacks level 1"):
        levels(tmp_path / "c")
    assert len(list((tmp_path / "c").glob("split*.npz"))) == 0
    coarse, fine = kept["coarse"], kept["level1"]
    present = np.arange(COUNT) != 5
    pairs = set(zip(coarse.labels[present], fine.labels[present], strict=True))
    assert len(pairs) == len(set(fine.labels[present]))
    rows = ROWS.astype(np.float32)
    for label in set(fine.labels[present]):
        own = rows[fine.labels == label]
        mean = own.mean(0) / np.linalg.norm(own.mean(0))
        # float16 points have lengths that differ from 1 by up to 1e-3.
        np.testing.assert_allclose(fine.centroids[label], mean, atol=2e-3)


def test_shares_follow_sizes_exactly() -> None:
    assert shares(np.array([60, 30, 10]), 10).tolist() == [6, 3, 1]
    assert shares(np.array([1000, 1, 0, 1]), 5).tolist() == [3, 1, 0, 1]
    assert shares(np.array([5, 5, 1]), 11).tolist() == [5, 5, 1]
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(0, 50, 20)
        count = int(rng.integers((sizes > 0).sum(), sizes.sum() + 1))
        result = shares(sizes, count)
        assert result.sum() == count
        assert ((result <= sizes) & (result >= np.minimum(sizes, 1))).all()


def test_resampling_spreads_centroids_over_rare_points(tmp_path: Path) -> None:
    # 900 points in one direction, 100 around; resampling moves centroids to the rare points.
    rng = np.random.default_rng(0)
    angles = np.concatenate([rng.normal(0, 0.1, 900), rng.uniform(0.5, 5.7, 100)])
    points = HeldPoints(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
    frequent = []
    for rounds in (0, 3):
        image = ImageCurationConfig(
            levels=(20,), rounds=(rounds,), nearest=(4,), iterations=20, seeding_points=0
        )
        folder = ClusterFolder(tmp_path / f"c{rounds}")
        mesh = sharding.make_mesh(devices=jax.devices()[:1])
        (level,) = Hierarchy(CurationConfig(image=image), folder, mesh).build(points)
        frequent.append(int((level.centroids[:, 0] > np.cos(0.3)).sum()))
    assert frequent[1] < frequent[0]


class KilledError(Exception):
    """The process ends."""


@pytest.mark.parametrize(
    ("config", "saves"),
    [(CONFIG, 7), pytest.param(STAGED, 3, marks=pytest.mark.slow)],
    ids=["flat", "two stages"],
)
def test_an_interrupted_run_continues_to_the_same_result(
    config: CurationConfig,
    saves: int,
    embeddings: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = dataclasses.replace(
        config, image=dataclasses.replace(config.image, memory_gib=200 * 16 / 2**30)
    )
    cluster(config, [embeddings], tmp_path / "whole")
    save, steps, splits, left = ClusterFolder.save_share, [], [], [0]
    monkeypatch.setattr(kmeans, "_lloyd_step", counted(kmeans._lloyd_step, steps))
    monkeypatch.setattr(splitting, "_split_group", counted(splitting._split_group, splits))

    def killed(self: ClusterFolder, name: str, /, **arrays: Any) -> None:
        save(self, name, **arrays)
        left[0] -= 1
        if left[0] == 0:
            raise KilledError

    monkeypatch.setattr(ClusterFolder, "save_share", killed)
    cluster(config, [embeddings], tmp_path / "counted")
    once, groups = len(steps), len(splits)
    assert (groups > 1) == bool(config.image.coarse)
    steps.clear()
    splits.clear()
    kills = 0
    while True:  # each run ends after a few saved states
        left[0] = saves
        try:
            cluster(config, [embeddings], tmp_path / "parts")
            break
        except KilledError:
            kills += 1
    assert kills >= 2
    assert len(steps) <= once + kills  # a converged k-means repeats its last step
    assert len(splits) == groups  # finished groups are not computed again
    for expected, found in zip(levels(tmp_path / "whole"), levels(tmp_path / "parts"), strict=True):
        for array, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(array, other)


def begin_split(folder: Path, embeddings: str, monkeypatch: pytest.MonkeyPatch) -> CurationConfig:
    """Ends a run after the first of several groups of coarse clusters; returns its settings."""
    config = dataclasses.replace(
        STAGED, image=dataclasses.replace(STAGED.image, memory_gib=200 * 16 / 2**30)
    )
    save = ClusterFolder.save_share

    def killed(self: ClusterFolder, name: str, /, **arrays: Any) -> None:
        save(self, name, **arrays)
        if name.startswith("split"):
            raise KilledError

    with monkeypatch.context() as patched:
        patched.setattr(ClusterFolder, "save_share", killed)
        with pytest.raises(KilledError):
            cluster(config, [embeddings], folder)
    return config


def test_another_memory_limit_after_an_interruption_loses_no_point(
    embeddings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_split(tmp_path / "clusters", embeddings, monkeypatch)
    cluster(STAGED, [embeddings], tmp_path / "clusters")
    cluster(STAGED, [embeddings], tmp_path / "whole")
    for first, whole in zip(levels(tmp_path / "clusters"), levels(tmp_path / "whole"), strict=True):
        for array, other in zip(first, whole, strict=True):
            np.testing.assert_array_equal(array, other)
    assert (levels(tmp_path / "clusters")[0].labels >= 0).sum() == COUNT - 1  # 5 has no embedding
    assert not list((tmp_path / "clusters").glob("split*"))


def test_groups_of_other_coarse_clusters_are_refused(
    embeddings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ClusterFolder(tmp_path / "clusters")
    config = begin_split(folder.path, embeddings, monkeypatch)
    coarse = folder.clustering("coarse")
    assert coarse is not None
    (name,) = folder.names("split")
    start, stop = map(int, name.removeprefix("split").split("-"))
    moved = coarse.labels.copy()
    inside = np.flatnonzero((moved >= start) & (moved < stop))
    moved[inside[0]] = stop  # to a group that is not finished
    folder.save_clustering("coarse", coarse._replace(labels=moved))
    number = len(inside) - 1
    message = rf"other coarse clusters: it holds {number} of their {number} points now, and 1 othe"
    with pytest.raises(UserError, match=message):
        cluster(config, [embeddings], folder.path)
    (folder.path / f"{name}.npz").unlink()
    cluster(config, [embeddings], folder.path)
    check_hierarchy(levels(folder.path))


def test_processes_with_other_settings_are_refused(
    embeddings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: dict[str, Any] = {}

    def compare(values: dict[str, Any]) -> None:
        compared.update(values)
        raise KilledError

    monkeypatch.setattr(hierarchy.processes, "check_same", compare)
    with pytest.raises(KilledError):
        cluster(settings(memory_gib=3.0), [embeddings], tmp_path / "c")
    assert compared["config.image.memory_gib"] == 3.0
    assert compared["config.mesh.fsdp"] == 1
    assert not (tmp_path / "c").exists()


def counted(function: Any, calls: list[int]) -> Any:
    def call(*arguments: Any) -> Any:
        calls.append(1)
        return function(*arguments)

    return call


def test_a_run_continues_on_another_mesh(
    embeddings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, count = ClusterFolder.save, [0]

    def killed(self: ClusterFolder, name: str, /, **arrays: Any) -> None:
        save(self, name, **arrays)
        count[0] += 1
        if count[0] == 3:
            raise KilledError

    monkeypatch.setattr(ClusterFolder, "save", killed)
    with pytest.raises(KilledError):
        cluster(CONFIG, [embeddings], tmp_path / "c")
    other = dataclasses.replace(CONFIG, mesh=MeshConfig(data=2, fsdp=2, tensor=2))
    cluster(other, [embeddings], tmp_path / "c")
    check_hierarchy(levels(tmp_path / "c"))


def test_a_bucket_holds_embeddings_and_clusters(bucket: Any, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e", ROWS)
    for file in (tmp_path / "e").iterdir():
        (bucket / "e" / file.name).write_bytes(file.read_bytes())
    streamed = settings(levels=(6,), rounds=(0,), memory_gib=1e-6)
    cluster(streamed, [str(bucket / "e")], bucket / "c")
    cluster(streamed, [str(tmp_path / "e")], tmp_path / "c")
    remote, local = levels(bucket / "c"), levels(tmp_path / "c")
    np.testing.assert_array_equal(remote[0].labels, local[0].labels)


def test_a_level_needs_enough_points_with_different_values(
    embeddings: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    many = settings(levels=(COUNT, 6))
    with pytest.raises(UserError, match=r"levels\[0\] is 480, but there are 479 embeddings"):
        cluster(many, [embeddings], tmp_path / "many")
    write_embeddings(tmp_path / "e", np.repeat(ROWS[::120], 120, axis=0))
    equal = settings(levels=(8,), rounds=(1,))
    cluster(equal, [str(tmp_path / "e")], tmp_path / "equal")
    assert sorted(levels(tmp_path / "equal")[0].sizes.tolist()) == [0] * 4 + [120] * 4
    assert "4 clusters of the levels are empty" in caplog.text
    with pytest.raises(UserError, match=r"levels\[1\] is 5, but there are 4 clusters of level 1"):
        cluster(settings(levels=(8, 5)), [str(tmp_path / "e")], tmp_path / "few")


def test_mistakes_end_in_a_sentence(embeddings: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="0 folders are given, expected one folder"):
        cluster(CONFIG, [], tmp_path / "c")
    with pytest.raises(UserError, match=r"holds no embeddings\.json, expected a folder of emb"):
        cluster(CONFIG, [str(tmp_path)], tmp_path / "c")
    with pytest.raises(UserError, match="another pool: 480 examples there, 481 here"):
        cluster(pool_config(481), [embeddings], tmp_path / "c")
    assert not (tmp_path / "c").exists()
    rows = ROWS.copy()
    rows[77] = np.nan
    write_embeddings(tmp_path / "nan", rows)
    with pytest.raises(UserError, match="the embedding of example 77 in .* is not finite"):
        cluster(CONFIG, [str(tmp_path / "nan")], tmp_path / "n")
    small = settings(levels=(6,), rounds=(0,))
    cluster(small, [embeddings], tmp_path / "c")
    with pytest.raises(UserError, match=r"holds clusters with settings.seed 0, expected 1; name"):
        cluster(dataclasses.replace(small, seed=1), [embeddings], tmp_path / "c")
    (tmp_path / "c" / "level1.npz").write_bytes(b"PK" + bytes(100))
    with pytest.raises(UserError, match=r"level1.npz is damaged .* remove it"):
        cluster(small, [embeddings], tmp_path / "c")


@pytest.mark.parametrize("damage", ["byte", "cut", "shard", "sums"])
def test_damaged_embeddings_end_in_a_sentence(damage: str, tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e", ROWS)
    file, facts = tmp_path / "e" / "s00000.npy", tmp_path / "e" / "s00000.json"
    content = bytearray(file.read_bytes())
    if damage == "byte":
        content[3000] ^= 1
        file.write_bytes(content)
    elif damage == "cut":
        file.write_bytes(content[:-10])
    else:
        (file if damage == "shard" else facts).unlink()
    message = {
        "byte": r"s00000.npy is damaged \(it differs",
        "cut": r"s00000.npy is damaged \(it has been truncated",
        "shard": "lacks 1 of 1 shards, first s00000.npy",
        "sums": r"s00000.json is missing",
    }[damage]
    with pytest.raises(UserError, match=message):
        cluster(CONFIG, [str(tmp_path / "e")], tmp_path / "c")


def test_a_finished_level_is_not_computed_again(embeddings: str, tmp_path: Path) -> None:
    small = settings(levels=(6,), rounds=(0,))
    cluster(small, [embeddings], tmp_path / "c")
    before = (tmp_path / "c" / "level1.npz").stat().st_mtime_ns
    cluster(small, [embeddings], tmp_path / "c")
    assert (tmp_path / "c" / "level1.npz").stat().st_mtime_ns == before


def test_a_split_chooses_centroids_from_evenly_spaced_points() -> None:
    rows = jnp.arange(1024.0)[:, None]
    weights = (jnp.arange(1024) < 900).astype("float32")
    chosen, ones = splitting._seeding_rows(rows, weights, 4, 8)
    assert chosen.shape == (256, 1)
    assert (ones == 1).all()
    steps = np.diff(np.asarray(chosen)[:, 0])
    assert set(steps) == {3, 4}  # 900 / 256
    assert 0 <= chosen[0, 0] < 4
    assert 896 <= chosen[-1, 0] < 900
    every, same = splitting._seeding_rows(rows, weights, 4, 0)
    assert every is rows
    assert same is weights
