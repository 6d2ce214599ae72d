"""Runs the tasks of an evaluation config and writes what came out, for machines and for people."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from dinotxt_jax import sharding, visualize
from dinotxt_jax.config import EvaluationConfig, TaskConfig
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import EvalTransform, decode_image
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.retrieval import (
    RECALLS,
    RetrievalSet,
    chance_recalls,
    check_tasks,
    embed_set,
)
from dinotxt_jax.inference import load
from dinotxt_jax.models.directory import read_description

SHEET_IMAGES = 10


def evaluate(model_path: str, config: EvaluationConfig, output: Path) -> list[Path]:
    """Evaluates a model directory.

    Args:
        model_path: the model directory.
        config: what to evaluate.
        output: receives results.json, report.md, and NAME.png for each task.

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
    results: dict[str, Any] = {}
    pictures: list[Path] = []
    for name, task in config.tasks.items():
        embedded = embed_set(model, task, batch_size=config.batch_size, title=name)
        results[name] = _result(task, embedded, model.description.fingerprint)
        output.mkdir(parents=True, exist_ok=True)
        pictures.append(output / f"{name}.png")
        _draw_sheet(task, embedded, pictures[-1])
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (output / "report.md").write_text(_report(model_path, results))
    return [output / "results.json", output / "report.md", *pictures]


def _result(task: TaskConfig, embedded: RetrievalSet, fingerprint: str) -> dict[str, Any]:
    """A task's figures with everything that they depend on."""
    return {
        "metrics": embedded.metrics(),
        "chance": chance_recalls(embedded.owners),
        "images": len(embedded.images),
        "captions": len(embedded.texts),
        "backbone_fingerprint": fingerprint,
        "task": dataclasses.asdict(task),
    }


def _report(model_path: str, results: dict[str, Any]) -> str:
    recalls = " / ".join(str(k) for k in RECALLS)
    lines = [
        f"# Evaluation of {Path(model_path).name}",
        "",
        f"| task | | image->text R@{recalls} | text->image R@{recalls} | mean |",
        "|---|---|---|---|---|",
    ]
    for name, result in results.items():
        for label, values in (("model", result["metrics"]), ("chance", result["chance"])):
            both = [
                " / ".join(f"{values[f'{way}_r{k}']:.1f}" for k in RECALLS)
                for way in ("image_to_text", "text_to_image")
            ]
            lines.append(
                f"| {name} | {label} | {both[0]} | {both[1]} | {values['mean_recall']:.1f} |"
            )
    lines.append("")
    for name, result in results.items():
        task = result["task"]["data"]
        lines.append(
            f"{name}: {result['images']} images, {result['captions']} captions, "
            f"{task['augmentation']} {task['image_size']} px; a tie counts as a miss."
        )
        lines.append(f"\n![{name}]({name}.png)\n")
    return "\n".join(lines)


def _draw_sheet(task: TaskConfig, embedded: RetrievalSet, path: Path) -> None:
    """Images spread over the set, each with the captions the model finds most similar."""
    source, transform = open_source(task.data), EvalTransform(task.data)
    count = len(embedded.images)
    shown = [i * count // SHEET_IMAGES for i in range(min(SHEET_IMAGES, count))]
    entries = []
    for index in dict.fromkeys(shown):
        similarity = embedded.texts @ embedded.images[index]
        best = (-similarity).argsort(kind="stable")[:3]
        captions = [
            (embedded.captions[i], float(similarity[i]), bool(embedded.owners[i] == index))
            for i in best
        ]
        entries.append((transform(decode_image(source[index].image)), captions))
    visualize.retrieval_sheet(entries, path)
