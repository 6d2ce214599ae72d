"""Renders results as readable pages: Markdown, and one HTML file with embedded pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dinotxt_jax.config import TaskConfig
from dinotxt_jax.evaluation.published import comparable
from dinotxt_jax.evaluation.retrieval import RECALLS
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.visualize.web_page import Table, picture_element, text_element, web_page

METRIC_NAMES = {
    "top1": "top-1",
    "top5": "top-5",
    "mean_per_class": "mean per class",
    "mean_average_precision": "mAP",
    "mean_iou": "mIoU",
    "mean_accuracy": "mean accuracy",
    "pixel_accuracy": "pixel accuracy",
    "mean_recall": "mean recall",
}
METRIC_NAMES |= {f"image_to_text_r{k}": f"image->text R@{k}" for k in RECALLS}
METRIC_NAMES |= {f"text_to_image_r{k}": f"text->image R@{k}" for k in RECALLS}
METRIC_NAMES |= {f"caption_r{k}": f"caption->caption R@{k}" for k in RECALLS}

# One sentence for each metric; `_ROWS` explains `chance` and published figures.
_MEANINGS = {
    "image_to_text": "image->text R@k: the share of images for which one of their own captions is "
    "among the k most similar captions.",
    "text_to_image": "text->image R@k: the share of captions whose image is among the k most "
    "similar images.",
    "caption": "caption->caption R@k: the share of captions for which another caption of their "
    "image is among the k most similar captions.",
    "spearman": "spearman: the rank correlation of similarities with people's scores, times 100.",
    "pearson": "pearson: the linear correlation with these scores, times 100.",
    "mean_recall": "mean recall: the mean of these recalls.",
    "top1": "top-1: the share of images whose most similar class is the right one.",
    "top5": "top-5: the share of images whose class is among the five most similar ones.",
    "mean_per_class": "mean per class: top-1 of each class, averaged over the classes that occur.",
    "mean_average_precision": "mAP: the average precision of each class (how far up its images "
    "stand when all are sorted by similarity to it), averaged over the classes that occur.",
    "mean_iou": "mIoU: of the pixels that have a class in the mask or in the prediction, the share "
    "that has it in both, averaged over the classes that occur.",
    "mean_accuracy": "mean accuracy: the share of each class's pixels that get this class, "
    "averaged over the classes that occur.",
    "pixel_accuracy": "pixel accuracy: the share of pixels that get their class.",
}
_ROWS = (
    'All figures are in percent, and higher is better. The rows "chance" give what a model that '
    "guesses would score; published figures are shown only for the same protocol."
)
_PICTURES = {
    "retrieval": "Images spread over the set, each next to the captions that the model finds most "
    "similar.",
    "segmentation": "Images spread over the set: the photo, its mask, and what the model finds.",
}

Results = Mapping[str, Mapping[str, Any]]


def markdown_page(title: str, results: Results, pictures: Mapping[str, Address]) -> str:
    """Returns the page in Markdown, with links to the pictures in the same folder."""
    parts = [f"# {title}", *(table.markdown() for table in _tables(results))]
    parts += ["\n".join(f"- {meaning}" for meaning in _meanings(results)), _ROWS]
    for name, result in results.items():
        parts.append(f"## {name}")
        parts += task_texts(result)
        if name in pictures:
            parts.append(f"![{name}]({pictures[name].name})")
            parts.append(_PICTURES.get(result["kind"], ""))
    return "\n\n".join(parts) + "\n"


def html_page(title: str, results: Results, pictures: Mapping[str, Address]) -> str:
    """Returns the page in HTML, with embedded pictures, so that one file can be shared."""
    parts = [table.html() for table in _tables(results)]
    items = "".join(text_element("li", meaning) for meaning in _meanings(results))
    parts += [f"<ul>{items}</ul>", text_element("p", _ROWS)]
    for name, result in results.items():
        parts.append(text_element("h2", name))
        parts += [text_element("p", text) for text in task_texts(result)]
        if name in pictures:
            parts.append(text_element("p", _PICTURES.get(result["kind"], "")))
            parts.append(picture_element(pictures[name].read_bytes(), name))
        if result.get("per_class"):
            table = Table([["class", "%"], *_per_class(result)])
            parts.append(f"<details><summary>classes</summary>{table.html()}</details>")
    return web_page(title, parts)


def _tables(results: Results) -> Iterator[Table]:
    """Yields one table per task kind: metrics, chance, and figures published for the protocol."""
    for kind in dict.fromkeys(result["kind"] for result in results.values()):
        chosen = {name: result for name, result in results.items() if result["kind"] == kind}
        columns = list(dict.fromkeys(key for r in chosen.values() for key in r["metrics"]))
        rows = [["task", "", *(METRIC_NAMES.get(key, key) for key in columns)]]
        for name, result in chosen.items():
            for label, values in _compared(result):
                cells = [_cell(values.get(key)) for key in columns]
                rows.append([name, label, *cells])
        yield Table(rows)


def _compared(result: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, float]]]:
    yield "model", result["metrics"]
    yield "chance", result["chance"]
    for figure in comparable(result["published"], result["protocol"]):
        unsaid = f"; not stated: {figure.open}" if figure.open else ""
        yield f"published: {figure.model} ({figure.source}{unsaid})", figure.metrics


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _meanings(results: Results) -> list[str]:
    """Returns the explanations for the metrics that occur, in order."""
    metrics = [name for result in results.values() for name in result["metrics"]]
    meanings = (
        meaning
        for metric in metrics
        for start, meaning in _MEANINGS.items()
        if metric.startswith(start)
    )
    return list(dict.fromkeys(meanings))


def task_texts(result: Mapping[str, Any]) -> list[str]:
    """Returns sentences that state the data and the protocol for a result."""
    data = [f"Data: {data_name(result['task']['data'])}."] if "task" in result else []
    return [*data, f"Protocol: {protocol_text(result['protocol'])}."]


def tasks_title(tasks: Mapping[str, TaskConfig]) -> str:
    """Returns task names for a title, and the data of a single task, whose name may be general."""
    if len(tasks) > 1:
        return ", ".join(tasks)
    ((name, task),) = tasks.items()
    return f"{name} ({data_name(dataclasses.asdict(task.data))})"


def data_name(data: Mapping[str, Any]) -> str:
    """Returns a data description from task settings (`DataConfig`): source, name, path, split."""
    parts = [data["source"], data["name"], data["path"]]
    if data["split"]:
        parts.append(f"split {data['split']}")
    return ", ".join(part for part in parts if part)


def protocol_text(protocol: Mapping[str, Any]) -> str:
    """Returns the values of a protocol in one line."""
    return ", ".join(
        f"{key.replace('_', ' ')} {str(value)[:16] if key == 'dataset_fingerprint' else value}"
        for key, value in protocol.items()
    )


def _per_class(result: Mapping[str, Any]) -> list[list[str]]:
    ordered = sorted(result["per_class"], key=lambda pair: -1 if pair[1] is None else -pair[1])
    return [[name, "none" if value is None else f"{value:.1f}"] for name, value in ordered]
