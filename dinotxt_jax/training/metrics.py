"""Writes the metrics of a run to `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorboardX

from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.files import write_text


class MetricsWriter:
    """Appends to `metrics.jsonl` (one JSON object per line) and to TensorBoard.

    With several processes, only the first one writes.

    Args:
        workdir: the work directory.
        first_step: lines for later steps are dropped, because a resumed run writes them again.
    """

    def __init__(self, workdir: Path, first_step: int):
        self.path = workdir / "metrics.jsonl"
        self._writes = processes.is_first()
        if not self._writes:
            return
        earlier_rows = [row for row in read_metrics(self.path) if row["step"] <= first_step]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in earlier_rows))
        self._file = self.path.open("a")
        self._board = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=first_step + 1, write_to_disk=True
        )

    def has_evaluation(self, step: int) -> bool:
        """Returns whether the file has results of an evaluation after this step.

        All processes must call this method.
        """
        rows = read_metrics(self.path)
        return processes.first_says(any(row["step"] == step and "loss" not in row for row in rows))

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

    def close(self) -> None:
        """Closes both outputs, which flushes them."""
        if not self._writes:
            return
        self._file.close()
        self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a `metrics.jsonl`; skips damaged ones, such as a truncated last line."""
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):  # not JSON, or not UTF-8
            row = json.loads(line)
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                rows.append(row)
    return rows
