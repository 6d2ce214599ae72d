"""Complete runs on several processes: equal to single-process runs and after a lost process."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import several
from damage import empty, flip, largest, truncate
from small_runs import HELD_OUT, config, losses, metrics_of
from small_sets import jsonl
from tolerances import SAME_LOSS, assert_same

import dinotxt_jax as dt
from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    MeshConfig,
    TaskConfig,
    TextTrainingConfig,
)
from dinotxt_jax.data.shard_files import shard_problem
from dinotxt_jax.errors import STORAGE
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.metrics import read_metrics
from dinotxt_jax.training.precompute import precompute

EVALUATION = EvaluationConfig(
    tasks={"scenes": TaskConfig(data=HELD_OUT)}, at=(3,), best="scenes/mean_recall", batch_size=8
)
MESH = MeshConfig(data=2, fsdp=4)
TEXT = TextTrainingConfig(width=32, depth=1, num_heads=2, pack=True)


def train_apart(run: Config, workdir: Path, count: int, devices: int) -> several.Group:
    """Runs `dinotxt_jax.train` in several processes (or in one separate process)."""
    flag = several.config_file(run, workdir.parent / "config.py")
    arguments = ["-m", "dinotxt_jax.train", flag, f"--workdir={workdir}"]
    return several.start(workdir.parent / f"logs{time.monotonic_ns()}", count, devices, arguments)


@pytest.mark.slow
def test_two_processes_fall_back_past_damaged_checkpoints_and_train_as_one_does(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """One process on a mesh of 8 x 1, two on 2 x 4.

    Three of four checkpoints are damaged, each in a way that another check notices.
    """
    run = config(
        tiny_backbone,
        steps=4,
        text=TEXT,
        evaluation=EVALUATION,
        checkpoint=CheckpointConfig(every=1, keep=4),
    )
    train(run, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for product in ("model", "best"):
        shutil.rmtree(tmp_path / "two" / product)
    (tmp_path / "two/best.json").unlink()
    checkpoints = tmp_path / "two/checkpoints"
    empty(checkpoints / "4/trainable/_METADATA")
    truncate(largest(checkpoints / "3"))
    flip(largest(checkpoints / "2"))
    group = train_apart(dataclasses.replace(run, mesh=MESH), tmp_path / "two", 2, 4)
    assert group.finish() == [0, 0], group.everything()
    assert "resuming from step 1" in group.output(0)
    for step in (4, 3, 2):
        assert f"the checkpoint of step {step} is damaged" in group.output(0)
    rows = metrics_of(tmp_path / "two")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]  # written once
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=SAME_LOSS)
    for row, other in zip(rows, metrics_of(tmp_path / "one"), strict=True):
        for name in ("grad_norm", "text_tokens_computed_fraction", "packing_overflows"):
            assert row[name] == pytest.approx(other[name], rel=1e-5)
    evaluated, expected = (
        [row for row in read_metrics(tmp_path / name / "metrics.jsonl") if "loss" not in row]
        for name in ("two", "one")
    )
    assert evaluated == expected
    names = {path.name for path in (tmp_path / "two").iterdir()}
    set_aside = {f"damaged_checkpoint_{step}.0" for step in (4, 3, 2)}
    # In this process, `without_extras` leaves the picture out.
    expected_names = {path.name for path in (tmp_path / "one").iterdir()} | {"curves.png"}
    assert names == expected_names | set_aside
    assert len(list((tmp_path / "two/tensorboard").iterdir())) == 2  # one more than before
    tokens = np.arange(10)[None] % 9
    for kept in ("model", "best"):
        two_processes, one_process = (dt.load(tmp_path / name / kept) for name in ("two", "one"))
        assert_same(
            two_processes.encode_text(tokens, normalize=True),
            one_process.encode_text(tokens, normalize=True),
        )
    assert "model: " in group.output(0)
    for line_start in ("model: ", "INFO", "training", "scenes"):
        assert line_start not in group.output(1)


@pytest.mark.slow
def test_sigterm_to_one_process_saves_and_ends_all(
    finished: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, steps=10_000, checkpoint=CheckpointConfig(every=10_000))
    workdir = tmp_path / "run"
    group = train_apart(run, workdir, 2, 1)
    wait_for(lambda: max(losses(workdir), default=0) > 1, group)
    group.processes[1].send_signal(signal.SIGTERM)
    assert group.finish(120) == [143, 143], group.everything()
    last = max(losses(workdir))
    assert f"ended by SIGTERM; step {last} is saved" in group.output(0)
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(last)]
    # Both started from the same state on the same data as one process does.
    assert losses(workdir)[1] == pytest.approx(losses(finished)[1], rel=SAME_LOSS)


@pytest.mark.slow
def test_too_many_bad_images_save_the_step_and_end_all(tiny_backbone: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    run = config(tiny_backbone, data=jsonl(tmp_path / "photos", 12))
    group = train_apart(run, tmp_path / "run", 2, 1)
    assert group.finish() == [2, 2], group.everything()
    last = max(losses(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [str(last)]


@pytest.mark.slow
def test_what_one_process_cannot_read_saves_the_step_and_ends_all(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """Each process has its own copy of the feature cache, and one is emptied during the run."""
    run = config(
        tiny_backbone,
        steps=10_000,
        features=str(tmp_path / "0"),
        feature_views=1,
        checkpoint=CheckpointConfig(every=10_000),
    )
    precompute(run)
    shutil.copytree(tmp_path / "0", tmp_path / "1")
    flag = several.config_file(run, tmp_path / "config.py")
    arguments = ["-m", "dinotxt_jax.train", flag, f"--workdir={tmp_path / 'run'}"]
    own = [[], [f"--config.features={tmp_path / '1'}"]]
    group = several.start(tmp_path / "logs", 2, 1, arguments, own)
    wait_for(lambda: max(losses(tmp_path / "run"), default=0) > 1, group)
    empty(tmp_path / "1/v000-s00000.npy")
    assert group.finish(60) == [2, 2], group.everything()
    assert "v000-s00000.npy is damaged" in group.output(1)
    assert "process 1 stopped: " in group.output(0)
    last = max(losses(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == [str(last)]


@pytest.mark.slow
@pytest.mark.parametrize("failing", [0, 1])
def test_a_failed_save_of_one_process_ends_all(
    failing: int, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Orbax would wait 20 minutes for the process whose write has failed."""
    mesh = MeshConfig(data=1, fsdp=2)  # both processes write
    run = config(tiny_backbone, steps=10_000, mesh=mesh, checkpoint=CheckpointConfig(every=3))
    group = train_apart(run, tmp_path / "run", 2, 1)
    wait_for((tmp_path / "run/checkpoints/3").exists, group)
    process = group.processes[failing].pid
    _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (100_000, hard))  # enough for the metrics
    assert group.finish(60) == [STORAGE, STORAGE], group.everything()
    assert "File too large; free space there" in group.output(failing)
    assert f"process {failing} stopped: " in group.output(1 - failing)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_run_that_lost_a_process_resumes_with_another_count(
    lost: int, tiny_backbone: Path, tmp_path: Path
) -> None:
    """`kill -9` ends one of two processes; one process resumes, is killed, too, and four resume."""
    run = config(tiny_backbone, steps=14, mesh=MESH, text=TEXT)
    train(run, tmp_path / "whole")
    expected, workdir = losses(tmp_path / "whole"), tmp_path / "killed"
    kill_after(4, train_apart(run, workdir, 2, 4), workdir, lost)
    kill_after(8, train_apart(run, workdir, 1, 8), workdir, 0)
    group = train_apart(run, workdir, 4, 2)
    assert group.finish() == [0] * 4, group.everything()
    assert losses(workdir) == pytest.approx(expected, rel=SAME_LOSS)
    assert sorted(losses(workdir)) == list(range(1, 15))


