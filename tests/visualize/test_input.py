"""Names, sizes and values that images must accept or refuse."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import HALVES, WHITE, Drawn, assert_inside, without_fonts, words
from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.errors import UserError

WEIRD = (
    "",
    " \n\t ",
    'a "quoted" name',
    "two\nlines\r\nand\vmore",
    "日本語",
    "собака и кошка",
    "كلب",
    "कुत्ता",
    "ประเทศไทย",
    "café Straße",
    "\ud800 alone",
    "a\x00b\u202ec\u0301",
    "🙂",
    "w" * 500,
    "much " * 60,
    "{}%s\\n",
)
NAN = np.full((2, 2), np.nan)
INFINITE = np.full((2, 2, 2), np.inf)


@pytest.mark.parametrize("fonts", ["of the system", "none"])
@pytest.mark.parametrize("size", [(120, 80), (80, 120), (400, 1), (1, 400)])
def test_weird_names_stay_on_the_picture(
    size: tuple[int, int], fonts: str, drawn: list[Drawn], monkeypatch: pytest.MonkeyPatch
) -> None:
    if fonts == "none":
        without_fonts(monkeypatch)
    photo = Image.new("RGB", size)
    labels = np.arange(size[0] * size[1]).reshape(size[::-1]) % len(WEIRD)
    scores = np.random.default_rng(0).normal(size=(2, 2, len(WEIRD)))
    pictures = [
        visualize.segmentation_overlay(photo, labels, WEIRD),
        visualize.segmentation_comparison(photo, labels, labels, WEIRD),
        visualize.heat_maps(photo, scores, WEIRD, score_name=WEIRD[-2]),
        *(visualize.similarity_map(photo, scores[..., 0], name) for name in WEIRD),
        visualize.patch_pca(scores, photo),
    ]
    assert_inside(drawn)
    assert not [text for text in words(drawn) if "\n" in text]
    assert words(drawn).count("class 0") == 3
    assert all(max(picture.size) < 3500 for picture in pictures)


def test_one_pixel_and_one_patch_are_enough() -> None:
    photo = np.full((1, 1, 3), 200, np.uint8)
    one = np.zeros((1, 1), int)
    pictures = [
        visualize.segmentation_overlay(photo, one, ["a"]),
        visualize.segmentation_comparison(photo, one, one + 255, ["a"]),
        visualize.heat_maps(photo, np.ones((1, 1, 1)), ["a"]),
        visualize.similarity_map(photo, np.array([[0.3]]), "a"),
        visualize.patch_pca(np.ones((1, 1, 4)), photo),
        visualize.patch_pca(np.ones((2, 1, 1, 4))),
    ]
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert all(min(picture.size) > 300 for picture in pictures)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("segmentation_overlay", ("a.jpg", HALVES, ["a", "b"]), "the photo is 'a.jpg'"),
        ("segmentation_overlay", (WHITE / 255, HALVES, ["a", "b"]), "photo cannot be drawn.*float"),
        ("segmentation_overlay", (WHITE[:0], HALVES, ["a", "b"]), "photo"),
        ("segmentation_overlay", (Image.new("RGB", (0, 4)), HALVES, ["a"]), "at least one; give"),
        ("segmentation_overlay", (WHITE, HALVES.T, ["a", "b"]), r"\[100, 60\].*\[60, 100\]"),
        ("segmentation_overlay", (WHITE, HALVES * 1.0, ["a", "b"]), "float64.*expected integers"),
        ("segmentation_overlay", (WHITE, HALVES, ["a"]), "index 1, expected 0 to 0 .there are 1"),
        ("segmentation_overlay", (WHITE, HALVES - 1, ["a"]), "index -1"),
        ("segmentation_comparison", (WHITE, HALVES + 9, HALVES, ["a", "b"]), "truth holds.* 9"),
        ("segmentation_comparison", (WHITE, HALVES, HALVES[1:], ["a", "b"]), "the prediction is"),
        ("segmentation_sheet", ([], ["a"]), "no entries"),
        ("heat_maps", (WHITE, INFINITE, ["a", "b"]), "scores holds 8 numbers that are not finite"),
        (
            "heat_maps",
            (WHITE, np.ones((2, 2, 3)), ["a", "b"]),
            "3 classes and 2 class names, expected equal",
        ),
        ("heat_maps", (WHITE, np.ones((2, 2)), ["a", "b"]), r"shape \[2, 2\]"),
        ("heat_maps", (WHITE, np.ones((2, 2, 0)), []), r"shape \[2, 2, 0\]"),
        ("heat_maps", (WHITE, "scores", ["a"]), "scores is 'scores'"),
        ("similarity_map", (WHITE, NAN, "a"), "similarity holds 4"),
        ("similarity_map", (WHITE, np.ones((2, 2, 1)), "a"), r"\[h w\]"),
        ("patch_pca", (INFINITE,), "patches holds 8"),
        ("patch_pca", (NAN,), r"\[gh gw d\]"),
        ("patch_pca", (np.ones((2, 2, 2)), [WHITE, WHITE]), "2 photos and patches of 1"),
        ("patch_pca", (np.ones((2, 2, 2, 2)), WHITE), "1 photos and patches of 2"),
        ("patch_pca", (np.ones((2, 2, 2)), 5), "the photo is 5"),
    ],
)
def test_bad_input_is_named(function: str, arguments: tuple, message: str) -> None:
    with pytest.raises(UserError, match=message):
        getattr(visualize, function)(*arguments)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan")])
def test_alpha_outside_0_to_1_is_named(alpha: float) -> None:
    with pytest.raises(UserError, match="alpha is"):
        visualize.segmentation_overlay(WHITE, HALVES, ["a", "b"], alpha=alpha)


def test_no_columns_are_named() -> None:
    with pytest.raises(UserError, match="columns is 0"):
        visualize.patch_pca(np.ones((2, 2, 2)), columns=0)
