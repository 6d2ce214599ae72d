"""Experiment trackers: the real library of Weights & Biases without a connection, and failures."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from small_runs import config

from dinotxt_jax.errors import UserError
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.metrics import MetricsWriter
from dinotxt_jax.training.trackers import Tracker, check_tracker


class Calls:
    """A module with the functions of a tracker, which records the calls."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch):
        self.settings: list[dict[str, Any]] = []
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.ended = 0
        self.failure: Exception | None = None
        module = types.ModuleType(name)
        module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        vars(module).update(init=self.init, log=self.log, finish=self.finish)
        monkeypatch.setitem(sys.modules, name, module)

    def init(self, **settings: Any) -> object:
        if self.failure is not None:
            raise self.failure
        self.settings.append(settings)
        return object()

    def log(self, values: dict[str, float], *, step: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.lines.append((step, values))

    def finish(self) -> None:
        self.ended += 1


def tracked(name: str, folder: Path) -> Tracker:
    run = config(Path("backbone"), tracker=name, tracker_project="pairs")
    return Tracker(run, folder, folder, "runs/first")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_resumed_run_continues_under_the_same_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(name, monkeypatch)
    for step in (1, 2):
        writer = MetricsWriter(tmp_path, step - 1, lambda folder: tracked(name, folder))
        writer.write(step, {"loss": float(step)})
        writer.close()
    first, second = calls.settings
    assert first == second
    assert first["project"] == "pairs"
    assert first["resume"] == "allow"
    assert first["config"]["steps"] == 8
    run_id = json.loads((tmp_path / "tracker.json").read_text())["id"]
    if name == "wandb":
        assert (first["id"], first["name"]) == (run_id, "runs/first")
    else:
        assert first["name"] == f"runs/first-{run_id}"
    assert calls.lines == [(1, {"loss": 1.0}), (2, {"loss": 2.0})]
    assert calls.ended == 2


def test_a_tracker_that_fails_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls("wandb", monkeypatch)
    writer = MetricsWriter(tmp_path, 0, lambda folder: tracked("wandb", folder))
    writer.write(1, {"loss": 1.0})
    calls.failure = ConnectionError("the network is gone")
    for step in (2, 3):
        writer.write(step, {"loss": 1.0})
    writer.close()
    assert caplog.text.count("wandb failed and receives no more metrics: the network is gone") == 1
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]


def test_a_tracker_that_does_not_start_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Calls("wandb", monkeypatch).failure = RuntimeError("no API key")
    with pytest.raises(UserError, match=r"config\.tracker=wandb does not start \(no API key\)"):
        tracked("wandb", tmp_path)


def test_a_missing_tracker_is_refused_before_the_run(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"config\.tracker=trackio needs trackio, .* pip install"):
        check_tracker("trackio")
    with pytest.raises(UserError, match="config.tracker=wandb needs wandb"):
        train(config(tiny_backbone, tracker="wandb"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_tracked_by_weights_and_biases_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for step in (1, 2):
        writer = MetricsWriter(tmp_path, step - 1, lambda folder: tracked("wandb", folder))
        writer.write(step, {"loss": 0.5})
        writer.close()
        time.sleep(1.1)  # the library names its folders by the second
    run_id = json.loads((tmp_path / "tracker.json").read_text())["id"]
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    assert all(b"loss" in file.read_bytes() for file in files)
