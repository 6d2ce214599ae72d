"""The status of a run, read from the files in the work directory."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import commands
import pytest

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.locks import STALE_AFTER, RunLock
from dinotxt_jax.training.status import described_status, run_status


def text_of(workdir: Path) -> str:
    return "\n".join(described_status(run_status(workdir)))


def write(workdir: Path, *rows: dict[str, Any]) -> Path:
    """Writes a work directory of a run of 100 steps with 2 x 8 pairs."""
    workdir.mkdir(exist_ok=True)
    config = {"steps": 100, "batch_size": 8, "accumulate_steps": 2}
    (workdir / "run.json").write_text(json.dumps({"config": config, "fingerprint": "0"}))
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return workdir


def line(step: int, **changes: Any) -> dict[str, Any]:
    values = {"loss": 2.0, "grad_norm": 0.5, "logit_scale": 2.6, "learning_rate": 1e-3}
    return {"step": step, "pairs_per_second": 4.0, "bad_images": 0} | values | changes


def test_a_finished_run_says_so_with_its_last_evaluation(finished: Path) -> None:
    text = text_of(finished)
    assert f"{finished}: step 8 of 8 (100.0%), finished" in text
    assert "checkpoint  step 8, " in text
    assert "evaluation  step 8: scenes/" in text
    assert "left at this rate" not in text
    assert "look at" not in text


def test_time_left_follows_from_the_mean_rate_of_the_last_lines(tmp_path: Path) -> None:
    status = run_status(write(tmp_path / "run", line(10, pairs_per_second=2.0), line(20)))
    assert status.pairs_per_second == pytest.approx(2 / (1 / 2 + 1 / 4))
    assert status.seconds_left == pytest.approx(80 * 16 / status.pairs_per_second)
    text = text_of(tmp_path / "run")
    assert "step 20 of 100 (20.0%), not running; the same command continues the run" in text
    assert "rate        3 pairs/s, 8 min left at this rate" in text
    assert "checkpoint  none yet" in text


def test_what_should_not_happen_is_listed(tmp_path: Path) -> None:
    last = line(30, loss=None, bad_images=3, nonfinite_steps=2, storage_retries=1)
    workdir = write(tmp_path / "run", line(10), last)
    (workdir / "damaged_checkpoint_20.0").mkdir()
    (workdir / "divergence").mkdir()
    (workdir / "divergence/step_30-process_0.json").write_text("{}")
    text = text_of(workdir)
    for part in (
        *("bad_images 3", "nonfinite_steps 2", "storage_retries 1", "the last loss is not finite"),
        *("damaged_checkpoint_20.0", "step_30-process_0.json", "loss not finite"),
    ):
        assert part in text


def test_the_lock_tells_whether_the_run_is_alive(tmp_path: Path) -> None:
    workdir = write(tmp_path / "run", line(10))
    lock = RunLock(workdir)
    lock.acquire()
    assert f"running (process {os.getpid()} on {socket.gethostname()})" in text_of(workdir)
    lock.release()
    owner = {"id": "x", "host": "elsewhere", "pid": 7}
    (workdir / ".lock").write_text(json.dumps(owner))
    assert "running (process 7 on elsewhere)" in text_of(workdir)
    old = (workdir / ".lock").stat().st_mtime - STALE_AFTER - 1
    os.utime(workdir / ".lock", (old, old))
    assert "not running: process 7 on elsewhere died" in text_of(workdir)


def test_a_run_before_its_first_line_has_no_rate(tmp_path: Path) -> None:
    text = text_of(write(tmp_path / "run"))
    assert "step 0 of 100 (0.0%), not running" in text
    assert "rate" not in text


def test_a_folder_of_something_else_or_a_damaged_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a work directory \(it has no run.json\)"):
        run_status(tmp_path)
    workdir = write(tmp_path / "run")
    (workdir / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json is not JSON"):
        run_status(workdir)


def test_the_command_prints_once_where_nothing_runs(tmp_path: Path) -> None:
    workdir = write(tmp_path / "run", line(10))
    result = commands.run(["-m", "dinotxt_jax.status", f"--workdir={workdir}", "--watch"])
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.count("step 10 of 100") == 1
