"""Checkpoints moved between meshes: equal values and losses, and no array held unsharded."""

from __future__ import annotations

from pathlib import Path

import jax
import meshes
import numpy as np
import pytest
from tolerances import SAME_LOSS

from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.training.checkpoints import save_state
from dinotxt_jax.training.step import TrainState

MESHES = ("1", "8x1", "2x4", "4x2")
POSITIONS = {"data": {"next_step": 2}, "seed": 0}


@pytest.fixture(scope="module")
def trained() -> tuple[TrainState, list[float]]:
    """Returns a state after two steps on eight devices, and the losses of the next two."""
    state, _ = meshes.steps("8x1", meshes.trainer("8x1").create_state(), 2)
    return state, meshes.steps("8x1", state, 2)[1]


@pytest.mark.parametrize(
    ("saved_on", "compared"),
    [
        *((name, {("8x1", "2x4")}) for name in MESHES),
        pytest.param("8x1", {("8x1", name) for name in MESHES}, marks=pytest.mark.slow),
    ],
)
def test_a_checkpoint_of_any_mesh_is_restored_on_any_other(
    saved_on: str,
    compared: set[tuple[str, str]],
    trained: tuple[TrainState, list[float]],
    tmp_path: Path,
) -> None:
    """The steps that follow have equal losses on another mesh, too (on all in `make slow`)."""
    state, expected = trained
    there = jax.tree.map(lambda a: a.sharding, meshes.trainer(saved_on).abstract_state())
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    save_state(checkpoints, jax.device_put(jax.device_get(state), there), POSITIONS)
    checkpoints.close()
    before = meshes.stored_fingerprint(state)
    for name in MESHES:
        restored, positions = meshes.restored(tmp_path / "checkpoints", name)
        assert meshes.stored_fingerprint(restored) == before
        assert meshes.has_sharding(restored, name)
        assert positions == POSITIONS
        if (saved_on, name) in compared:
            assert meshes.steps(name, restored, 2)[1] == pytest.approx(expected, rel=SAME_LOSS)


def test_fsdp_shards_restored_arrays(
    trained: tuple[TrainState, list[float]], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    save_state(checkpoints, trained[0], POSITIONS)
    checkpoints.close()
    restored, _ = meshes.restored(tmp_path / "checkpoints", "2x4")
    sizes = [
        (shard.data.size, array.size)
        for array in jax.tree.leaves((restored.trainable, restored.optimizer))
        for shard in array.addressable_shards
    ]
    held, whole = np.sum([size for size in sizes if size[1] >= 1024], axis=0)
    assert held == whole / 4  # every large array, by each of the eight devices
