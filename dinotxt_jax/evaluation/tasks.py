"""The kinds of evaluation tasks, and what all of them share."""

from __future__ import annotations

from types import ModuleType

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig, TaskConfig, check_image_size
from dinotxt_jax.data.transforms import is_random
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation import classification, retrieval, segmentation
from dinotxt_jax.evaluation.results import TaskResult
from dinotxt_jax.inference import Model
from dinotxt_jax.training.features import FeatureCache

# Each module has check(name, task) and run(model, name, task, batch_size, cache).
KINDS: dict[str, ModuleType] = {
    "retrieval": retrieval,
    "classification": classification,
    "segmentation": segmentation,
}


def check_tasks(config: EvaluationConfig, patch_size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` for what can be known to be wrong before anything is encoded."""
    sharding.check_batch(config.batch_size, mesh, f"{where}.batch_size")
    for name, task in config.tasks.items():
        if task.kind not in KINDS:
            raise UserError(
                f"the task {name} has kind={task.kind!r}, which is unknown; choose among "
                f"{', '.join(KINDS)}."
            )
        if is_random(task.data):
            raise UserError(
                f"the task {name} would be evaluated on random crops; set its data.augmentation "
                "to center_crop or squash."
            )
        check_image_size(task.data, patch_size, f"the task {name}")
        KINDS[task.kind].check(name, task)


def run_task(
    model: Model,
    name: str,
    task: TaskConfig,
    batch_size: int,
    cache: FeatureCache | None = None,
) -> TaskResult:
    """Runs one task.

    Args:
        model: the model.
        name: of the task.
        task: what to do.
        batch_size: images, and texts, encoded at once.
        cache: backbone tokens of the task's images, if there are any.

    Raises:
        UserError: data that cannot be used.
    """
    result: TaskResult = KINDS[task.kind].run(model, name, task, batch_size, cache)
    return result
