"""Reports: published figures of the same protocol only, and names that may hold anything."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dinotxt_jax import UserError
from dinotxt_jax.evaluation.pages import html_page, markdown_page
from dinotxt_jax.evaluation.published import FIGURES, check_published, comparable

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


def test_what_a_source_does_not_say_is_said() -> None:
    (clip,) = (f for f in comparable("imagenet1k", IMAGENET) if f.model == "CLIP")
    assert clip.open == "resolution"
    assert not list(comparable("imagenet1k", IMAGENET | {"templates": 7}))
    assert not list(comparable("", {"protocol": "slide"}))
    assert all(f.metrics and f.source for figures in FIGURES.values() for f in figures)


def test_a_set_without_published_figures_is_named() -> None:
    check_published("config.tasks.a", "")
    with pytest.raises(UserError, match="config.tasks.a.published='imagenet' is"):
        check_published("config.tasks.a", "imagenet")


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
