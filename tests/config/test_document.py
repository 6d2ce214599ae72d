"""docs/configuration.md agrees with the declarations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dinotxt_jax.config import Config, EvaluationConfig, IngestionConfig, TaskConfig
from dinotxt_jax.config.checking import keys_of
from dinotxt_jax.config.document import document

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    cure = "run python -m dinotxt_jax.config > docs/configuration.md"
    assert PAGE.read_text() == document(), cure


@pytest.mark.parametrize(
    ("cls", "prefix"),
    [
        (Config, "config"),
        (EvaluationConfig, "config"),
        (TaskConfig, "config.tasks.NAME"),
        (IngestionConfig, "config"),
    ],
)
def test_every_setting_has_a_row(cls: type, prefix: str) -> None:
    rows = set(re.findall(r"^\| `([\w.]+)` \|", document(), re.MULTILINE))
    for key in keys_of(cls):
        # Task data has a table in the training section; evaluation has a separate section.
        key = key.removeprefix("evaluation.")
        where = "config" if key.startswith("data.") else prefix
        assert f"{where}.{key}" in rows


def test_a_row_has_default_values_and_meaning() -> None:
    text = document()
    assert "| `config.seed` | `0` | 0 to 2^63 - 1 | every random choice derives from" in text
    assert "| `config.data.crop_scale` | `(0.08, 1)` | 2 numbers in parentheses, each above" in text
    assert "| `config.loss.kind` | `softmax` | softmax or sigmoid | softmax (CLIP's) or" in text
    assert "by default `split` is `test` and `augmentation` is `center_crop` here." in text


def test_links_lead_to_headings() -> None:
    text = document()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in headings}
    links = re.findall(r"\]\(#([^)]*)\)", text)
    assert links
    assert set(links) <= anchors
    assert len(set(headings)) == len(headings)
