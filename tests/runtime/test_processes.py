"""Several processes: how they are started, agree, end, and move checkpoints."""

from __future__ import annotations

import re
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import meshes
import numpy as np
import pytest
import small_states
from damage import empty, flip, largest, truncate
from several import found_by, joined
from small_runs import HELD_OUT
from tolerances import SAME_LOSS, assert_same

import dinotxt_jax as dt
from dinotxt_jax import UserError
from dinotxt_jax.config import TaskConfig
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import STORAGE
from dinotxt_jax.evaluation.embedding import embed_source
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.arrays import Checkpoints, save_arrays
from dinotxt_jax.training.checkpoints import save_state

STEP_OF_TWO = {"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (STEP_OF_TWO, "Slurm"),
        (STEP_OF_TWO | {"SLURM_STEP_NUM_TASKS": "1"}, None),  # a shell inside the allocation
        ({"SLURM_NTASKS": "2"}, None),  # the batch script itself
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "Open MPI"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod, but not of an indexed job
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, "Kubernetes"),
    ],
)
def test_launchers_are_detected_from_the_environment(
    environment: dict[str, str], expected: str | None
) -> None:
    assert processes._launcher(environment) == expected


def test_a_launcher_variable_that_is_no_number_is_named() -> None:
    environment = STEP_OF_TWO | {"SLURM_NTASKS": "two"}
    with pytest.raises(UserError, match="SLURM_NTASKS=two is not a number; correct or unset it"):
        processes._launcher(environment)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("a:1", 2, None), "--coordinator=a:1, --num_processes=2 is given without --process_id"),
        ((None, 2, 0), "--num_processes=2, --process_id=0 is given without --coordinator"),
        (("a", 2, 0), "--coordinator=a is not HOST:PORT"),
        (("a:99999", 2, 0), "--coordinator=a:99999 is not HOST:PORT"),
        (("a:1", 0, 0), "--num_processes=0 is not positive"),
        (("a:1", 2, 2), r"--process_id=2 is not a number from 0 to 1 \(--num_processes=2\)"),
        (("a:1", 2, -1), "--process_id=-1 is not a number from 0 to 1"),
    ],
)
def test_settings_that_do_not_go_together(
    settings: tuple[str | None, int | None, int | None], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        processes.start(*settings, heartbeat_timeout=100)


def test_one_process_joins_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: pytest.fail("joined"))
    processes.start(None, None, None, 100)
    for name, value in STEP_OF_TWO.items():
        monkeypatch.setenv(name, value)
    processes.start(None, 1, None, 100)
    assert not processes.several()
    assert processes.is_first()


def test_missing_values_come_from_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((*a, k)))
    for name, value in STEP_OF_TWO.items():
        monkeypatch.setenv(name, value)
    processes.start(None, None, None, 7)
    processes.start("a:1", 3, 2, 7)
    assert calls[0][:3] == (None, None, None)
    assert calls[0][3] == {"cluster_detection_method": None, "heartbeat_timeout_seconds": 7}
    assert calls[1][:3] == ("a:1", 3, 2)
    assert calls[1][3]["cluster_detection_method"] == "deactivate"


def test_processes_agree(tmp_path: Path) -> None:
    first, second = found_by(joined(tmp_path, "agreement", 2, 1), tmp_path)
    for result in (first, second):
        assert result["numbers"] == [[0, 10], [1, 11]]
        assert result["texts"] == ["ä", "ää"]
        assert result["first_says"] is True
        assert result["one"] == ["of0", "of1"]
        rounds = [[[number, ""], [number, "ä"]] for number in range(3)]
        assert result["exchanged"] == [*rounds, [{"me": 0}, {"me": 1}]]
        different = "process 1 has seed 1 (process 0: 0); start all processes with equal settings."
        assert result["errors"][2] == different
        assert "process 1 does not see" in result["errors"][3]
        assert "a folder that they share" in result["errors"][3]
    assert first["closed"]
    assert first["errors"][:2] == ["0 has failed.", "process 1 stopped: 1 has failed."]
    assert second["errors"][:2] == ["process 0 stopped: 0 has failed.", "1 has failed."]


