"""k-means on meshes: the same as a plain implementation, from memory and from disk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from blobs import blobs, write_embeddings
from jax.sharding import Mesh
from tolerances import ROUNDING

from dinotxt_jax import UserError, sharding
from dinotxt_jax.curation.embeddings import Embeddings
from dinotxt_jax.curation.kmeans import Method, assigned, lloyd, seeded
from dinotxt_jax.curation.nearest import nearest
from dinotxt_jax.curation.points import HeldPoints, PlacedPoints, padded_size

EXACT = Method("float32", unit_norm=False)
SPHERICAL = Method("float32", unit_norm=True)
# Means of up to 700 float32 numbers below 1: errors with random sign add up to 700 ** 0.5 = 26
# roundings of the sum.
MEANS = 32 * ROUNDING
ROWS = blobs([300, 200, 100, 50, 30, 20])


def mesh(devices: int = 8, fsdp: int = 1) -> Mesh:
    return sharding.make_mesh(fsdp=fsdp, devices=jax.devices()[:devices])


def plain(points: np.ndarray, centroids: np.ndarray, steps: int) -> np.ndarray:
    """Lloyd's algorithm in float64; an empty cluster keeps its centroid."""
    points, centroids = points.astype(np.float64), centroids.astype(np.float64)
    for _ in range(steps):
        labels = ((points[:, None] - centroids) ** 2).sum(-1).argmin(1)
        centroids = np.stack(
            [
                points[labels == k].mean(0) if (labels == k).any() else centroids[k]
                for k in range(len(centroids))
            ]
        )
    return centroids


def run(placed: PlacedPoints, initial: np.ndarray, steps: int, method: Method) -> np.ndarray:
    return lloyd(placed, initial, range(steps), method, "test", lambda step, centroids: None)


@pytest.mark.parametrize(("devices", "fsdp"), [(1, 1), (8, 2)])
def test_lloyd_steps_equal_a_plain_implementation(devices: int, fsdp: int) -> None:
    initial = ROWS[::100].astype(np.float32)
    placed = PlacedPoints(HeldPoints(ROWS), mesh(devices, fsdp), 1e9)
    np.testing.assert_allclose(run(placed, initial, 4, EXACT), plain(ROWS, initial, 4), atol=MEANS)


