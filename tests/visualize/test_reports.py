"""Retrieval sheets and training curves, and what importing pictures imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pictures import WHITE, Drawn, words
from PIL import Image

from dinotxt_jax import visualize


def test_importing_pictures_imports_no_plotting_library() -> None:
    code = "import sys, dinotxt_jax.visualize; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_retrieval_sheet_shows_images_and_captions(tmp_path, drawn: list[Drawn]) -> None:
    captions = [("a dog", 0.31, True), ("a cat", 0.2, False)]
    visualize.retrieval_sheet([(WHITE, captions)], tmp_path / "new" / "sheet.png")
    sheet = Image.open(tmp_path / "new" / "sheet.png")
    assert sheet.size == (640, 224)
    assert words(drawn)[:4] == ["0.31", "a dog", "0.20", "a cat"]


def test_training_curves_are_drawn(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    values = {"loss": 1.0, "logit_scale": 2.0, "learning_rate": 1e-3, "pairs_per_second": 5.0}
    rows = [{"step": 1, **values}, {"step": 2, "t/mean_recall": 40.0}, {"step": 2, **values}]
    visualize.training_curves(rows, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1320, 744)