@pytest.mark.parametrize(
    ("message", "lost"),
    [
        ("INTERNAL: Gloo AllReduce failed: Connection closed by peer [127.0.0.1]:8476", True),
        ("UNAVAILABLE: NCCL operation ncclAllReduce failed: remote process exited", True),
        ("UNAVAILABLE: The task 1 missed its heartbeat", True),
        ("RESOURCE_EXHAUSTED: NCCL operation ncclCommInitRank failed: out of memory", False),
        ("INVALID_ARGUMENT: Gloo got arrays of 4 and 8 bytes", False),
    ],
)
def test_only_errors_of_a_lost_process_are_taken_for_one(
    message: str,
    lost: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(processes, "leave", sys.exit)
    with pytest.raises(SystemExit) as ended:
        processes.exit_after(jax.errors.JaxRuntimeError(message))
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert ("lost another process" in shown) == lost
    assert ("Error: " + message in shown) != lost  # any other error keeps the traceback


def test_an_error_in_one_process_ends_the_others(tmp_path: Path) -> None:
    """The error occurs during a joint computation, where no process checks on the others."""
    group = joined(tmp_path, "left_alone", 2, 1)
    codes = group.finish(120)
    assert codes[1] == 2
    assert "error: only process 1 knows of this; correct it." in group.output(1)
    assert codes[0] == 1, group.everything()
    assert "error: process 0 of 2 lost another process" in group.output(0)
    assert "run the same command on all again" in group.output(0)


def test_sigterm_before_training_ends_a_joined_process(tmp_path: Path) -> None:
    """JAX's own handler would note the signal, and the process would go on."""
    group = joined(tmp_path, "told_to_end", 2, 1)
    assert group.finish(120) == [1, -signal.SIGTERM], group.everything()


def test_processes_fall_back_to_the_same_whole_checkpoint(tmp_path: Path) -> None:
    """Three of four checkpoints are damaged, each in a way that another check notices."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", 4)
    for step in (1, 2, 3, 4):
        save_state(checkpoints, small_states.state(step), {"seed": step})
    checkpoints.close()
    empty(tmp_path / "checkpoints/4/trainable/_METADATA")
    truncate(largest(tmp_path / "checkpoints/3"))
    flip(largest(tmp_path / "checkpoints/2"))
    group = joined(tmp_path, "fallback", 2, 1)
    assert found_by(group, tmp_path) == [{"step": 1, "positions": {"seed": 1}}] * 2
    for step in (4, 3, 2):
        assert f"the checkpoint of step {step} is damaged" in group.output(0)
        assert "is damaged" not in group.output(1)
    assert {path.name for path in tmp_path.glob("damaged*")} == {
        f"damaged_checkpoint_{step}.0" for step in (4, 3, 2)
    }


def test_a_save_that_fails_in_one_process_fails_in_all(tmp_path: Path) -> None:
    """Orbax would wait 20 minutes for the process whose write has failed."""
    group = joined(tmp_path, "no_room", 2, 1)
    assert group.finish(60) == [STORAGE, STORAGE], group.everything()
    assert "File too large; free space there" in group.output(0)
    assert "process 0 stopped: " in group.output(1)
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [1]


@pytest.mark.slow
def test_checkpoints_move_between_one_process_and_two(tmp_path: Path) -> None:
    """Saved by one on 8 x 1, restored and saved by two on 2 x 4, restored by one on 4 x 2."""
    positions = {"data": {"next_step": 2}, "seed": 0}
    state, _ = meshes.steps("8x1", meshes.trainer("8x1").create_state(), 2)
    checkpoints = Checkpoints(tmp_path / "checkpoints", 1)
    save_state(checkpoints, state, positions)
    checkpoints.close()
    abstract = meshes.large("8x1")
    columns = np.arange(abstract.shape[1], dtype=np.float32)
    large = jax.make_array_from_callback(
        abstract.shape, abstract.sharding, lambda at: np.broadcast_to(columns, abstract.shape)[at]
    )
    save_arrays(tmp_path / "large", {"arrays": {"large": large}})
    group = joined(tmp_path, "checkpoints", 2, 4)
    _, expected = meshes.steps("8x1", state, 2)
    for actual in found_by(group, tmp_path):
        assert actual["fingerprint"] == meshes.stored_fingerprint(state)
        assert actual["positions"] == positions
        assert actual["has_sharding"]
        assert actual["losses"] == pytest.approx(expected, rel=SAME_LOSS)
        assert actual["losses_of_shared_rows"] == pytest.approx(expected, rel=SAME_LOSS)
        assert actual["large_shards"] == [[abstract.shape[0], abstract.shape[1] // 8]] * 4
    again, _ = meshes.restored(tmp_path / "again", "4x2")
    assert meshes.stored_fingerprint(again) == meshes.stored_fingerprint(state)


def test_each_process_reads_its_share_of_an_evaluation(tiny_dinotxt: Path, tmp_path: Path) -> None:
    """24 images in batches of 10, padded to 12; each of 4 devices holds 3 rows of a batch."""
    (tmp_path / "model").symlink_to(tiny_dinotxt)
    first, second = found_by(joined(tmp_path, "shares", 2, 2), tmp_path)
    assert first["reads"] == [*range(6), *range(10, 16), *range(20, 24)]
    assert second["reads"] == [*range(6, 10), *range(16, 20)]
    task = TaskConfig(data=HELD_OUT)
    model = dt.load(tiny_dinotxt)
    expected = embed_source(Job(model, "scenes", task, open_source(task.data), 10))
    assert_same(np.load(tmp_path / "features.npy"), expected)
    damaged = r"example 6 cannot be evaluated \(it is damaged now"
    assert re.search(rf"^process 1 stopped: {damaged}", first["failure"])
    assert re.search(rf"^{damaged}", second["failure"])
