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
        if task.kind not in KINDS:
            raise UserError(
                f"the task {name} has kind={task.kind!r}, which is unknown; choose among "
                f"{', '.join(KINDS)}."
            )
        if not name or name.startswith(".") or "/" in name:
            raise UserError(
                f"a task is called {name!r}, which cannot be the name of a file; call it otherwise."
            )
        if task.max_examples < 0:
            raise UserError(
                f"the task {name} has max_examples={task.max_examples}, expected 0 (all) or more; "
                "correct it."
            )
        check_published(name, task.published)
        KINDS[task.kind].check(name, task, patch_size)


@dataclasses.dataclass(frozen=True)
class OpenTask:
    """A task whose data is there.

    Attributes:
        name, task: of the config.
        source: its examples.
        origin: everything that decides its result, but for the model: settings, the names and
            labels (or captions) of all examples, class names, templates.
    """

    name: str
    task: TaskConfig
    source: Any
    origin: Mapping[str, Any]


# Settings that change no result.
_FREE = ("threads", "prefetch", "workers", "max_bad_fraction")


def open_task(name: str, task: TaskConfig) -> OpenTask:
    """Opens the data of a task.

    Raises:
        UserError: data that cannot be used.
    """
    kind = KINDS[task.kind]
    source = kind.open_set(task)
    settings = json.loads(json.dumps(dataclasses.asdict(task)))
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in _FREE}
    del settings["published"]
    contents = digest([kind.contents(source), kind.texts(name, task)])
    return OpenTask(name, task, source, {"task": settings, "contents": contents})


def run_task(job: Job) -> TaskResult:
    """Runs one task.

    Raises:
        UserError: data that cannot be used.
    """
    return KINDS[job.task.kind].run(job)
