"""Collects the metrics for steps between two lines in `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinotxt_jax.config import Config
from dinotxt_jax.storage.retries import repeated
from dinotxt_jax.training.batches import Batch
from dinotxt_jax.training.rates import ModelFlops, Throughput
from dinotxt_jax.training.step import Trainer
from dinotxt_jax.training.texts import TextMetrics


class StepMetrics:
    """Adds up pairs, FLOPs, waits and tokens over steps; reports them with the last step's losses.

    Args:
        config: the run's config.
        trainer: the run's trainer.
        context_length: tokens per row without packing and trimming.
    """

    def __init__(self, config: Config, trainer: Trainer, context_length: int):
        self._pairs = config.pairs_per_step
        self._flops = ModelFlops(trainer)
        self._texts = TextMetrics(config, trainer.model.text, context_length)
        self._throughput = Throughput()

    def add(self, frozen: dict[str, Any], batch: Batch) -> None:
        """Counts a step with these frozen arrays and this batch."""
        self._throughput.add(self._pairs, self._flops(frozen, batch.arrays), batch.waited)
        self._texts.add(batch.token_rows)

    def report(self, metrics: Mapping[str, Any], batch: Batch) -> dict[str, float]:
        """Returns the metrics for a line; waits for the last step, to include it in the rates."""
        losses = {name: float(value) for name, value in metrics.items()}
        counts = {
            "bad_images": batch.bad_images,
            "filtered_examples": batch.filtered,
            "storage_retries": repeated(),
        }
        return losses | self._texts.report() | self._throughput.report() | counts

    def restart(self) -> None:
        """Excludes the time since the last report from the rates, as after an evaluation."""
        self._throughput = Throughput()
