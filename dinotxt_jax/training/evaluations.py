"""Evaluation while training: when, on what, and which model is the best so far."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from dinotxt_jax.config import Config, EvaluationConfig
from dinotxt_jax.data.feature_cache import FeatureCache
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.evaluation.tasks import KINDS, OpenTask, run_task
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.files import write_text
from dinotxt_jax.training.exports import Exporter
from dinotxt_jax.training.step import TrainState


def check_evaluations(config: EvaluationConfig) -> None:
    """Raises `UserError` for steps or a best result that cannot be."""
    if any(step < 1 for step in config.at) or config.every < 0:
        raise UserError(
            f"config.evaluation.every={config.every} and at={config.at} are not numbers of steps; "
            "give positive ones."
        )
    if not config.best:
        return
    name, _, metric = config.best.rpartition("/")
    if name not in config.tasks or metric not in KINDS[config.tasks[name].kind].metrics:
        choices = [f"{n}/{m}" for n, task in config.tasks.items() for m in KINDS[task.kind].metrics]
        raise UserError(
            f"config.evaluation.best={config.best!r} is no result of a task; choose among "
            f"{', '.join(choices) or 'those of tasks you add'}."
        )
    if not config.every and not config.at:
        raise UserError(
            f"config.evaluation.best={config.best!r}, but nothing is evaluated; set "
            "config.evaluation.every."
        )


class Evaluations:
    """The evaluations of one run.

    Args:
        config: the run.
        exporter: makes its models.
        workdir: where best/ and best.json go.
        tasks: of the config, their data opened.
        caches: backbone tokens of the tasks that have them.
    """

    def __init__(
        self,
        config: Config,
        exporter: Exporter,
        workdir: Path,
        tasks: Sequence[OpenTask],
        caches: Mapping[str, FeatureCache | None],
    ):
        self._config, self._exporter = config.evaluation, exporter
        self.tasks, self.caches = tasks, caches
        self._last = config.steps
        self._workdir = workdir

    @property
    def need_backbone(self) -> bool:
        """Whether a task runs the backbone itself."""
        return any(self.caches.get(one.name) is None for one in self.tasks)

    def due(self, step: int) -> bool:
        """Whether to evaluate after this step."""
        every = self._config.every
        regular = every and (step % every == 0 or step == self._last)
        return bool(regular) or step in self._config.at

    def run(self, step: int, state: TrainState, frozen: dict[str, Any]) -> dict[str, float]:
        """Every task's results, the task's name before each; the best model is kept.

        All processes must call it: they share every batch, each reading all of the data.
        """
        model = self._exporter.model(state, frozen)
        results: dict[str, float] = {}
        for one in self.tasks:
            cache = self.caches.get(one.name)
            job = Job(model, one.name, one.task, one.source, self._config.batch_size, cache)
            outcome = run_task(job)
            results |= {f"{one.name}/{key}": value for key, value in outcome.metrics.items()}
        if self._config.best:
            self._keep_best(step, state, results)
        return results

    def _keep_best(self, step: int, state: TrainState, results: Mapping[str, float]) -> None:
        """Writes best/ if this is better than what best.json says."""
        metric, file = self._config.best, self._workdir / "best.json"
        if metric not in results:
            raise UserError(
                f"config.evaluation.best={metric!r} did not come out of the evaluation, which gave "
                f"{', '.join(results)}; choose one of these."
            )
        if not math.isfinite(results[metric]):
            return
        before = json.loads(file.read_text()) if file.exists() else {}
        stays = before.get("metric") == metric and before["value"] >= results[metric]
        if processes.first_says(stays):
            return
        self._exporter.write(state, self._workdir / "best")
        found = {"step": step, "metric": metric, "value": results[metric]}
        if processes.is_first():
            write_text(file, json.dumps(found) + "\n")
        logging.info("step %d is the best so far: %s %.2f", step, metric, results[metric])
