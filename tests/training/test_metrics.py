"""metrics.jsonl: the lines that a resumed run keeps, and the state a crash may leave."""

from __future__ import annotations

import json
from pathlib import Path

from dinotxt_jax.training.metrics import MetricsWriter, read_metrics


def test_lines_after_the_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    for step in range(1, 6):
        writer.write(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    resumed = MetricsWriter(tmp_path, 3)
    resumed.write(4, {"loss": 40.0})
    resumed.close()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1), (2, 2), (3, 3), (4, 40)]


def test_non_finite_values_stay_valid_json(tmp_path: Path) -> None:
    writer = MetricsWriter(tmp_path, 0)
    writer.write(1, {"loss": float("nan"), "grad_norm": float("inf")})
    writer.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": None, "grad_norm": None}
    ]


def test_damaged_lines_are_skipped_and_later_ones_kept(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    lines = [b'{"step": 1, "loss": 2.0}', b'{"step": 2, "lo\xff\xfe', b"7", b"", b'{"loss": 1.0}']
    file.write_bytes(b"\n".join([*lines, b'{"step": 3, "loss": 1.5}', b'{"step": 4, "l']))
    assert [row["step"] for row in read_metrics(file)] == [1, 3]
    writer = MetricsWriter(tmp_path, 3)
    writer.write(4, {"loss": 1.25})
    writer.close()
    assert [row["step"] for row in read_metrics(file)] == [1, 3, 4]