def wait_for(event: Callable[[], bool], group: several.Group) -> None:
    deadline = time.monotonic() + several.LIMIT
    while not event():
        assert all(process.poll() is None for process in group.processes), group.everything()
        assert time.monotonic() < deadline, group.everything()
        time.sleep(0.01)


def kill_after(checkpoint: int, group: several.Group, workdir: Path, lost: int) -> None:
    """Kills a process once the checkpoint exists; the others must then exit without help."""
    wait_for((workdir / "checkpoints" / str(checkpoint)).exists, group)
    group.processes[lost].send_signal(signal.SIGKILL)
    codes = group.finish(120)
    assert codes[lost] == -signal.SIGKILL, group.everything()
    for index, code in enumerate(codes):
        if index != lost:
            assert code != 0
            output = group.output(index)
            # The message is ours, or JAX's where the first process was killed.
            assert "lost another process" in output or "another task died" in output, output


@pytest.mark.slow
def test_two_processes_encode_and_evaluate_as_one_does(tiny_backbone: Path, tmp_path: Path) -> None:
    run = config(tiny_backbone, steps=3, features=str(tmp_path / "one"), feature_views=2)
    precompute(run)
    flag = several.config_file(run, tmp_path / "config.py")
    arguments = ["-m", "dinotxt_jax.precompute", flag, f"--config.features={tmp_path / 'two'}"]
    group = several.start(tmp_path / "logs", 2, 4, arguments)
    assert group.finish() == [0, 0], group.everything()
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == files
    for view in range(2):
        assert shard_problem(tmp_path / "two", view, 0, 40, "float32", sums=True) == ""
    for name in files:
        # Checksums differ where the last bits do; those above agree with the tokens.
        if name.endswith(".npy") and not name.endswith(".sums.npy"):
            two_processes, one_process = (
                np.load(tmp_path / folder / name) for folder in ("two", "one")
            )
            assert_same(two_processes, one_process)
    model = train(run, tmp_path / "run")
    tasks = EvaluationConfig(tasks={"scenes": TaskConfig(data=HELD_OUT)}, batch_size=8)
    evaluate(str(model), tasks, tmp_path / "alone")
    flag = several.config_file(tasks, tmp_path / "tasks.py")
    arguments = ["-m", "dinotxt_jax.evaluate", flag, f"--model={model}"]
    arguments += [f"--output={tmp_path / 'together'}"]
    group = several.start(tmp_path / "more_logs", 2, 4, arguments)
    assert group.finish() == [0, 0], group.everything()
    results, expected = (
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("together", "alone")
    )
    assert results == expected
    assert sorted(path.name for path in (tmp_path / "together").iterdir()) == sorted(
        path.name for path in (tmp_path / "alone").iterdir()
    )


def test_an_input_missing_in_one_process_ends_all(tiny_backbone: Path, tmp_path: Path) -> None:
    flag = several.config_file(config(tiny_backbone), tmp_path / "config.py")
    arguments = ["-m", "dinotxt_jax.train", flag, f"--workdir={tmp_path / 'run'}"]
    own = [[], ["--config.backbone=nowhere"]]
    group = several.start(tmp_path / "logs", 2, 1, arguments, own)
    assert group.finish() == [2, 2], group.everything()
    assert "error: nowhere is not a model directory" in group.output(1)
    assert "error: process 1 stopped: nowhere is not a model directory" in group.output(0)
    assert not (tmp_path / "run").exists()
