"""SIGTERM and Ctrl-C: the step is saved, and the next run continues from it."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from small_runs import (
    HELD_OUT,
    config,
    interrupted_at,
    losses,
)

from dinotxt_jax.config import (
    EvaluationConfig,
    TaskConfig,
)
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.storage import model_directory
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.metrics import read_metrics


@pytest.mark.parametrize(
    ("number", "code", "name"), [(signal.SIGTERM, 143, "SIGTERM"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_a_signal_saves_the_step_and_the_run_resumes_from_it(
    number: signal.Signals,
    code: int,
    name: str,
    finished: Path,
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def send() -> None:
        for _ in range(2 if number == signal.SIGTERM else 1):  # Slurm may send it repeatedly
            signal.raise_signal(number)

    before = signal.getsignal(number)
    calls = interrupted_at(7, monkeypatch, send)
    with pytest.raises(SystemExit) as ended:
        train(config(tiny_backbone), tmp_path / "run")
    assert ended.value.code == code
    assert f"ended by {name}; step 7 is saved" in capsys.readouterr().err
    assert signal.getsignal(number) == before
    assert not (tmp_path / "run/model").exists()
    train(config(tiny_backbone), tmp_path / "run")
    assert len(calls) == 8  # no step twice
    assert losses(tmp_path / "run") == losses(finished)


def test_a_second_ctrl_c_ends_at_once(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    interrupted_at(6, monkeypatch, twice)
    with pytest.raises(KeyboardInterrupt):
        train(config(tiny_backbone), tmp_path / "run")
    assert checkpoints_of(tmp_path / "run") == ["4"]


def test_a_signal_during_an_evaluation_saves_the_step_and_the_next_run_evaluates(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluations have three batches; step 4 has a checkpoint, which is not written again."""
    tasks = {"scenes": TaskConfig(data=HELD_OUT)}
    evaluation = EvaluationConfig(tasks=tasks, at=(3, 4), batch_size=8)
    run = config(tiny_backbone, evaluation=evaluation)
    original, batches = Job.end_batch, []

    def counted(job: Job, arrays: Any) -> None:
        batches.append(1)
        if len(batches) in (1, 5):
            signal.raise_signal(signal.SIGTERM)
        original(job, arrays)

    monkeypatch.setattr(Job, "end_batch", counted)
    for evaluated, count in (("3", 1), ("4", 5)):  # the second run first repeats step 3's
        with pytest.raises(SystemExit) as ended:
            train(run, tmp_path / "run")
        assert (ended.value.code, len(batches)) == (143, count)
        assert checkpoints_of(tmp_path / "run")[-1] == evaluated
    train(run, tmp_path / "run")
    rows = [row for row in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" not in row]
    assert [row["step"] for row in rows] == [3, 4]


def test_a_signal_during_the_export_leaves_no_partial_folder(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = model_directory.save_arrays

    def interrupted(path: Path, parts: dict[str, Any]) -> None:
        original(path, parts)
        signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(model_directory, "save_arrays", interrupted)
        with pytest.raises(SystemExit) as ended:
            train(config(tiny_backbone), tmp_path / "run")
    assert ended.value.code == 143
    assert not [path for path in (tmp_path / "run").iterdir() if "model" in path.name]
    train(config(tiny_backbone), tmp_path / "run")
    assert (tmp_path / "run/model/model.json").exists()


def checkpoints_of(workdir: Path) -> list[str]:
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())