def test_points_streamed_in_chunks_give_the_same(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinotxt_jax.curation.points.CHUNK", 32)  # for each of 8 devices
    write_embeddings(tmp_path / "e", ROWS, bad=[3, 699])
    initial = ROWS[::100].astype(np.float32)
    embeddings = Embeddings(tmp_path / "e")
    streamed = PlacedPoints(embeddings, mesh(), 0)
    held = PlacedPoints(embeddings, mesh(), 1e9)
    without = np.delete(ROWS, [3, 699], axis=0)
    for placed in (streamed, held):
        centroids = run(placed, initial, 3, EXACT)
        np.testing.assert_allclose(centroids, plain(without, initial, 3), atol=MEANS)
        result = assigned(placed, centroids, EXACT, "test")
        assert result.labels[[3, 699]].tolist() == [-1, -1]
        assert result.sizes.sum() == 698
    assert len(list(held.chunks())) == 3


def test_the_nearest_centroid_is_found_across_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinotxt_jax.curation.nearest._ROWS", 100)
    monkeypatch.setattr("dinotxt_jax.curation.nearest._CENTROIDS", 16)
    rng = np.random.default_rng(0)
    points, centroids = rng.normal(size=(333, 8)), rng.normal(size=(37, 8))
    live = np.arange(37) % 5 > 0
    inputs = (jnp.float32(points), jnp.float32(centroids), jnp.asarray(live))
    index, distances = nearest(*inputs, "float32")
    expected = ((points[:, None] - centroids) ** 2).sum(-1) + np.where(live, 0, np.inf)
    np.testing.assert_array_equal(index, expected.argmin(1))
    # Squared lengths minus twice a product of 8 terms cancel, so that errors are relative to these.
    scale = (points**2).sum(1) + (centroids**2).sum(1).max()
    np.testing.assert_array_less(np.abs(distances - expected.min(1)), 8 * ROUNDING * scale)
    # bfloat16 has 8 bits: it may only confuse centroids that are nearly equally far away.
    index, _ = nearest(*inputs, "bfloat16")
    chosen = np.take_along_axis(expected, np.asarray(index)[:, None], 1)[:, 0]
    assert (chosen - expected.min(1) <= 2 * 2**-7 * scale).all()
    assert (np.asarray(index) == expected.argmin(1)).mean() > 0.9


def test_steps_in_bfloat16_move_centroids_to_the_same_blobs() -> None:
    initial = ROWS[::100].astype(np.float32)
    exact, rounded = (
        run(PlacedPoints(HeldPoints(ROWS), mesh(2), 1e9), initial, 5, Method(dtype, False))
        for dtype in ("float32", "bfloat16")
    )
    # Distances have 8 bits, but means are summed in float32: points of a blob stay together.
    scale = np.abs(exact).max()
    np.testing.assert_allclose(rounded, exact, atol=2**-7 * scale)


def test_an_empty_cluster_keeps_its_centroid() -> None:
    far = np.full((1, 8), 50, np.float32)
    initial = np.concatenate([ROWS[:2].astype(np.float32), far])
    placed = PlacedPoints(HeldPoints(ROWS), mesh(1), 1e9)
    centroids = run(placed, initial, 5, EXACT)
    np.testing.assert_array_equal(centroids[2], far[0])
    assert assigned(placed, centroids, EXACT, "test").sizes[2] == 0


def test_spherical_centroids_have_unit_length_and_ignore_lengths() -> None:
    lengths = np.random.default_rng(1).uniform(0.5, 2, (len(ROWS), 1))
    initial = ROWS[::100].astype(np.float32)
    initial /= np.linalg.norm(initial, axis=1, keepdims=True)
    results = [
        run(PlacedPoints(HeldPoints(rows), mesh(1), 1e9), initial, 5, SPHERICAL)
        for rows in (ROWS.astype(np.float32), (ROWS * lengths).astype(np.float32))
    ]
    np.testing.assert_allclose(np.linalg.norm(results[0], axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(*results, atol=1e-5)


def test_greedy_seeding_finds_every_blob_on_any_mesh() -> None:
    rows = blobs([300, 200, 100, 50, 30, 20], spread=0.01)
    points = HeldPoints(rows)
    seeds = [seeded(points, 6, "a", 0, 0, EXACT, mesh(devices)) for devices in (1, 8)]
    np.testing.assert_allclose(*seeds, atol=1e-6)
    labels = ((rows[:, None].astype(np.float32) - seeds[0]) ** 2).sum(-1).argmin(1)
    blob = np.repeat(np.arange(6), [300, 200, 100, 50, 30, 20])
    assert len(set(zip(labels, blob, strict=True))) == 6
    # Each seed is a point, and names and seeds change the draws.
    assert all((rows.astype(np.float32) == seed).all(1).any() for seed in seeds[0])
    for name, seed in (("b", 0), ("a", 1)):
        assert (seeded(points, 6, name, seed, 0, EXACT, mesh(1)) != seeds[0]).any()


def test_seeds_are_drawn_by_squared_distance() -> None:
    # Points at distances 1 and 2 from many equal ones: the second seed of two, without a choice
    # among candidates, would be the far one in 4 of 5 cases; greedy choices only raise that.
    rows = np.zeros((512, 8), np.float16)
    rows[100, 0], rows[400, 1] = 1, 2
    seeds = [seeded(HeldPoints(rows), 2, "a", seed, 0, EXACT, mesh(1)) for seed in range(40)]
    far = sum((centroids[:, 1] == 2).any() for centroids in seeds)
    assert far >= 30  # the probability of fewer is below 1e-5 with two candidates (0.96 each)
    assert all((np.abs(centroids).sum(1) > 0).any() for centroids in seeds)


def test_duplicate_points_leave_clusters_empty_and_numbers_finite() -> None:
    rows = np.repeat(ROWS[::350], 40, axis=0)  # two different points
    points = HeldPoints(rows)
    seeds = seeded(points, 5, "a", 0, 0, EXACT, mesh(1))
    assert len(np.unique(seeds, axis=0)) == 2
    placed = PlacedPoints(points, mesh(1), 1e9)
    result = assigned(placed, run(placed, seeds, 5, EXACT), EXACT, "test")
    assert sorted(result.sizes.tolist()) == [0, 0, 0, 40, 40]
    assert result.distances.max() < 1e-6


def test_points_that_are_not_finite_are_named() -> None:
    rows = ROWS.copy()
    rows[321, 4] = np.nan
    points = HeldPoints(rows, title="the embedding of example")
    message = "the embedding of example 321 is not finite, expected numbers"
    with pytest.raises(UserError, match=message):
        seeded(points, 3, "a", 0, 0, EXACT, mesh(1))
    with pytest.raises(UserError, match=message):
        run(PlacedPoints(points, mesh(1), 1e9), np.float32(ROWS[:3]), 2, EXACT)
    with pytest.raises(UserError, match=message):
        assigned(PlacedPoints(points, mesh(1), 1e9), np.float32(ROWS[:3]), EXACT, "test")


def test_padded_sizes_are_few() -> None:
    sizes = {padded_size(count, 8) for count in range(1, 4097)}
    assert len(sizes) < 40
    assert all(count <= padded_size(count, 8) <= 1.25 * count + 8 for count in range(1, 4097))
