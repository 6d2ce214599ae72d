"""Several models on the same tasks, on one page: models x tasks, with published figures.

A figure of another protocol is another figure. The page therefore names, for every task, the
protocol that all models share and what differs between them, and shows a published figure only
below a task whose protocol it matches.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jax.sharding import Mesh

from dinotxt_jax.config import EvaluationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.pages import (
    METRIC_NAMES,
    Results,
    protocol_text,
    task_texts,
    tasks_title,
)
from dinotxt_jax.evaluation.published import comparable
from dinotxt_jax.evaluation.report import evaluate, named_folder
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address, AddressLike, to_output
from dinotxt_jax.storage.files import read_json, write_text
from dinotxt_jax.visualize.web_page import Table, text_element, web_page

# The metrics that stand for a task kind on the page; all others are in each model's own report.
MAIN_METRICS = {
    "classification": ("top1",),
    "retrieval": ("image_to_text_r1", "text_to_image_r1"),
    "segmentation": ("mean_iou",),
    "text": ("caption_r1", "spearman"),
}
_EXPLANATION = (
    "All figures are in percent, and higher is better; the best model of each column is marked "
    "with an asterisk. Published figures stand in a column only if their protocol matches that of "
    "a model. Each model's own report has all metrics, chance, classes and pictures."
)


def compare_models(
    models: Sequence[str],
    config: EvaluationConfig,
    output: AddressLike,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> list[Address]:
    """Evaluates several models and writes one page about all of them.

    Args:
        models: model directories, each optionally with a name: NAME=DIR.
        config: the tasks and settings.
        output: folder for comparison.md and comparison.html, and a folder with an evaluation for
            each model, which is not repeated if it is complete.
        dtype, mesh: as for `evaluate`.

    Returns:
        The files written (by this process).

    Raises:
        UserError: two models have one name, or a model or the data cannot be used; results from
            finished models and tasks are kept.
    """
    output = to_output(output, "--output")
    folders = named_models(models)
    results: dict[str, Results] = {}
    for name, path in folders.items():
        evaluate(path, config, output / name, dtype, mesh)
        if processes.is_first():
            stored = read_json(output / name / "results.json", "results", "run the command again")
            results[name] = {
                task: stored[task] | {"published": settings.published}
                for task, settings in config.tasks.items()
            }
    if not processes.is_first():
        return []
    title = f"{', '.join(folders)} on {tasks_title(config.tasks)}"
    write_text(output / "comparison.md", comparison_markdown(title, results))
    write_text(output / "comparison.html", comparison_html(title, results))
    return [output / "comparison.md", output / "comparison.html"]


def named_models(models: Sequence[str]) -> dict[str, str]:
    """Returns name -> model directory; names come from the folders if none is given.

    Raises:
        UserError: no model is given, or two have the same name.
    """
    if not models:
        raise UserError("no model is given, expected --model=DIR for each; add them.")
    folders: dict[str, str] = {}
    for model in models:
        given, equals, path = model.rpartition("=")
        name = given if equals else named_folder(path).replace("/", "_")
        if name in folders or not name or "/" in name:
            raise UserError(
                f"--model={model} has the name {name!r}, expected a different one for each model "
                "that a folder can have; name it with --model=NAME=DIR."
            )
        folders[name] = path
    return folders


def comparison_markdown(title: str, results: Mapping[str, Results]) -> str:
    """Returns the page in Markdown."""
    parts = [f"# {title}", comparison_table(results).markdown(), _EXPLANATION]
    for task, sentences, differences in _tasks(results):
        parts += [f"## {task}", *sentences]
        parts += [differences.markdown()] if differences else []
    return "\n\n".join(parts) + "\n"


def comparison_html(title: str, results: Mapping[str, Results]) -> str:
    """Returns the page in HTML, in one file."""
    parts = [comparison_table(results).html(), text_element("p", _EXPLANATION)]
    for task, sentences, differences in _tasks(results):
        parts += [text_element("h2", task), *(text_element("p", text) for text in sentences)]
        parts += [differences.html()] if differences else []
    return web_page(title, parts)


def comparison_table(results: Mapping[str, Results]) -> Table:
    """Returns models x (task, main metric), then published figures."""
    columns = list(_columns(results))
    best = {
        column: max(
            (value for r in results.values() if (value := _value(r, *column)) is not None),
            default=None,
        )
        for column in columns
    }
    rows = [["model", *(f"{task}: {METRIC_NAMES.get(key, key)}" for task, key in columns)]]
    for name, tasks in results.items():
        values = [_value(tasks, *column) for column in columns]
        rows.append([name])
        for column, value in zip(columns, values, strict=True):
            is_best = value is not None and value == best[column] and len(results) > 1
            rows[-1].append(_cell(value) + "*" * is_best)
    for label, figures in _published(results).items():
        cells = [_cell(figures.get(column)) for column in columns]
        if any(cells):
            rows.append([label, *cells])
    return Table(rows)


def _columns(results: Mapping[str, Results]) -> Iterator[tuple[str, str]]:
    tasks = next(iter(results.values()))
    for name, result in tasks.items():
        for key in MAIN_METRICS[result["kind"]]:
            if key in result["metrics"]:
                yield name, key


def _value(tasks: Results, task: str, key: str) -> float | None:
    value: float | None = tasks[task]["metrics"].get(key)
    return value


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _published(results: Mapping[str, Results]) -> dict[str, dict[tuple[str, str], float]]:
    """Returns published figures by model and source, for the columns that they match."""
    rows: dict[str, dict[tuple[str, str], float]] = {}
    for tasks in results.values():
        for task, result in tasks.items():
            for figure in comparable(result["published"], result["protocol"]):
                unsaid = f"; not stated: {figure.open}" if figure.open else ""
                label = f"published: {figure.model} ({figure.source}{unsaid})"
                for key, value in figure.metrics.items():
                    rows.setdefault(label, {})[task, key] = value
    return rows


def _tasks(results: Mapping[str, Results]) -> Iterator[tuple[str, list[str], Table | None]]:
    """Yields each task, sentences about what all models share, and a table of what differs."""
    for task in next(iter(results.values())):
        protocols = {name: _conditions(tasks[task]) for name, tasks in results.items()}
        keys = list(dict.fromkeys(key for protocol in protocols.values() for key in protocol))
        texts = {key: [_text(p.get(key)) for p in protocols.values()] for key in keys}
        shared = {
            key: next(iter(protocols.values()))[key] for key in keys if len(set(texts[key])) == 1
        }
        differing = [key for key in keys if key not in shared]
        table = None
        if differing:
            rows = [["", *protocols]]
            rows += [[key.replace("_", " "), *texts[key]] for key in differing]
            table = Table(rows)
        data = task_texts(next(iter(results.values()))[task])[:1]
        yield task, [*data, f"Shared by all models: {protocol_text(shared)}."], table


def _conditions(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns everything that a model's figure was measured under."""
    preparation = {f"pixels {k}": v for k, v in result.get("preprocessing", {}).items()}
    return {**result["protocol"], "dtype": result.get("dtype"), **preparation}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
