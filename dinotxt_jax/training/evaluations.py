"""Runs evaluations during training, and keeps the best model so far."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from dinotxt_jax.config import Config
from dinotxt_jax.data.feature_cache import FeatureCache
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.evaluation.tasks import OpenTask, run_task
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import read_json, write_text
from dinotxt_jax.training.exports import Exporter
from dinotxt_jax.training.step import TrainState
from dinotxt_jax.visualize.curves import CHANCE


class Evaluations:
    """Runs the scheduled evaluations in a training run.

    Args:
        config: the run's config.
        exporter: makes models from training states.
        workdir: receives best/ and best.json.
        tasks: the tasks in the config, with opened data.
        caches: task name -> cached backbone tokens, or None to run the backbone.
    """

    def __init__(
        self,
        config: Config,
        exporter: Exporter,
        workdir: Address,
        tasks: Sequence[OpenTask],
        caches: Mapping[str, FeatureCache | None],
    ):
        self._config, self._exporter = config.evaluation, exporter
        self.tasks, self.caches = tasks, caches
        self._last = config.steps
        self._workdir = workdir

    @property
    def need_backbone(self) -> bool:
        """Returns whether any task needs the backbone, because it has no cached tokens."""
        return any(self.caches.get(task.name) is None for task in self.tasks)

    def due(self, step: int) -> bool:
        """Returns whether to evaluate after this step."""
        every = self._config.every
        regular = every and (step % every == 0 or step == self._last)
        return bool(regular) or step in self._config.at

    def run(
        self, step: int, state: TrainState, frozen: dict[str, Any], check: Callable[[], None]
    ) -> dict[str, float]:
        """Evaluates all tasks and keeps the best model.

        All processes must call this method: they share every batch, and each process reads a part.

        Args:
            step: number of completed steps.
            state: the training state.
            frozen: the backbone, or {} if all tasks have cached tokens.
            check: called after each batch; may end the evaluation with an exception.

        Returns:
            "TASK/METRIC" -> result, then "TASK/METRIC/chance" -> chance level.
        """
        model = self._exporter.model(state, frozen)
        results: dict[str, float] = {}
        chances: dict[str, float] = {}
        for task in self.tasks:
            cache = self.caches.get(task.name)
            job = Job(
                model,
                task.name,
                task.task,
                task.source,
                self._config.batch_size,
                cache,
                check=check,
            )
            outcome = run_task(job)
            results |= {f"{task.name}/{key}": value for key, value in outcome.metrics.items()}
            chances |= {
                f"{task.name}/{key}/{CHANCE}": value for key, value in outcome.chance.items()
            }
        if self._config.best:
            self._keep_best(step, state, results)
        return results | chances

    def _keep_best(self, step: int, state: TrainState, results: Mapping[str, float]) -> None:
        """Writes best/ and best.json if the result is better than the value in best.json."""
        metric, file = self._config.best, self._workdir / "best.json"
        if metric not in results:
            raise UserError(
                f"config.evaluation.best={metric!r} is not a metric of this evaluation, which has "
                f"{', '.join(results)}; choose one of these."
            )
        if not math.isfinite(results[metric]):
            return
        cure = "remove it, so that this evaluation becomes the best"
        before = read_json(file, "the best result", cure) if file.exists() else {}
        is_before_best = (
            before.get("metric") == metric and before.get("value", -math.inf) >= results[metric]
        )
        if processes.first_says(is_before_best):
            return
        self._exporter.write(state, self._workdir / "best")
        record = {"step": step, "metric": metric, "value": results[metric]}
        if processes.is_first():
            write_text(file, json.dumps(record) + "\n")
        logging.info("step %d is the best so far: %s %.2f", step, metric, results[metric])
