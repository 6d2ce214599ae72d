"""Reads a run's state from the files in the work directory, without affecting the run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import read_json
from dinotxt_jax.storage.locks import LockState, lock_state
from dinotxt_jax.training.checkpoints import stored_run
from dinotxt_jax.training.goodput import described_goodput, read_goodput
from dinotxt_jax.training.metrics import METRICS_FILE, read_metrics

# A file in every checkpoint; provides the checkpoint's time, since bucket folders have no time.
_NOTES = "_CHECKPOINT_METADATA"
# Number of most recent metrics lines over which rates are averaged.
_LINES = 10
# Metrics that count problems; nonzero values become warnings.
_COUNTS = ("bad_images", "filtered_examples", "nonfinite_steps", "storage_retries")


@dataclasses.dataclass(frozen=True)
class RunStatus:
    """A run's state.

    Attributes:
        workdir: the work directory.
        lock: the lock owner, or None if the lock is free.
        steps: the step in the last metrics line, and the total number of steps.
        pairs_per_second, seconds_left: None before the first metrics line.
        metrics: the last training metrics line.
        evaluation: the last evaluation line.
        best: the content of best.json.
        checkpoint: the newest checkpoint's step, or None.
        ages: seconds since the last metrics line and since the newest checkpoint.
        goodput: the wall time by kind (`read_goodput`), or {}.
        warnings: problems that an operator should look at.
        finished: whether the final model is written.
    """

    workdir: Address
    lock: LockState | None
    steps: tuple[int, int]
    pairs_per_second: float | None
    seconds_left: float | None
    metrics: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    best: Mapping[str, Any]
    checkpoint: int | None
    ages: tuple[float | None, float | None]
    goodput: Mapping[str, Any]
    warnings: tuple[str, ...]
    finished: bool

    @property
    def is_running(self) -> bool:
        return self.lock is not None and self.lock.is_alive


def run_status(workdir: Address) -> RunStatus:
    """Reads a run's state.

    Raises:
        UserError: the folder is not a work directory, or run.json is damaged.
    """
    if not (workdir / "run.json").exists():
        raise UserError(
            f"{workdir} is not a work directory (it has no run.json), expected the --workdir of a "
            "run; correct it."
        )
    config = stored_run(workdir, "restore it")["config"]
    total = config.get("steps", 0)
    rows = read_metrics(workdir / METRICS_FILE)
    training = [row for row in rows if "loss" in row]
    evaluations = [row for row in rows if "loss" not in row]
    last = training[-1] if training else {}
    step = max((row["step"] for row in rows), default=0)
    rates = [row["pairs_per_second"] for row in training[-_LINES:] if row.get("pairs_per_second")]
    rate = len(rates) / sum(1 / value for value in rates) if rates else None
    pairs = config.get("batch_size", 0) * config.get("accumulate_steps", 1)
    best = workdir / "best.json"
    checkpoints = [path for path in _entries(workdir / "checkpoints") if path.name.isdecimal()]
    newest = max(checkpoints, key=lambda path: int(path.name), default=None)
    return RunStatus(
        workdir=workdir,
        lock=lock_state(workdir),
        steps=(step, total),
        pairs_per_second=rate,
        seconds_left=(total - step) * pairs / rate if rate else None,
        metrics=last,
        evaluation=evaluations[-1] if evaluations else {},
        best=read_json(best, "the best result", "remove it") if best.exists() else {},
        checkpoint=None if newest is None else int(newest.name),
        ages=(_age(workdir / METRICS_FILE), None if newest is None else _age(newest / _NOTES)),
        goodput=read_goodput(workdir),
        warnings=tuple(_warnings(workdir, last)),
        finished=step >= total > 0 and (workdir / "model" / "model.json").exists(),
    )


def described_status(status: RunStatus) -> list[str]:
    """Formats a run's state as text lines."""
    step, total = status.steps
    share = f" ({step / total:.1%})" if total else ""
    lines = [f"{status.workdir}: step {step} of {total}{share}, {_activity(status)}"]
    if status.pairs_per_second:
        left = "" if status.finished else f", {_duration(status.seconds_left)} left at this rate"
        lines.append(f"  rate        {status.pairs_per_second:,.0f} pairs/s{left}")
    if status.metrics:
        values = ", ".join(
            f"{name} {_number(status.metrics.get(name))}"
            for name in ("loss", "grad_norm", "logit_scale", "learning_rate")
        )
        age = _duration(status.ages[0])
        lines.append(f"  metrics     step {status.metrics['step']}, {age} ago: {values}")
    if status.checkpoint is not None:
        lines.append(f"  checkpoint  step {status.checkpoint}, {_duration(status.ages[1])} ago")
    else:
        lines.append("  checkpoint  none yet")
    if status.evaluation:
        results = ", ".join(
            f"{name} {_number(value)}"
            for name, value in status.evaluation.items()
            if name != "step" and not name.endswith("/chance")
        )
        lines.append(f"  evaluation  step {status.evaluation['step']}: {results}")
    if status.best:
        best = f"step {status.best.get('step')}, {_number(status.best.get('value'))}"
        lines.append(f"  best        {best}")
    if status.goodput:
        lines.append(f"  goodput     {described_goodput(status.goodput)}")
    return lines + [f"  look at     {warning}" for warning in status.warnings]


def _activity(status: RunStatus) -> str:
    if status.finished:
        return "finished"
    if status.lock is None:
        return "not running; the same command continues the run"
    if status.is_running:
        return f"running ({status.lock.owner})"
    return f"not running: {status.lock.owner} died; the same command continues the run"


def _warnings(workdir: Address, last: Mapping[str, Any]) -> list[str]:
    counts = [f"{name} {last[name]:,.0f}" for name in _COUNTS if last.get(name)]
    if last and last.get("loss") is None:
        counts.append("the last loss is not finite")
    damaged = [str(path) for path in _entries(workdir) if path.name.startswith("damaged_")]
    return counts + damaged + [str(path) for path in _entries(workdir / "divergence")]


def _entries(folder: Address) -> list[Address]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _age(path: Address) -> float | None:
    try:
        return max(time.time() - path.stat().st_mtime, 0.0)
    except FileNotFoundError:  # missing, or the run has just removed an old checkpoint
        return None


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (rest, "s"))
    largest_two = [f"{value} {unit}" for value, unit in parts if value][:2]
    return " ".join(largest_two) or "0 s"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else "not finite"
