"""The kinds of evaluation tasks, and the steps that all kinds share: check, open, run.

A new kind is a module with a `TaskKind`, and a row of `KINDS`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig, TaskConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.classification import ClassificationKind
from dinotxt_jax.evaluation.jobs import Job, TaskKind, TaskResult, digest
from dinotxt_jax.evaluation.published import check_published
from dinotxt_jax.evaluation.retrieval import RetrievalKind
from dinotxt_jax.evaluation.segmentation import SegmentationKind

KINDS: dict[str, TaskKind[Any]] = {
    "retrieval": RetrievalKind(),
    "classification": ClassificationKind(),
    "segmentation": SegmentationKind(),
}
"""Every kind of task, under the name that the config key `kind` has."""


def check_tasks(config: EvaluationConfig, patch_size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` for what can be known to be wrong before anything is encoded."""
    sharding.check_batch(config.batch_size, mesh, f"{where}.batch_size")
    for name, task in config.tasks.items():
        if not name or name.startswith(".") or "/" in name:
            raise UserError(
                f"a task is called {name!r}, which cannot be the name of a file; rename it."
            )
        check_task(f"{where}.tasks.{name}", task, patch_size)


def check_task(section: str, task: TaskConfig, patch_size: int) -> None:
    """Raises `UserError` for settings of one task that are wrong whatever the data holds.

    Args:
        section: the name of the task's settings on the command line, for messages.
        task: the settings.
        patch_size: patch size of the backbone, pixels.
    """
    if task.kind not in KINDS:
        raise UserError(
            f"{section}.kind={task.kind!r} is unknown; choose among {', '.join(KINDS)}."
        )
    if task.max_examples < 0:
        raise UserError(
            f"{section}.max_examples={task.max_examples}, expected 0 (all) or more; correct it."
        )
    check_published(section, task.published)
    KINDS[task.kind].check(section, task, patch_size)


@dataclasses.dataclass(frozen=True)
class OpenTask:
    """A task whose data is there.

    Attributes:
        name, task: of the config.
        source: its examples.
        origin: everything that decides its result, but for the model: settings, the names and
            labels (or captions) of all examples, class names, templates.
        section: the name of the task's settings on the command line, for messages.
    """

    name: str
    task: TaskConfig
    source: Any
    origin: Mapping[str, Any]
    section: str

    def check_images(self) -> None:
        """Raises `UserError` if the images are not where they should be."""
        KINDS[self.task.kind].check_images(self.section, self.task, self.source)


# Settings that change no result.
_FREE = ("threads", "prefetch", "workers", "max_bad_fraction")


def open_task(name: str, task: TaskConfig, where: str) -> OpenTask:
    """Opens the data of a task.

    Args:
        name, task: of the config.
        where: the name of the evaluation config on the command line, for messages.

    Raises:
        UserError: data that cannot be used.
    """
    kind, section = KINDS[task.kind], f"{where}.tasks.{name}"
    source = kind.open_set(section, task)
    settings = json.loads(json.dumps(dataclasses.asdict(task)))
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in _FREE}
    del settings["published"]
    contents = digest([kind.contents(source), kind.texts(section, task)])
    origin = {"task": settings, "contents": contents}
    return OpenTask(name, task, source, origin, section)


def run_task(job: Job) -> TaskResult:
    """Runs one task.

    Raises:
        UserError: data that cannot be used.
    """
    return KINDS[job.task.kind].run(job)
