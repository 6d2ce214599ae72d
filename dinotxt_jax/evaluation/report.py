"""Runs the tasks in an evaluation config and stores the results."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig, check
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job, PartialWork, TaskResult
from dinotxt_jax.evaluation.pages import html_page, markdown_page, tasks_title
from dinotxt_jax.evaluation.tasks import (
    OpenTask,
    check_tasks,
    open_task,
    prepared_as_model,
    run_task,
)
from dinotxt_jax.inference import Model, load
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address, AddressLike, to_output
from dinotxt_jax.storage.files import read_json, write_text
from dinotxt_jax.storage.model_directory import read_description


def evaluate(
    model_path: str,
    config: EvaluationConfig,
    output: AddressLike,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    name: str = "",
) -> list[Address]:
    """Evaluates a model directory.

    With several processes, each batch is split between them; each process reads its images, and the
    first process writes the files.

    A task is skipped if the output folder already holds a result for the same model, settings,
    templates, image names and labels. An interrupted task resumes. Existing results for other tasks
    are kept.

    Args:
        model_path: the model directory.
        config: the tasks and settings.
        output: folder for results.json, report.md, report.html, and NAME.png for tasks that have a
            picture.
        dtype: dtype of arrays and matrix products; "float32" or "bfloat16".
        mesh: device mesh; defaults to all devices.
        name: the model's name in reports; by default from the path.

    Returns:
        The files written (by this process).

    Raises:
        UserError: the model or data cannot be used; results from finished tasks are kept.
    """
    check(config, needs=("tasks",))
    mesh = sharding.make_mesh() if mesh is None else mesh
    output = to_output(output, "--output")
    file = output / "results.json"
    with processes.together():
        description = read_description(model_path)
        tasks = {
            name: prepared_as_model(task, description.preprocessing, f"config.tasks.{name}")
            for name, task in config.tasks.items()
        }
        config = dataclasses.replace(config, tasks=tasks)
        check_tasks(config, description.vision, mesh, "config")
        opened = [open_task(name, task, "config") for name, task in config.tasks.items()]
        results = _read(file)
        for task in opened:
            # A task already run with the same data needs no images: only check the others.
            if not results.get(task.name, {}).items() >= task.origin.items():
                task.check_images()
    processes.check_same({f"the data of {task.name}": task.origin["contents"] for task in opened})
    model = load(model_path, dtype, mesh)
    model_name = named_folder(name or str(model_path))
    for task in opened:
        origin = _origin(model, task, dtype)
        if processes.first_says(results.get(task.name, {}).items() >= origin.items()):
            continue
        partial = PartialWork(output / f".{task.name}.partial.npz", origin)
        title = f"{model_name} on {tasks_title({task.name: task.task})}"
        settings = (task.name, task.task, task.source, config.batch_size)
        result = run_task(Job(model, *settings, partial=partial, title=title))
        results[task.name] = _stored(result) | origin
        if processes.is_first():
            write_text(file, json.dumps(results, indent=2, allow_nan=False) + "\n")
        if result.draw is not None:
            result.draw(output / f"{task.name}.png")
        partial.clear()
    if not processes.is_first():
        return []
    title = f"Evaluation of {model_name} on {tasks_title(config.tasks)}"
    return [file, *_write_pages(output, title, config, results)]


def _origin(model: Model, task: OpenTask, dtype: str) -> dict[str, Any]:
    """Returns everything that determines the results of a task, as plain JSON."""
    origin = {
        "backbone_fingerprint": model.description.fingerprint,
        "trained_fingerprint": model.trained_fingerprint,
        "preprocessing": dataclasses.asdict(model.description.preprocessing),
        "dtype": dtype,
        **task.origin,
    }
    return json.loads(json.dumps(origin))


def _write_pages(
    output: Address, title: str, config: EvaluationConfig, results: dict[str, Any]
) -> list[Address]:
    """Writes report.md and report.html; returns these two files and the pictures they show."""
    pages = {
        name: results[name] | {"published": task.published} for name, task in config.tasks.items()
    }
    pictures = {name: output / f"{name}.png" for name in pages}
    pictures = {name: picture for name, picture in pictures.items() if picture.exists()}
    write_text(output / "report.md", markdown_page(title, pages, pictures))
    write_text(output / "report.html", html_page(title, pages, pictures))
    return [output / "report.md", output / "report.html", *pictures.values()]


def named_folder(path: str) -> str:
    """Returns the last parts of a path, as many as needed to distinguish models."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    # Training names every model "model" or "best", in a folder that is often named "run".
    count = next((n for n, part in enumerate(reversed(parts), start=1) if part not in _SAME), 1)
    return "/".join(parts[-count:]) or path


_SAME = ("model", "best", "run")


def _read(file: Address) -> dict[str, Any]:
    """Reads earlier results; raises an error for any other file instead of overwriting it."""
    if not file.is_file():
        return {}
    results = read_json(file, "results of an evaluation", "remove it, or choose another --output")
    if not all(isinstance(result, dict) for result in results.values()):
        raise UserError(
            f"{file} does not contain evaluation results; remove it, or choose another --output."
        )
    return results


def _stored(result: TaskResult) -> dict[str, Any]:
    return {
        "kind": result.kind,
        "metrics": _finite(result.metrics),
        "chance": _finite(result.chance),
        "protocol": result.protocol,
        "per_class": [list(pair) for pair in result.per_class],
        "prompts": list(result.prompts),
    }


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    """Replaces non-finite values (nothing to measure) with None, which JSON can represent."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
