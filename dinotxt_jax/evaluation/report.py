"""Runs the tasks of an evaluation config and keeps what came out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job, PartialWork, TaskResult
from dinotxt_jax.evaluation.pages import html_page, markdown_page
from dinotxt_jax.evaluation.tasks import check_tasks, run_task
from dinotxt_jax.inference import load
from dinotxt_jax.models.directory import read_description


def evaluate(
    model_path: str,
    config: EvaluationConfig,
    output: Path,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> list[Path]:
    """Evaluates a model directory.

    Tasks whose results lie in the output folder already, from the same model and settings, are not
    run again, and an interrupted one goes on.

    Args:
        model_path: the model directory.
        config: what to evaluate.
        output: receives results.json, report.md, report.html, and NAME.png for tasks that have a
            picture.
        dtype: of arrays and matrix products; "float32" or "bfloat16".
        mesh: defaults to all devices.

    Returns:
        The files written.

    Raises:
        UserError: a model or data that cannot be used; finished tasks stay.
    """
    if not config.tasks:
        raise UserError("config.tasks is empty, expected at least one task; add one.")
    mesh = sharding.make_mesh() if mesh is None else mesh
    check_tasks(config, read_description(model_path).vision.patch_size, mesh, "config")
    model = load(model_path, dtype, mesh)
    file = output / "results.json"
    before = _read(file)
    results: dict[str, Any] = {}
    for name, task in config.tasks.items():
        origin = {
            "backbone_fingerprint": model.description.fingerprint,
            "trained_fingerprint": model.trained_fingerprint,
            "dtype": dtype,
            "task": json.loads(json.dumps(dataclasses.asdict(task))),
        }
        if before.get(name, {}).items() >= origin.items():
            results[name] = before[name]
            continue
        partial = PartialWork(output / f".{name}.partial.npz", origin)
        result = run_task(Job(model, name, task, config.batch_size, partial=partial))
        output.mkdir(parents=True, exist_ok=True)
        if result.draw is not None:
            result.draw(output / f"{name}.png")
        results[name] = _stored(result) | origin
        _replace(file, json.dumps(results, indent=2) + "\n")
        partial.clear()
    title = f"Evaluation of {Path(model_path).name or model_path}"
    pictures = {name: output / f"{name}.png" for name in results}
    pictures = {name: picture for name, picture in pictures.items() if picture.exists()}
    _replace(output / "report.md", markdown_page(title, results, pictures))
    _replace(output / "report.html", html_page(title, results, pictures))
    return [file, output / "report.md", output / "report.html", *pictures.values()]


def _read(file: Path) -> dict[str, Any]:
    """Results of before; a file that is none is an error, not overwritten."""
    if not file.is_file():
        return {}
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise UserError(
            f"{file} is not JSON ({error}); remove it, or choose another --output."
        ) from error


def _stored(result: TaskResult) -> dict[str, Any]:
    return {
        "kind": result.kind,
        "metrics": result.metrics,
        "chance": result.chance,
        "protocol": result.protocol,
        "per_class": [list(pair) for pair in result.per_class],
        "prompts": list(result.prompts),
    }


def _replace(file: Path, text: str) -> None:
    partial = file.with_name(f".{file.name}.writing")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
