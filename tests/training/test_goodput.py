"""Goodput: wall time by kind, over all starts of a run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from small_runs import HELD_OUT, config

from dinotxt_jax.config import EvaluationConfig, TaskConfig
from dinotxt_jax.training import goodput as module
from dinotxt_jax.training.goodput import Goodput, described_goodput, read_goodput
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.status import described_status, run_status


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Returns a list whose only item is the time, in seconds."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "time", lambda: now[0])
    return now


def run(folder: Path, clock: list[float], start: float, steps: float) -> None:
    """Starts for 10 s, makes steps, waits 2 s, saves for 3 s, and ends."""
    clock[0] = start
    goodput = Goodput(folder, time.time())
    clock[0] += 10
    goodput.add("waiting", 4)  # of the first step, which counts as starting
    goodput.made_step()
    clock[0] += steps
    goodput.add("waiting", 2)
    goodput.made_step()
    with goodput.spent("saving"):
        clock[0] += 3
    goodput.save()


def test_time_is_counted_by_kind_over_all_starts(tmp_path: Path, clock: list[float]) -> None:
    run(tmp_path, clock, 1000, 87)
    record = read_goodput(tmp_path)
    assert record["seconds"] == {
        "steps": 85,
        "starting": 10,
        "waiting": 2,
        "saving": 3,
        "evaluating": 0,
        "lost": 0,
    }
    run(tmp_path, clock, 1200, 87)  # 100 s after the end of the first
    record = read_goodput(tmp_path)
    assert record["starts"] == 2
    assert record["seconds"]["lost"] == 100
    assert record["seconds"]["steps"] == 170
    assert sum(record["seconds"].values()) == 300  # all wall time since the first start
    assert described_goodput(record) == (
        "56.7% of 0.08 h in steps (starting 6.7%, waiting 1.3%, saving 2.0%, evaluating 0.0%, "
        "lost 33.3%; 2 starts)"
    )


@pytest.mark.parametrize("content", ["", "{", "[]", '{"starts": 1}', '{"seconds": {"steps": 1}}'])
def test_a_damaged_record_starts_again(tmp_path: Path, clock: list[float], content: str) -> None:
    (tmp_path / "goodput.json").write_text(content)
    run(tmp_path, clock, 1000, 87)
    assert read_goodput(tmp_path)["starts"] == 1
    assert json.loads((tmp_path / "goodput.json").read_text())["seconds"]["steps"] == 85


def test_a_finished_run_shows_how_its_time_was_spent(tiny_backbone: Path, tmp_path: Path) -> None:
    evaluation = EvaluationConfig(
        tasks={"scenes": TaskConfig(data=HELD_OUT)}, every=3, batch_size=8
    )
    workdir = tmp_path / "run"
    train(config(tiny_backbone, steps=3, evaluation=evaluation), workdir)
    record = read_goodput(workdir)
    assert record["starts"] == 1
    seconds = record["seconds"]
    assert seconds["lost"] == 0
    for kind in ("steps", "starting", "saving", "evaluating"):
        assert seconds[kind] > 0, kind
    assert any("goodput" in line for line in described_status(run_status(workdir)))
