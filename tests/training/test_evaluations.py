"""Evaluation during training: when it runs, which tasks run, and which model is kept."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from small_runs import HELD_OUT, config
from small_sets import write_index

from dinotxt_jax import UserError
from dinotxt_jax.config import (
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    SegmentationConfig,
    TaskConfig,
)
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.metrics import read_metrics
from dinotxt_jax.training.precompute import precompute


def test_the_best_model_is_kept_and_a_resumed_run_keeps_the_same(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Includes segmentation, which runs the backbone although training images are cached."""
    masks = SegmentationConfig("whole", image_size=56)
    tasks = {
        "scenes": TaskConfig(data=HELD_OUT),
        "masks": TaskConfig(
            kind="segmentation",
            data=HELD_OUT,
            templates="a {}",
            max_examples=6,
            segmentation=masks,
        ),
    }
    evaluation = EvaluationConfig(
        tasks=tasks, every=8, at=(1, 2, 3), batch_size=8, best="scenes/mean_recall"
    )
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    run = config(tiny_backbone, evaluation=evaluation, features=str(tmp_path / "features"))
    precompute(run)
    workdir = train(run, tmp_path / "run").parent
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" not in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 8]
    assert all(0 < row["masks/pixel_accuracy"] < 100 for row in rows)
    assert all(row["scenes/text_to_image_r1/chance"] == pytest.approx(100 / 24) for row in rows)
    best = json.loads((workdir / "best.json").read_text())
    values = {row["step"]: row["scenes/mean_recall"] for row in rows}
    assert best["value"] == max(values.values())
    assert best["step"] == min(step for step, value in values.items() if value == best["value"])
    tasks = EvaluationConfig(tasks={"scenes": TaskConfig(data=HELD_OUT)}, batch_size=8)
    evaluate(str(workdir / "best"), tasks, tmp_path / "report")
    result = json.loads((tmp_path / "report/results.json").read_text())["scenes"]["metrics"]
    assert result["mean_recall"] == pytest.approx(best["value"], abs=0.01)
    # A run resumed from step 4 reproduces the results and keeps the existing best model.
    shutil.rmtree(workdir / "checkpoints/8")
    before = (workdir / "best" / "model.json").stat().st_mtime
    train(run, workdir)
    again = [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" not in row]
    assert [row["step"] for row in again] == [1, 2, 3, 8]
    assert json.loads((workdir / "best.json").read_text()) == best
    assert (workdir / "best" / "model.json").stat().st_mtime == before


def test_a_result_that_is_no_number_is_never_the_best(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The check would refuse the learning rate that makes the numbers overflow here.
    monkeypatch.setattr("dinotxt_jax.training.loop.check", lambda *_, **__: None)
    evaluation = EvaluationConfig(
        tasks={"scenes": TaskConfig(data=HELD_OUT)},
        every=1,
        batch_size=8,
        best="scenes/mean_recall",
    )
    wild = OptimizerConfig(learning_rate=1e30, warmup_steps=0)
    run = config(tiny_backbone, steps=4, evaluation=evaluation, optimizer=wild)
    with pytest.raises(UserError, match="step 2 has the loss nan"):
        train(run, tmp_path / "run")
    rows = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [row["scenes/mean_recall"] for row in rows if "loss" not in row] == [0.0]


def test_the_data_of_tasks_is_opened_before_the_first_step(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    data = dataclasses.replace(HELD_OUT, source="jsonl", path="nowhere.jsonl")
    evaluation = EvaluationConfig(tasks={"a": TaskConfig(data=data)}, every=2, batch_size=8)
    key = "config.evaluation.tasks.a.data"
    message = f"no file nowhere.jsonl, expected an index for {key}.source=jsonl; .* {key}.path"
    with pytest.raises(UserError, match=message):
        train(config(tiny_backbone, evaluation=evaluation), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_images_that_are_all_missing_are_noticed_before_the_first_step(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    index = write_index(tmp_path, {"image": "a.png", "caption": "x"})
    data = dataclasses.replace(HELD_OUT, source="jsonl", path=str(index), split="")
    evaluation = EvaluationConfig(tasks={"a": TaskConfig(data=data)}, every=2, batch_size=8)
    message = "in the folder .* set config.evaluation.tasks.a.data.image_root"
    with pytest.raises(UserError, match=message):
        train(config(tiny_backbone, evaluation=evaluation), tmp_path / "run")
    trained = DataConfig(source="jsonl", path=str(index), image_size=98)
    with pytest.raises(UserError, match="in the folder .* set config.data.image_root"):
        train(config(tiny_backbone, data=trained), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"best": "scenes/top1", "every": 2},
            "is 'scenes/top1', expected scenes/image_to",
        ),
        ({"best": "mean_recall", "every": 2}, "did you mean 'scenes/mean_recall'"),
        ({"best": "scenes/mean_recall"}, "but none is made; set config.evaluation.every"),
        ({"at": (0,)}, r"config.evaluation.at\[0\] is 0, expected a number from 1 to"),
    ],
)
def test_a_best_that_cannot_be_found_is_named(
    changes: dict, message: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    evaluation = EvaluationConfig(
        tasks={"scenes": TaskConfig(data=HELD_OUT)}, batch_size=8, **changes
    )
    with pytest.raises(UserError, match=message):
        train(config(tiny_backbone, evaluation=evaluation), tmp_path / "run")
    assert not (tmp_path / "run").exists()
