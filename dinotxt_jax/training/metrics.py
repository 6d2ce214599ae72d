"""Writes a run's metrics to `metrics.jsonl`, TensorBoard and experiment trackers."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tensorboardX

from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import write_text
from dinotxt_jax.storage.mirrors import Mirror
from dinotxt_jax.storage.retries import retried

METRICS_FILE = "metrics.jsonl"


class MetricsSink(Protocol):
    """A destination for a run's metrics."""

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        """Writes the metrics at a step."""

    def close(self) -> None:
        """Closes the destination; called once, after the last `write`."""


class _JsonLines:
    """Writes `metrics.jsonl`, one JSON object per line.

    Args:
        path: the file, which is replaced.
        rows: earlier lines to keep at the beginning.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]]):
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a line; non-finite values become null, because JSON has no NaN or infinity."""
        row: dict[str, Any] = {"step": step}
        row |= {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    """Writes TensorBoard scalars; hides steps after `first_step` that earlier runs wrote."""

    def __init__(self, folder: Path, first_step: int):
        self._board = tensorboardX.SummaryWriter(
            str(folder), purge_step=first_step + 1, write_to_disk=True
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        self._board.close()


class MetricsWriter:
    """Writes metrics to `metrics.jsonl`, TensorBoard and, if configured, a tracker.

    With several processes, only the first process writes.

    Args:
        workdir: the work directory.
        first_step: lines for later steps are dropped, because a resumed run writes them again.
        open_tracker: opens a tracker; the argument is a local folder for the tracker's files.
    """

    def __init__(
        self,
        workdir: Address,
        first_step: int,
        open_tracker: Callable[[Path], MetricsSink] | None = None,
    ):
        rows = read_metrics(workdir / METRICS_FILE)
        self._evaluated = {row["step"] for row in rows if "loss" not in row}
        self._sinks: list[MetricsSink] = []
        self._mirror: Mirror | None = None
        if not processes.is_first():
            return
        self._mirror = Mirror(workdir)
        folder = self._mirror.path
        if open_tracker is not None:
            self._sinks.append(open_tracker(folder))
        earlier_rows = [row for row in rows if row["step"] <= first_step]
        self._sinks.append(_JsonLines(folder / METRICS_FILE, earlier_rows))
        self._sinks.append(_TensorBoard(folder / "tensorboard", first_step))

    def has_evaluation(self, step: int) -> bool:
        """Returns whether an earlier run has stored evaluation results for this step.

        All processes must call this method.
        """
        return processes.first_says(step in self._evaluated)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the metrics at a step to all destinations."""
        for sink in self._sinks:
            sink.write(step, values)

    def copy(self) -> None:
        """Copies the lines so far to the work directory if it is in a bucket; see `Mirror`."""
        if self._mirror is not None:
            self._mirror.copy()

    def close(self) -> None:
        """Flushes and closes all destinations."""
        for sink in self._sinks:
            sink.close()
        if self._mirror is not None:
            self._mirror.close()


def read_metrics(path: Address) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`; skips damaged lines, such as a truncated last line."""
    rows = []
    content = retried(path.read_bytes) if retried(path.exists) else b""
    for line in content.splitlines():
        with contextlib.suppress(ValueError):  # not JSON, or not UTF-8
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
