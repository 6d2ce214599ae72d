"""Runs the tasks of an evaluation config and writes what came out, for machines and for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.retrieval import RECALLS
from dinotxt_jax.evaluation.tasks import check_tasks, run_task
from dinotxt_jax.inference import load
from dinotxt_jax.models.directory import read_description

_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "mean_average_precision": "mAP",
    "mean_iou": "mIoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
}


def evaluate(model_path: str, config: EvaluationConfig, output: Path) -> list[Path]:
    """Evaluates a model directory.

    Tasks whose results lie in the output folder already, from the same model and settings, are not
    run again, so that interrupted work goes on.

    Args:
        model_path: the model directory.
        config: what to evaluate.
        output: receives results.json, report.md, and NAME.png for tasks that have a picture.

    Returns:
        The files written.

    Raises:
        UserError: a model or data that cannot be used; nothing is written then.
    """
    if not config.tasks:
        raise UserError("config.tasks is empty, expected at least one task; add one.")
    mesh = sharding.make_mesh()
    check_tasks(config, read_description(model_path).vision.patch_size, mesh, "config")
    model = load(model_path, mesh=mesh)
    file = output / "results.json"
    before = json.loads(file.read_text()) if file.is_file() else {}
    results: dict[str, Any] = {}
    for name, task in config.tasks.items():
        origin = {
            "backbone_fingerprint": model.description.fingerprint,
            "trained_fingerprint": model.trained_fingerprint,
            "task": json.loads(json.dumps(dataclasses.asdict(task))),
        }
        if before.get(name, {}).items() >= origin.items():
            results[name] = before[name]
            continue
        result = run_task(model, name, task, config.batch_size)
        results[name] = {
            "kind": result.kind,
            "metrics": result.metrics,
            "chance": result.chance,
            "protocol": result.protocol,
            **origin,
        }
        output.mkdir(parents=True, exist_ok=True)
        if result.draw is not None:
            result.draw(output / f"{name}.png")
        file.write_text(json.dumps(results, indent=2) + "\n")
    (output / "report.md").write_text(_report(model_path, results, output))
    pictures = [output / f"{name}.png" for name in results]
    return [file, output / "report.md", *(path for path in pictures if path.exists())]


def _report(model_path: str, results: dict[str, Any], output: Path) -> str:
    lines = [f"# Evaluation of {Path(model_path).name}", ""]
    for kind in dict.fromkeys(result["kind"] for result in results.values()):
        chosen = {name: result for name, result in results.items() if result["kind"] == kind}
        table = _retrieval_table if kind == "retrieval" else _table
        lines += [*table(chosen), ""]
    for name, result in results.items():
        protocol = ", ".join(
            f"{key.replace('_', ' ')} {value}"
            for key, value in result["protocol"].items()
            if key != "dataset_fingerprint"
        )
        lines.append(f"{name}: {protocol}.")
        if (output / f"{name}.png").exists():
            lines.append(f"\n![{name}]({name}.png)\n")
    return "\n".join(lines) + "\n"


def _rows(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, float]]]:
    for name, result in results.items():
        yield name, "model", result["metrics"]
        yield name, "chance", result["chance"]


def _retrieval_table(results: dict[str, Any]) -> Iterator[str]:
    recalls = "/".join(str(k) for k in RECALLS)
    yield f"| task | | image->text R@{recalls} | text->image R@{recalls} | mean |"
    yield "|---|---|---|---|---|"
    for name, label, values in _rows(results):
        both = [
            " / ".join(f"{values[f'{way}_r{k}']:.1f}" for k in RECALLS)
            for way in ("image_to_text", "text_to_image")
        ]
        yield f"| {name} | {label} | {both[0]} | {both[1]} | {values['mean_recall']:.1f} |"


def _table(results: dict[str, Any]) -> Iterator[str]:
    columns = list(dict.fromkeys(key for r in results.values() for key in r["metrics"]))
    yield f"| task | | {' | '.join(_NAMES.get(key, key) for key in columns)} |"
    yield "|---|---|" + "---|" * len(columns)
    for name, label, values in _rows(results):
        cells = [f"{values[key]:.1f}" if key in values else "" for key in columns]
        yield f"| {name} | {label} | {' | '.join(cells)} |"
