"""Stops a diverged run before it saves or exports anything, and records the failed batch."""

from __future__ import annotations

import json
import math
from typing import Any

import jax
import numpy as np
from absl import logging
from jaxtyping import Int

from dinotxt_jax.config import Config
from dinotxt_jax.data.examples import Source
from dinotxt_jax.errors import DIVERGED
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import write_text
from dinotxt_jax.training.health import Health
from dinotxt_jax.training.step import Trainer, TrainState


class Divergence:
    """Reads the record of non-finite steps and stops the run after too many.

    The record is replicated on all devices, so all processes stop at the same step.

    Args:
        trainer: the run's trainer.
        workdir: receives `divergence/` with a file per process.
        source: the training data, for the example keys.
    """

    def __init__(self, trainer: Trainer, workdir: Address, source: Source):
        self._trainer, self._config = trainer, trainer.config
        self._folder, self._source = workdir / "divergence", source
        self._indices: dict[int, Int[np.ndarray, " b"]] = {}
        self._skipped = 0

    def note(self, step: int, indices: Int[np.ndarray, " b"]) -> None:
        """Remembers the examples that this process read for a step, until the next `check`."""
        self._indices[step] = indices

    def check(self, state: TrainState) -> None:
        """Waits for the last step and checks the record; all processes must call this method.

        Raises:
            CommonError: the run has diverged (exit code 3); `divergence/` holds the batch.
        """
        health: Health = jax.device_get(state.health)
        skipped = int(health.nonfinite_steps)
        if health.failed_step:
            self._stop(health, state)
        if skipped > self._skipped and processes.is_first():
            logging.warning("skipped the update in %d non-finite steps so far", skipped)
        self._skipped = skipped
        self._indices.clear()

    def _stop(self, health: Health, state: TrainState) -> None:
        step = int(health.failed_step)
        updates = step - int(health.nonfinite_steps)  # applied before this step
        report = {
            "step": step,
            "loss": str(health.failed_loss),
            "grad_norm": str(health.failed_norm),
            "last_finite_loss": _number(health.last_loss),
            "learning_rate": float(self._trainer.schedule(updates)),
            "logit_scale": float(np.asarray(state.trainable["logit_scale"])),
        }
        file = self._folder / f"step_{step}-process_{jax.process_index()}.json"
        write_text(file, json.dumps(report | {"examples": self._examples(step)}, indent=1) + "\n")
        raise processes.CommonError(_sentence(report, self._config, self._folder), DIVERGED)

    def _examples(self, step: int) -> list[dict[str, Any]]:
        """Returns index and key for each example that this process read for a step."""
        indices = self._indices[step].tolist()
        return [{"index": index, "key": self._source.key(index)} for index in indices]


def _number(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None


def _sentence(report: dict[str, Any], config: Config, folder: Address) -> str:
    last = report["last_finite_loss"]
    row = "" if config.nonfinite_limit == 1 else f", the last of {config.nonfinite_limit} in a row"
    advice = (
        "" if config.on_nonfinite == "skip" else "continue with --config.on_nonfinite=skip, or "
    )
    last_loss = "none" if last is None else f"{last:.4f}"
    return (
        f"step {report['step']} has the loss {report['loss']} and the gradient norm "
        f"{report['grad_norm']}{row} (last finite loss {last_loss}, "
        f"learning rate {report['learning_rate']:.3g}, logit scale {report['logit_scale']:.3f}), "
        f"expected finite numbers; nothing was saved after it, and {folder} names the examples: "
        f"{advice}start again with a lower config.optimizer.learning_rate or with "
        "config.optimizer.clip_norm=1."
    )
