"""Reports: only published figures for the same protocol, and names with any characters."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dinotxt_jax.config import DataConfig, TaskConfig
from dinotxt_jax.evaluation.pages import html_page, markdown_page, tasks_title
from dinotxt_jax.evaluation.published import FIGURES, comparable
from dinotxt_jax.evaluation.report import named_folder
from dinotxt_jax.evaluation.tasks import KINDS

IMAGENET = {"images": 50_000, "classes": 1000, "templates": 80}
ADE20K = {
    "dataset_fingerprint": "f" * 64,
    "images": 2000,
    "classes": 150,
    "templates": 80,
    "resolution": "short side 512, window 384, stride 192",
}


def result(**protocol: Any) -> dict[str, Any]:
    return {
        "kind": "segmentation",
        "metrics": {"mean_iou": 12.345, "pixel_accuracy": 50.0},
        "chance": {"pixel_accuracy": 0.7},
        "protocol": ADE20K | protocol,
        "published": "ade20k_150",
        "per_class": [["wall", 10.0], ['a "b" <i>c</i>', 90.0], ["never", None]],
    }


def test_published_figures_stand_beside_results_of_the_same_protocol_only() -> None:
    slide = markdown_page("t", {"ade": result(protocol="slide")}, {})
    assert "| ade | model | 12.3 | 50.0 |" in slide
    assert "| ade | chance | | 0.7 |" in slide
    line = next(line for line in slide.splitlines() if "19.2" in line)
    assert line.startswith(
        "| ade | published: dino.txt (DINOv2 ViT-L/14) (DINOv3 report, table 16)"
    )
    assert "25.1" not in slide
    highres = markdown_page("t", {"ade": result(protocol="highres")}, {})
    assert "25.1" in highres
    assert "19.2" not in highres
    assert "20.6" not in markdown_page("t", {"a": result(protocol="whole", resolution=98)}, {})
    for other in ({"images": 5}, {"classes": 3}, {"templates": 1}, {"resolution": "window 64"}):
        assert "19.2" not in markdown_page("t", {"a": result(protocol="slide", **other)}, {})


def test_the_title_names_the_data_of_a_task_that_is_named_for_its_protocol() -> None:
    data = DataConfig(source="masks", name="voc_20", path="data/voc", split="val")
    slide = {"slide": TaskConfig(kind="segmentation", data=data)}
    assert tasks_title(slide) == "slide (masks, voc_20, data/voc, split val)"
    assert tasks_title(slide | {"whole": slide["slide"]}) == "slide, whole"


def test_every_metric_that_occurs_is_explained_and_no_other() -> None:
    explained = {
        name: markdown_page("t", {"a": result(protocol="whole") | {"metrics": {name: 1.0}}}, {})
        for kind in KINDS.values()
        for name in kind.metrics
    }
    for name, page in explained.items():
        assert len([line for line in page.splitlines() if line.startswith("- ")]) == 1, name
        assert "what a model that guesses would score" in page
    both = {"image_to_text_r1": 1.0, "image_to_text_r5": 2.0, "mean_recall": 1.5}
    page = html_page("t", {"a": result() | {"metrics": both}}, {})
    assert re.findall(r"<li>([^:]*):", page) == ["image-&gt;text R@k", "mean recall"]


def test_a_result_names_its_data(tmp_path: Path) -> None:
    data = {"source": "jsonl", "name": "", "path": "my/captions.jsonl", "split": "test"}
    page = markdown_page("t", {"a": result() | {"task": {"data": data}}}, {})
    assert "Data: jsonl, my/captions.jsonl, split test." in page


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/quickstart/run/model", "quickstart/run/model"),
        ("models/dinotxt/", "dinotxt"),
        ("./mine/best", "mine/best"),
        ("model", "model"),
        ("gs://bucket/run/model", "bucket/run/model"),
    ],
)
def test_a_model_is_named_by_the_folders_that_tell_it_from_others(path: str, name: str) -> None:
    assert named_folder(path) == name


def test_unstated_protocol_values_are_listed() -> None:
    (clip,) = (f for f in comparable("imagenet1k", IMAGENET) if f.model == "CLIP")
    assert clip.open == "resolution"
    assert not list(comparable("imagenet1k", IMAGENET | {"templates": 7}))
    assert not list(comparable("", {"protocol": "slide"}))
    assert all(f.metrics and f.source for figures in FIGURES.values() for f in figures)


def test_the_html_page_is_whole_in_itself_and_escapes_names(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2), "red").save(tmp_path / "a.png")
    name = 'x"<script>alert(1)</script>'
    page = html_page("<t>", {name: result(protocol="slide")}, {name: tmp_path / "a.png"})
    assert "<script>" not in page
    assert "<i>" not in page
    assert "&lt;t&gt;" in page
    (source,) = re.findall(r'src="([^"]*)"', page)
    assert source.startswith("data:image/png;base64,iVBOR")
    assert not re.search(r'(href|src)="(?!data:)', page)
    rows = re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", page)
    assert rows == [
        ("a &quot;b&quot; &lt;i&gt;c&lt;/i&gt;", "90.0"),
        ("wall", "10.0"),
        ("never", "none"),
    ]


def test_cells_cannot_end_their_row() -> None:
    page = markdown_page("t", {"a|b\nc": result(protocol="slide")}, {})
    assert "| a\\|b c | model | 12.3 | 50.0 |" in page
