"""The kinds of evaluation tasks, and what all of them share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig, TaskConfig
from dinotxt_jax.data.texts import read_list, read_templates
from dinotxt_jax.evaluation import classification, retrieval, segmentation
from dinotxt_jax.evaluation.jobs import Job, TaskResult, digest

# Each module has METRICS, check(key, task, patch_size), open_set(task), contents(source) and
# run(job).
KINDS: dict[str, ModuleType] = {
    "retrieval": retrieval,
    "classification": classification,
    "segmentation": segmentation,
}


def check_tasks(config: EvaluationConfig, patch_size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` for tasks that the mesh, the backbone or named texts do not allow.

    Args:
        config: the tasks, as `config.check` accepts them.
        patch_size: of the backbone.
        mesh: of the run.
        where: the key of the tasks' group in the user's command.
    """
    sharding.check_batch(config.batch_size, mesh, f"{where}.batch_size")
    for name, task in config.tasks.items():
        KINDS[task.kind].check(f"{where}.tasks.{name}", task, patch_size)


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
    module = KINDS[task.kind]
    source = module.open_set(task)
    settings = json.loads(json.dumps(dataclasses.asdict(task)))
    settings["data"] = {k: v for k, v in settings["data"].items() if k not in _FREE}
    del settings["published"]
    texts = [
        read_list(named, name)
        for named in (task.segmentation.background_words,)
        if named and task.kind == "segmentation"
    ]
    if task.kind != "retrieval":
        texts.append(read_templates(task.templates, name))
    contents = digest([module.contents(source), texts])
    return OpenTask(name, task, source, {"task": settings, "contents": contents})


def run_task(job: Job) -> TaskResult:
    """Runs one task.

    Raises:
        UserError: data that cannot be used.
    """
    result: TaskResult = KINDS[job.task.kind].run(job)
    return result
