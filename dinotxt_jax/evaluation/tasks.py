"""The kinds of evaluation tasks, and what all of them share."""

from __future__ import annotations

from types import ModuleType

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation import classification, published, retrieval, segmentation
from dinotxt_jax.evaluation.jobs import Job, TaskResult

# Each module has METRICS, check(name, task, patch_size) and run(job).
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
        published.check(name, task.published)
        KINDS[task.kind].check(name, task, patch_size)


def run_task(job: Job) -> TaskResult:
    """Runs one task.

    Raises:
        UserError: data that cannot be used.
    """
    result: TaskResult = KINDS[job.task.kind].run(job)
    return result
