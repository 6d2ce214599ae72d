"""Writes the metrics of a run to `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from typing import Any

import tensorboardX

from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import write_text
from dinotxt_jax.storage.mirrors import Mirror
from dinotxt_jax.storage.retries import retried

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends to `metrics.jsonl` (one JSON object per line) and to TensorBoard.

    With several processes, only the first one writes.

    Args:
        workdir: the work directory.
        first_step: lines for later steps are dropped, because a resumed run writes them again.
    """

    def __init__(self, workdir: Address, first_step: int):
        rows = read_metrics(workdir / METRICS_FILE)
        self._evaluated = {row["step"] for row in rows if "loss" not in row}
        self._writes = processes.is_first()
        if not self._writes:
            return
        self._mirror = Mirror(workdir)
        path = self._mirror.path / METRICS_FILE
        earlier_rows = [row for row in rows if row["step"] <= first_step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in earlier_rows))
        self._file = path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(self._mirror.path / "tensorboard"), purge_step=first_step + 1, write_to_disk=True
        )

    def has_evaluation(self, step: int) -> bool:
        """Returns whether an earlier run has stored results of an evaluation after this step.

        All processes must call this method.
        """
        return processes.first_says(step in self._evaluated)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes one line; non-finite values become null, so that the line is valid JSON."""
        if not self._writes:
            return
        row: dict[str, Any] = {"step": step}
        row |= {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def copy(self) -> None:
        """Copies the lines so far to a work directory in a bucket; see `Mirror`."""
        if self._writes:
            self._mirror.copy()

    def close(self) -> None:
        """Closes both outputs, which flushes them."""
        if not self._writes:
            return
        self._file.close()
        self._board.close()
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
