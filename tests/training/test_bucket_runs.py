"""Everything in a bucket: backbone, features, work directory, evaluation and the trained model."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import time
from pathlib import Path

import commands
import numpy as np
import pytest
import several
from commands import environment
from small_runs import HELD_OUT, InterruptedRunError, config, interrupted_at, losses, metrics_of
from tolerances import SAME_LOSS

import dinotxt_jax as dt
from dinotxt_jax.config import EvaluationConfig, TaskConfig
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.metrics import read_metrics
from dinotxt_jax.training.precompute import precompute
from dinotxt_jax.training.status import described_status, run_status

EVALUATION = EvaluationConfig(tasks={"scenes": TaskConfig(data=HELD_OUT)}, every=4, batch_size=8)


@pytest.fixture
def backbone(tiny_backbone: Path, bucket: Address) -> str:
    """Returns the address of the backbone, copied as one would copy a folder."""
    for file in tiny_backbone.rglob("*"):
        if file.is_file():
            name = file.relative_to(tiny_backbone).as_posix()
            (bucket / "backbone" / name).write_bytes(file.read_bytes())
    return str(bucket / "backbone")


@pytest.mark.slow
def test_an_interrupted_run_in_a_bucket_makes_the_steps_of_a_local_run(
    finished: Path,
    backbone: str,
    bucket: Address,
    monkeypatch: pytest.MonkeyPatch,
    with_pictures: None,
) -> None:
    run = config(backbone, evaluation=EVALUATION)
    interrupted_at(7, monkeypatch)
    with pytest.raises(InterruptedRunError):
        train(run, bucket / "run")
    status = run_status(bucket / "run")
    assert "step 6 of 8" in described_status(status)[0]
    assert all(age is not None and age < 3600 for age in status.ages)
    model = train(run, bucket / "run")
    assert model == bucket / "run/model"
    assert losses(bucket / "run") == losses(finished)  # bit by bit
    results = [
        [row for row in read_metrics(folder / "metrics.jsonl") if "loss" not in row]
        for folder in (bucket / "run", finished)
    ]
    assert results[0] == results[1]
    rows = ["a red circle", "two blue stars"]
    features = [
        np.asarray(loaded.encode_text(loaded.tokenizer(rows)))
        for loaded in (dt.load(str(model)), dt.load(finished / "model"))
    ]
    np.testing.assert_array_equal(*features)
    names = {file.name for file in (bucket / "run").iterdir()}
    pictures = {"samples.png", "curves.png"}
    assert {"run.json", "metrics.jsonl", "tensorboard", "goodput.json"} | pictures <= names
    assert ".lock" not in names


@pytest.mark.slow
def test_features_and_results_of_an_evaluation_are_kept_in_a_bucket(
    finished: Path, backbone: str, bucket: Address
) -> None:
    run = config(backbone, features=str(bucket / "features"), feature_views=2)
    precompute(run)
    train(run, bucket / "run")
    actual, expected = losses(bucket / "run"), losses(finished)
    for step in range(1, 9):
        assert actual[step] == pytest.approx(expected[step], rel=SAME_LOSS)
    model, tasks = str(bucket / "run/model"), dataclasses.replace(EVALUATION, every=0)
    files = evaluate(model, tasks, bucket / "eval")
    assert [file.name for file in files] == [
        *("results.json", "report.md", "report.html", "scenes.png")
    ]
    results = json.loads((bucket / "eval/results.json").read_text())["scenes"]
    assert results["metrics"].keys() == results["chance"].keys()
    written = (bucket / "eval/scenes.png").stat().st_mtime
    evaluate(model, tasks, bucket / "eval")
    assert (bucket / "eval/scenes.png").stat().st_mtime == written  # nothing is computed again


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(backbone: str, bucket: Address) -> None:
    run = config(backbone)
    train(run, bucket / "run")
    expected = losses(bucket / "run")
    for file in (bucket / "run/checkpoints/8/trainable").rglob("*"):
        if "/d/" in str(file) and file.is_file():
            file.write_bytes(file.read_bytes()[:-7])
    train(run, bucket / "run")
    assert losses(bucket / "run") == expected
    assert (bucket / "run/damaged_checkpoint_8.0").is_dir()


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("gs://denied/run", r"access is denied .*; correct the path\."),
        ("gs://nowhere/run", r"no such object, folder or bucket; correct the path\."),
        ("s3://pod/run", r"--workdir is s3://pod/run, but only data is read from s3://"),
        ("gss://pod/run", r"gss://pod/run has the scheme gss://.*; did you mean gs://\?"),
    ],
)
def test_a_work_directory_that_cannot_be_written_ends_the_command_before_it_compiles(
    workdir: str, message: str, tiny_backbone: Path, served_buckets: None, tmp_path: Path
) -> None:
    flag = several.config_file(config(tiny_backbone), tmp_path / "config.py")
    result = commands.run(["-m", "dinotxt_jax.train", flag, f"--workdir={workdir}"])
    assert result.returncode == 2, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line
    assert "step/s" not in result.stderr


@pytest.mark.slow
def test_two_killed_processes_are_continued_by_one_in_a_bucket(
    finished: Path, backbone: str, bucket: Address, tmp_path: Path
) -> None:
    run = config(backbone, evaluation=EVALUATION)
    flag = several.config_file(run, tmp_path / "config.py")
    command = ["-m", "dinotxt_jax.train", flag, f"--workdir={bucket / 'run'}"]
    group = several.start(tmp_path / "logs", 2, 1, command)
    deadline = time.monotonic() + 180
    while not (bucket / "run/checkpoints/4/commit_success.txt").exists():
        assert time.monotonic() < deadline, group.everything()
        time.sleep(0.1)
    for process in group.processes:
        process.send_signal(signal.SIGKILL)
        process.wait(20)
    result = commands.run(command, env=environment(2))
    assert result.returncode == 0, result.stderr
    expected = losses(finished)
    actual = {row["step"]: row["loss"] for row in metrics_of(bucket / "run")}
    assert sorted(actual) == sorted(expected)
    np.testing.assert_allclose(
        [actual[step] for step in expected], list(expected.values()), rtol=SAME_LOSS
    )
