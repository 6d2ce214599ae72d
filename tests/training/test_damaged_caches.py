"""Damaged feature caches: noticed when they are read, and repaired by `precompute`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import empty, flip, truncate
from small_caches import config, open_cache

from dinotxt_jax import UserError
from dinotxt_jax.config import Config, DataConfig
from dinotxt_jax.data import feature_cache
from dinotxt_jax.training import precompute as writer
from dinotxt_jax.training.precompute import precompute


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SHARD", 8)


def read_all(run: Config) -> None:
    """Reads the tokens of every example."""
    cache = open_cache(run)
    for view in range(run.feature_views):
        for index in range(len(cache)):
            cache.tokens(view, index)


SHARD_DAMAGES: dict[str, Callable[[Path], object]] = {
    "v001-s00001.npy": flip,
    "v000-s00002.npy": truncate,
    "v000-s00000.npy": empty,
    "v001-s00002.npy": lambda file: file.write_bytes(b"PK" + file.read_bytes()[2:]),
    "v000-s00001.sums.npy": flip,
    "v001-s00000.skipped.npy": truncate,
}


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("name", SHARD_DAMAGES)
def test_a_damaged_shard_is_noticed_and_repaired(
    name: str, tiny_backbone: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = config(tiny_backbone, tmp_path / "features")
    precompute(run)
    files = sorted((tmp_path / "features").iterdir())
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    SHARD_DAMAGES[name](tmp_path / "features" / name)
    shard = name.partition(".")[0]
    with pytest.raises(UserError, match=rf"{shard}.*npy is damaged .*precompute with this config"):
        read_all(run)
    precompute(run)
    assert re.search(rf"{shard}.*npy is damaged .*: encoding it again", caplog.text)
    for file in files:
        assert file.read_bytes() == before[file.name][0]
        rewritten = file.stat().st_mtime_ns != before[file.name][1]
        assert rewritten == file.name.startswith(shard), file.name


@pytest.mark.usefixtures("small_shards")
def test_a_shard_truncated_under_a_running_job_is_a_sentence(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, tmp_path / "features")
    precompute(run)
    cache = open_cache(run)
    cache.tokens(0, 8)
    truncate(tmp_path / "features/v000-s00001.npy")
    cache.tokens(0, 8)
    with pytest.raises(UserError, match=r"v000-s00001.npy is damaged \(it has been truncated\)"):
        cache.tokens(0, 15)


def test_a_cache_with_more_shards_than_files_that_may_be_open(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "SHARD", 1)
    scenes = DataConfig(num_scenes=200, image_size=42, threads=2, prefetch=8)
    run = config(tiny_backbone, tmp_path / "features", data=scenes, feature_views=1)
    precompute(run)
    cache = open_cache(run)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for index in range(200):
        cache.tokens(0, index)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 130


def test_tokens_that_are_not_finite_are_not_cached(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "normalize", lambda images, *_: images * np.float32(np.nan))
    run = config(tiny_backbone, tmp_path / "features", feature_views=1)
    with pytest.raises(UserError, match="tokens for .* are not finite; use an intact backbone"):
        precompute(run)
    assert [file.name for file in (tmp_path / "features").iterdir()] == ["features.json"]


def test_a_cache_without_checksums_is_still_read(tiny_backbone: Path, tmp_path: Path) -> None:
    """Caches written before checksums existed stay as they are."""
    run = config(tiny_backbone, tmp_path / "features")
    precompute(run)
    expected = open_cache(run).tokens(1, 3)
    description = json.loads((tmp_path / "features/features.json").read_text())
    del description["checksums"]
    (tmp_path / "features/features.json").write_text(json.dumps(description))
    for file in (tmp_path / "features").glob("*.sums.npy"):
        file.unlink()
    precompute(run)
    assert not list((tmp_path / "features").glob("*.sums.npy"))
    np.testing.assert_array_equal(open_cache(run).tokens(1, 3), expected)
