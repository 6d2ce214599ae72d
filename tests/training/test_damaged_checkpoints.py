"""Damaged checkpoints: the newest whole one is used, and nothing is lost."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from damage import CHECKPOINT_DAMAGES, flip, largest
from small_runs import config, losses
from small_states import abstract, state

from dinotxt_jax import UserError
from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.storage.faults import may_be_damaged
from dinotxt_jax.training.checkpoints import restore_newest, save_state
from dinotxt_jax.training.loop import train


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Returns a folder with the checkpoints 1 and 2."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    for step in (1, 2):
        save_state(checkpoints, state(step), {"seed": step})
    checkpoints.close()
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("damage", CHECKPOINT_DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(
    damage: str,
    saved: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Orbax prints tracebacks of errors that it raises, too; the user sees our sentence only."""
    CHECKPOINT_DAMAGES[damage](saved / "2")
    checkpoints = Checkpoints(saved, 3)
    restored = restore_newest(checkpoints, abstract())
    gc.collect()
    assert len(caplog.records) == 1
    assert caplog.text.count("the checkpoint of step 2") == 1
    assert "the checkpoint of step 2 is damaged (" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
    assert [str(warning.message) for warning in recwarn] == []
    assert restored is not None
    assert int(restored[0].step) == 1
    assert restored[1] == {"seed": 1}
    np.testing.assert_array_equal(restored[0].trainable["rows"], state(1).trainable["rows"])
    assert [path.name for path in saved.iterdir()] == ["1"]
    assert (saved.parent / "damaged_checkpoint_2.0").is_dir()
    save_state(checkpoints, state(2), {"seed": 2})  # the run reaches the step again
    checkpoints.close()
    again = restore_newest(Checkpoints(saved, 3), abstract())
    assert again is not None
    assert int(again[0].step) == 2


@pytest.mark.parametrize("damage", ["data flipped", "all files empty"])
def test_without_a_whole_checkpoint_nothing_is_changed(damage: str, saved: Path) -> None:
    for step in ("1", "2"):
        CHECKPOINT_DAMAGES[damage](saved / step)
    before = sorted(path for path in saved.parent.rglob("*"))
    with pytest.raises(UserError, match="none of the 2 checkpoints of this run can be read"):
        restore_newest(Checkpoints(saved, 3), abstract())
    assert sorted(path for path in saved.parent.rglob("*")) == before


def test_a_storage_error_that_passes_is_not_damage(saved: Path) -> None:
    """Orbax wraps the error of the storage in others that say nothing about it."""
    checkpoints = Checkpoints(saved, 3)
    assert checkpoints.steps() == [2, 1]
    with no_more_files(), pytest.raises(Exception, match="oo many open files") as failure:
        restore_newest(checkpoints, abstract())
    assert not may_be_damaged(failure.value)
    assert sorted(path.name for path in saved.iterdir()) == ["1", "2"]
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoints"]


@contextlib.contextmanager
def no_more_files() -> Iterator[None]:
    """Lets the process open no further file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    opened = []
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for number in opened:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_changed_values_are_noticed_where_the_format_sees_nothing(saved: Path) -> None:
    """The arrays of step 1 are written under step 2, as a mixed-up copy does."""
    shutil.rmtree(saved / "2/trainable")
    shutil.copytree(saved / "1/trainable", saved / "2/trainable")
    restored = restore_newest(Checkpoints(saved, 3), abstract())
    assert restored is not None
    assert int(restored[0].step) == 1


def test_values_that_are_not_finite_are_damage(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    save_state(checkpoints, state(1), {})
    broken = state(2)
    rows = broken.trainable["rows"].at[0, 0].set(jnp.nan)
    save_state(checkpoints, broken._replace(trainable=broken.trainable | {"rows": rows}), {})
    checkpoints.close()
    restored = restore_newest(Checkpoints(tmp_path / "checkpoints", 3), abstract())
    assert restored is not None
    assert int(restored[0].step) == 1


def test_checkpoints_without_checksums_are_still_read(tmp_path: Path) -> None:
    """Runs started before checksums existed continue."""
    checkpoints, old = Checkpoints(tmp_path / "checkpoints", 3), state(1)
    checkpoints.save(1, {"trainable": old.trainable, "optimizer": old.optimizer}, {"seed": 1})
    checkpoints.close()
    restored = restore_newest(Checkpoints(tmp_path / "checkpoints", 3), abstract())
    assert restored is not None
    assert int(restored[0].step) == 1


def test_a_run_repeats_the_steps_of_a_damaged_checkpoint(
    finished: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    flip(largest(workdir / "checkpoints/8"))
    shutil.rmtree(workdir / "model")
    train(config(tiny_backbone), workdir)
    assert losses(workdir) == losses(finished)
    assert (workdir / "model/model.json").exists()
    assert (workdir / "damaged_checkpoint_8.0").is_dir()
