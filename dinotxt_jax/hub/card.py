"""Writes the card of a model: what it is, how to load it, and what it measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dinotxt_jax.evaluation.comparison import comparison_table
from dinotxt_jax.evaluation.pages import METRIC_NAMES, protocol_text
from dinotxt_jax.storage.model_directory import ModelDescription
from dinotxt_jax.visualize.web_page import Table


def model_card(
    repository: str,
    description: ModelDescription,
    results: Mapping[str, Mapping[str, Any]],
    licence: str,
) -> str:
    """Returns the card in Markdown, with the front matter that hubs read.

    Args:
        repository: ORG/NAME.
        description: the content of `model.json`.
        results: the content of `results.json` of an evaluation; may be empty.
        licence: the licence's identifier on the hub.
    """
    name = repository.rpartition("/")[2]
    parts = [
        f"---\nlibrary_name: dinotxt_jax\nlicense: {licence}\ntags:\n"
        "- zero-shot-image-classification\n- image-segmentation\n- feature-extraction\n---",
        f"# {name}",
        _described(description),
        f'```python\nimport dinotxt_jax as dt\n\nmodel = dt.load("hf://{repository}")\n```',
    ]
    if description.sources:
        rows = [["made from", "sha256"]]
        rows += [[source.file, source.sha256] for source in description.sources]
        parts.append(Table(rows).markdown())
    if results:
        published = {task: {**result, "published": ""} for task, result in results.items()}
        parts += ["## Results", comparison_table({name: published}).markdown()]
        parts += [f"- {_task(task, result)}" for task, result in results.items()]
    return "\n\n".join(parts) + "\n"


def _described(description: ModelDescription) -> str:
    vision, text = description.vision, description.text
    preset = f" ({description.preset})" if description.preset else ""
    sentences = [
        f"Vision transformer{preset}: patch {vision.patch_size}, width {vision.dim}, "
        f"{vision.depth} blocks.",
        f"Images: {description.preprocessing.described}.",
    ]
    if text is not None:
        sentences.insert(
            1,
            f"Text transformer: width {text.width}, {text.depth} blocks, rows of "
            f"{text.context_length} tokens.",
        )
    return " ".join(sentences)


def _task(task: str, result: Mapping[str, Any]) -> str:
    metrics = ", ".join(
        f"{METRIC_NAMES.get(key, key)} {value:.1f}"
        for key, value in result["metrics"].items()
        if value is not None
    )
    return f"{task}: {metrics} ({protocol_text(result['protocol'])})"
