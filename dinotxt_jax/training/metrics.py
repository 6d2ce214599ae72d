"""Writes the metrics of a run to `metrics.jsonl`, TensorBoard and experiment trackers."""

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
    """Receives the lines of metrics of a run."""

    def write(self, step: int, values: Mapping[str, float], /) -> None:
        """Takes one line."""

    def close(self) -> None:
        """Is called once, after the last line."""


class _JsonLines:
    """Appends to `metrics.jsonl`, one JSON object per line.

    Args:
        path: the file.
        rows: earlier lines, which the file holds first.
    """

    def __init__(self, path: Path, rows: Sequence[Mapping[str, Any]]):
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a")

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line; non-finite values become null, so that the line is valid JSON."""
        row: dict[str, Any] = {"step": step}
        row |= {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    """Writes the values as scalars; steps after `first_step` of earlier runs are hidden."""

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
    """Passes the metrics of a run on to `metrics.jsonl`, TensorBoard and, if set, a tracker.

    With several processes, only the first one writes.

    Args:
        workdir: the work directory.
        first_step: lines for later steps are dropped, because a resumed run writes them again.
        open_tracker: opens a tracker that receives the metrics too; its argument is a local folder
            for the tracker's files.
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
        """Returns whether an earlier run has stored results of an evaluation after this step.

        All processes must call this method.
        """
        return processes.first_says(step in self._evaluated)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line everywhere."""
        for sink in self._sinks:
            sink.write(step, values)

    def copy(self) -> None:
        """Copies the lines so far to a work directory in a bucket; see `Mirror`."""
        if self._mirror is not None:
            self._mirror.copy()

    def close(self) -> None:
        """Closes all outputs, which flushes them."""
        for sink in self._sinks:
            sink.close()
        if self._mirror is not None:
            self._mirror.close()


def read_metrics(path: Address) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`; skips damaged ones, such as a truncated last line."""
    rows = []
    content = retried(path.read_bytes) if retried(path.exists) else b""
    for line in content.splitlines():
        with contextlib.suppress(ValueError):  # not JSON, or not UTF-8
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
