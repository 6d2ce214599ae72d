"""Training runs that take a few seconds, and functions to read the logged metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
    TokenizerConfig,
)
from dinotxt_jax.training.batches import Batch, Batches
from dinotxt_jax.training.metrics import read_metrics

HELD_OUT = DataConfig(split="test", num_scenes=24, image_size=56, augmentation="squash", threads=2)


def config(backbone: Path, /, **changes: Any) -> Config:
    """Returns a config for a short run with crops, drop path, evaluation and checkpoints."""
    settings = {
        "steps": 8,
        "batch_size": 8,
        "backbone": str(backbone),
        "log_every": 1,
        "data": DataConfig(num_scenes=40, image_size=56, threads=2, prefetch=16),
        "tokenizer": TokenizerConfig(kind="bpe", vocabulary_size=400, context_length=64),
        "text": TextTrainingConfig(width=32, depth=2, num_heads=2),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        "precision": PrecisionConfig(compute="float32", frozen="float32"),
        "checkpoint": CheckpointConfig(every=4),
    }
    return Config(**(settings | changes))


def metrics_of(workdir: Path) -> list[dict[str, Any]]:
    """Returns the metrics lines for training steps."""
    return [row for row in read_metrics(workdir / "metrics.jsonl") if "loss" in row]


def losses(workdir: Path) -> dict[int, float]:
    """Returns the loss for every step."""
    return {row["step"]: row["loss"] for row in metrics_of(workdir)}


class InterruptedRunError(Exception):
    """The exception with which `interrupted_at` ends a run."""


def _interrupt() -> None:
    raise InterruptedRunError


def interrupted_at(
    batch: int, monkeypatch: pytest.MonkeyPatch, by: Callable[[], None] = _interrupt
) -> list[int]:
    """Interrupts training once, before a batch; the list grows with every batch."""
    original, calls = Batches.__next__, []

    def interrupting(batches: Batches) -> Batch:
        calls.append(1)
        if len(calls) == batch:
            by()
        return original(batches)

    monkeypatch.setattr(Batches, "__next__", interrupting)
    return calls
