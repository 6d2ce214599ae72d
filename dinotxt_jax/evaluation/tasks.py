"""The evaluation task kinds, and the steps that all kinds share: check, open, run.

To add a kind, write a module with a `TaskKind` and add a row to `KINDS`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig, TaskConfig
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.config.data import AUGMENTATIONS
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.classification import ClassificationKind
from dinotxt_jax.evaluation.jobs import Job, TaskKind, TaskResult, digest
from dinotxt_jax.evaluation.retrieval import RetrievalKind
from dinotxt_jax.evaluation.segmentation import SegmentationKind
from dinotxt_jax.evaluation.text_similarity import TextKind
from dinotxt_jax.storage.preprocessing import Preprocessing

KINDS: dict[str, TaskKind[Any]] = {
    "retrieval": RetrievalKind(),
    "classification": ClassificationKind(),
    "segmentation": SegmentationKind(),
    "text": TextKind(),
}
"""All task kinds, keyed by the name used for the config key `kind`."""


def check_tasks(config: EvaluationConfig, vision: VisionConfig, mesh: Mesh, where: str) -> None:
    """Raises `UserError` for tasks that do not fit the mesh, the backbone or the named texts.

    Args:
        config: the tasks, already accepted by `config.check`.
        vision: the backbone's architecture.
        mesh: the device mesh for the run.
        where: the name of these settings on the command line, for messages.
    """
    sharding.check_batch(config.batch_size, mesh, f"{where}.batch_size")
    for name, task in config.tasks.items():
        KINDS[task.kind].check(f"{where}.tasks.{name}", task, vision)


def prepared_as_model(task: TaskConfig, pixels: Preprocessing, section: str) -> TaskConfig:
    """Returns a task whose images are prepared as its `preparation` says.

    Args:
        task: the task.
        pixels: the preparation of the model.
        section: the key of the task, for messages.

    Raises:
        UserError: the model keeps the aspect ratio of images, which tasks cannot do.
    """
    if task.preparation == "data" or not KINDS[task.kind].encodes_whole_images:
        return task
    if pixels.rule not in AUGMENTATIONS:
        raise UserError(
            f"{section}.preparation is model, but the model prepares images by {pixels.rule}, "
            f"expected one of {', '.join(AUGMENTATIONS[1:])}; set it to data."
        )
    data = dataclasses.replace(
        task.data, image_size=pixels.crop, resize=pixels.resize, augmentation=pixels.rule
    )
    return dataclasses.replace(task, data=data)


@dataclasses.dataclass(frozen=True)
class OpenTask:
    """A task with opened data.

    Attributes:
        name, task: task name and settings from the config.
        source: the examples.
        origin: everything except the model that determines the result: settings, names and labels
            (or captions) of all examples, class names, templates.
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


# Settings that do not change any result.
_FREE = ("threads", "prefetch", "workers", "max_bad_fraction")


def open_task(name: str, task: TaskConfig, where: str) -> OpenTask:
    """Opens the data of a task.

    Args:
        name, task: task name and settings from the config.
        where: the name of the evaluation config on the command line, for messages.

    Raises:
        UserError: the data cannot be used.
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
        UserError: the data cannot be used.
    """
    return KINDS[job.task.kind].run(job)
