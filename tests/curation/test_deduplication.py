"""Near-duplicates within clusters are left out; the first one is kept."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from blobs import blobs, pool_config, write_embeddings

from dinotxt_jax import UserError
from dinotxt_jax.config.image_curation import ImageCurationConfig
from dinotxt_jax.curation.deduplication import deduplicate, without_duplicates
from dinotxt_jax.curation.hierarchy import cluster
from dinotxt_jax.curation.points import HeldPoints
from dinotxt_jax.data.kept import read_kept


def plain(rows: np.ndarray, labels: np.ndarray, similarity: float) -> np.ndarray:
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1)[:, None]
    close = np.tril(unit @ unit.T > similarity, -1) & (labels[:, None] == labels)
    return ~close.any(1) & (labels >= 0)


@pytest.mark.parametrize("memory", [1e9, 300 * 16])
def test_earlier_near_duplicates_of_the_same_cluster_decide(
    memory: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinotxt_jax.curation.deduplication._TILE", 64)
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(200, 8)), 3, axis=0) + 0.05 * rng.normal(size=(600, 8))
    rows = rng.permutation(rows).astype(np.float16)
    labels = rng.integers(-1, 3, 600).astype(np.int32)
    kept = without_duplicates(HeldPoints(rows), labels, 0.99, memory)
    np.testing.assert_array_equal(kept, plain(rows, labels, 0.99))
    assert 0.2 < kept.mean() < 0.7


def test_a_list_without_copies_is_written(tmp_path: Path) -> None:
    rows = blobs([40, 20, 10], spread=0.5)
    rows = np.concatenate([rows, rows[:30]])  # examples 70 to 99 are copies
    image = ImageCurationConfig(levels=(4,), rounds=(0,), similarity=0.9999)
    config = pool_config(100, image=image)
    embeddings, clusters, output = (str(tmp_path / name) for name in ("e", "c", "list.npz"))
    write_embeddings(Path(embeddings), rows, bad=[7])
    cluster(config, [embeddings], Path(clusters))
    sentence = deduplicate(config, [embeddings, clusters], Path(output))
    # Example 7 has no embedding, so that its copy, 77, stays.
    assert sentence == "70 of 99 examples are no near-duplicates of earlier ones."
    counts = read_kept(Path(output), "x").rows.counts(100)
    assert set(np.flatnonzero(counts)) == (set(range(70)) - {7}) | {77}
    with pytest.raises(UserError, match="1 folders are given, expected the folder of embeddings"):
        deduplicate(config, [embeddings], Path(output))
    write_embeddings(tmp_path / "other", rows[:, :4])
    with pytest.raises(UserError, match="c was made from other embeddings than .*other"):
        deduplicate(config, [str(tmp_path / "other"), clusters], Path(output))
    other = dataclasses.replace(config, data=pool_config(99).data)
    with pytest.raises(UserError, match="made for another pool: 100 examples there, 99 here"):
        deduplicate(other, [embeddings, clusters], Path(output))
    (tmp_path / "c" / "level1.npz").unlink()
    with pytest.raises(UserError, match="lacks level 1, expected a finished level"):
        deduplicate(config, [embeddings, clusters], Path(output))
