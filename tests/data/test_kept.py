"""Lists of kept examples: which examples training reads, and damaged or foreign lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dinotxt_jax import UserError
from dinotxt_jax.config import DataConfig
from dinotxt_jax.config.sources import MixtureConfig
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import KeptRows, read_kept, write_kept
from dinotxt_jax.data.sources import open_source

POOL = DataConfig(num_scenes=20)


def written(path: Path, counts: np.ndarray, pool: DataConfig = POOL) -> Path:
    write_kept(path, counts, data_identity(open_source(pool), 0), {"how": "by hand"})
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 1.0])
def test_rows_of_a_bitmap_are_the_kept_indices(share: float) -> None:
    is_kept = np.random.default_rng(0).random(20_000) < share
    rows = KeptRows(np.packbits(is_kept))
    expected = np.flatnonzero(is_kept)
    assert len(rows) == len(expected)
    step = max(1, len(rows) // 200)
    assert [rows[n] for n in range(0, len(rows), step)] == expected[::step].tolist()
    np.testing.assert_array_equal(rows.counts(20_000), is_kept)
    with pytest.raises(IndexError):
        rows[len(rows)]


@pytest.mark.parametrize("repeated", [1, 3])
def test_training_reads_the_kept_examples(tmp_path: Path, repeated: int) -> None:
    counts = np.zeros(20, np.int64)
    counts[[3, 19]] = 1, repeated
    file = written(tmp_path / "kept.npz", counts)
    pool = open_source(POOL)
    source = open_source(DataConfig(num_scenes=20, kept=str(file)))
    assert [source.key(i) for i in range(len(source))] == [pool.key(3)] + [pool.key(19)] * repeated
    assert source.captions(1) == source[1].captions == pool.captions(19)
    np.testing.assert_array_equal(read_kept(file, "x").rows.counts(20), counts)
    part = MixtureConfig(num_scenes=20, kept=str(file))
    assert len(open_source(DataConfig(mixture={"a": part, "b": part}))) == 2 * len(source)


def test_a_list_for_another_pool_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "kept.npz", np.ones(20, np.int64))
    with pytest.raises(UserError, match=r"another pool: 20 examples there, 21 here"):
        open_source(DataConfig(num_scenes=21, kept=str(file)))
    with pytest.raises(UserError, match=r"in another order .* correct config\.data\.kept"):
        open_source(DataConfig(num_scenes=20, split="test", kept=str(file)))


def test_a_list_that_keeps_nothing_or_is_damaged_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path / "kept.npz", np.zeros(20, np.int64))
    config = DataConfig(num_scenes=20, kept=str(file))
    with pytest.raises(UserError, match="keeps no example, expected at least one"):
        open_source(config)
    whole = written(file, np.ones(20, np.int64)).read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"bits.npy") + 60] ^= 1
    for damaged in (b"", b"PK", whole[: len(whole) // 2], bytes(flipped)):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            open_source(config)
    np.savez(file, description="{}")
    with pytest.raises(UserError, match="cannot be read"):
        open_source(config)
    file.unlink()
    with pytest.raises(UserError, match=r"there is no file .*kept\.npz"):
        open_source(config)
