"""Retrieval sheets and training curves, and the modules imported with the picture code."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from matplotlib.figure import Figure
from pictures import WHITE, Drawn, assert_inside, words
from PIL import Image

from dinotxt_jax import visualize


def test_importing_pictures_imports_no_plotting_library() -> None:
    code = "import sys, dinotxt_jax.visualize; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_retrieval_sheet_shows_images_and_captions(tmp_path, drawn: list[Drawn]) -> None:
    retrieved = visualize.RetrievedCaptions(WHITE, [("a dog", 0.31, True), ("a cat", 0.2, False)])
    visualize.retrieval_sheet(
        [retrieved], tmp_path / "new" / "sheet.png", captions=9, title="m on\nd"
    )
    sheet = Image.open(tmp_path / "new" / "sheet.png")
    assert sheet.width == 1656
    assert words(drawn)[:5] == ["0.31", "a dog", "0.20", "a cat", "m on d"]
    assert "the most similar of all 9 captions" in words(drawn)[5]
    assert_inside(drawn)


def test_a_sheet_names_the_rank_of_the_true_caption_when_not_retrieved(
    tmp_path, drawn: list[Drawn]
) -> None:
    long = "a caption of very many words " * 20
    retrieved = visualize.RetrievedCaptions(WHITE, [(long, 0.4, False)] * 3, (long, 0.1, 77))
    visualize.retrieval_sheet([retrieved] * 5, tmp_path / "sheet.png", captions=250)
    assert words(drawn).count("the image's own caption has rank 77 of 250:") == 5
    cut = [line for line in words(drawn) if line.endswith(" …")]
    assert len(cut) == 20
    assert_inside(drawn)


VALUES = {"loss": 1.0, "logit_scale": 2.0, "learning_rate": 1e-3, "pairs_per_second": 5.0}


def axes_of(rows, path, monkeypatch, **options):
    """Returns the axes of a figure with curves, empty axes included."""
    figures = []
    original = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: figures.append(self) or original(self, *a, **k)
    )
    visualize.training_curves(rows, path, **options)
    return figures[0]


def test_training_curves_name_the_run_and_show_chance(tmp_path, monkeypatch) -> None:
    results = {"t/mean_recall": 40.0, "t/mean_recall/chance": 1.5, "u/mean_recall": 30.0}
    rows = [{"step": 1, **VALUES}, {"step": 2, **results}, {"step": 2, **VALUES}]
    figure = axes_of(rows, tmp_path / "c.png", monkeypatch, title="mine", chance_loss=4.1589)
    assert Image.open(tmp_path / "c.png").width == 1320
    assert figure.get_suptitle() == "training run: mine"
    titles = ["loss", "exp(logit_scale)", "learning rate", "pairs per second", "mean recall, %"]
    assert [axis.get_title() for axis in figure.axes] == titles
    labels = [text.get_text() for text in figure.axes[-1].get_legend().get_texts()]
    assert labels == ["t", "chance (1.5)", "u"]
    assert [line.get_ydata()[0] for line in figure.axes[0].lines] == [1.0, 4.1589]
    assert figure.axes[1].lines[0].get_ydata()[0] == pytest.approx(math.exp(2))


@pytest.mark.parametrize(
    ("metrics", "count"),
    [
        ((), 4),
        (("a/mean_recall", "b/mean_iou"), 6),
        (("a/top1", "a/mean_iou", "b/mean_recall"), 7),
    ],
)
def test_curves_have_no_empty_panel(metrics, count, tmp_path, monkeypatch) -> None:
    rows = [{"step": 1, **VALUES}, {"step": 1, **dict.fromkeys(metrics, 5.0)}]
    figure = axes_of(rows, tmp_path / "curves.png", monkeypatch)
    figure.draw_without_rendering()
    assert len(figure.axes) == count
    assert all(axis.lines for axis in figure.axes)
    rights: dict[float, float] = {}
    for axis in figure.axes:
        box = axis.get_position()
        rights[round(box.y0, 2)] = max(box.x1, rights.get(round(box.y0, 2), 0))
    assert min(rights.values()) > 0.95  # every row reaches the right edge
    none = {"step": 1, **dict.fromkeys(VALUES), "t/mean_recall": None}
    assert not axes_of([none], tmp_path / "none.png", monkeypatch).axes
