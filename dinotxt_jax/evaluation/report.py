"""Runs the tasks of an evaluation config and keeps what came out."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job, PartialWork, TaskResult
from dinotxt_jax.evaluation.pages import html_page, markdown_page
from dinotxt_jax.evaluation.tasks import check_tasks, open_task, run_task
from dinotxt_jax.inference import load
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.files import write_text
from dinotxt_jax.storage.model_directory import read_description


def evaluate(
    model_path: str,
    config: EvaluationConfig,
    output: Path,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> list[Path]:
    """Evaluates a model directory.

    Several processes share every batch, each reading all of the data; the first one writes.

    Tasks whose results lie in the output folder already, from the same model, settings, templates
    and names and labels of images, are not run again, and an interrupted one goes on. Results of
    other tasks that lie there stay.

    Args:
        model_path: the model directory.
        config: what to evaluate.
        output: receives results.json, report.md, report.html, and NAME.png for tasks that have a
            picture.
        dtype: of arrays and matrix products; "float32" or "bfloat16".
        mesh: defaults to all devices.

    Returns:
        The files written (by this process).

    Raises:
        UserError: a model or data that cannot be used; finished tasks stay.
    """
    if not config.tasks:
        raise UserError("config.tasks is empty, expected at least one task; add one.")
    mesh = sharding.make_mesh() if mesh is None else mesh
    file = output / "results.json"
    with processes.together():
        check_tasks(config, read_description(model_path).vision.patch_size, mesh, "config")
        opened = [open_task(name, task, "config") for name, task in config.tasks.items()]
        for one in opened:
            one.check_images()
        results = _read(file)
    processes.check_same({f"the data of {one.name}": one.origin["contents"] for one in opened})
    model = load(model_path, dtype, mesh)
    for one in opened:
        origin = {
            "backbone_fingerprint": model.description.fingerprint,
            "trained_fingerprint": model.trained_fingerprint,
            "preprocessing": dataclasses.asdict(model.description.preprocessing),
            "dtype": dtype,
            **one.origin,
        }
        origin = json.loads(json.dumps(origin))
        if processes.first_says(results.get(one.name, {}).items() >= origin.items()):
            continue
        partial = PartialWork(output / f".{one.name}.partial.npz", origin)
        job = Job(model, one.name, one.task, one.source, config.batch_size, partial=partial)
        result = run_task(job)
        results[one.name] = _stored(result) | origin
        if processes.is_first():
            write_text(file, json.dumps(results, indent=2, allow_nan=False) + "\n")
        if result.draw is not None:
            result.draw(output / f"{one.name}.png")
        partial.clear()
    if not processes.is_first():
        return []
    title = f"Evaluation of {Path(model_path).name or model_path}"
    shown = {
        name: results[name] | {"published": task.published} for name, task in config.tasks.items()
    }
    pictures = {name: output / f"{name}.png" for name in shown}
    pictures = {name: picture for name, picture in pictures.items() if picture.exists()}
    write_text(output / "report.md", markdown_page(title, shown, pictures))
    write_text(output / "report.html", html_page(title, shown, pictures))
    return [file, output / "report.md", output / "report.html", *pictures.values()]


def _read(file: Path) -> dict[str, Any]:
    """Results of before; a file that is none is an error, not overwritten."""
    if not file.is_file():
        return {}
    try:
        results = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is not JSON ({error}); remove it, or choose another --output."
        ) from error
    if not isinstance(results, dict) or not all(isinstance(r, dict) for r in results.values()):
        raise UserError(
            f"{file} holds something else than results; remove it, or choose another --output."
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
    """What is no number (nothing was there to be measured) as None, which JSON has a word for."""
    return {name: value if math.isfinite(value) else None for name, value in values.items()}
