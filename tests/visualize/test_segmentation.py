"""Segmentations over photos: colours, contours, sizes and legends."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import HALVES, WHITE, Drawn, assert_inside, count, luma, words
from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.visualize.colours import class_colours
from dinotxt_jax.visualize.inputs import NONE
from dinotxt_jax.visualize.page import GAP, MARGIN, TEXT, panel_side
from dinotxt_jax.visualize.segmentation import _resized


def test_regions_have_the_colours_of_their_chips_as_far_as_alpha_says() -> None:
    picture = visualize.segmentation_overlay(WHITE, HALVES, ["sky", "sea", "sand"], alpha=0.5)
    assert picture.mode == "RGB"
    pixels = np.asarray(picture).astype(int)
    colours = class_colours(["sky", "sea", "sand"]).astype(int)
    left, right = pixels[MARGIN + 300, MARGIN + 100], pixels[MARGIN + 300, MARGIN + 900]
    for result, colour in ((left, colours[0]), (right, colours[1])):
        np.testing.assert_allclose(result, (255 + colour) / 2, atol=1)
    assert [count(picture, colour) for colour in colours] == [TEXT**2, TEXT**2, 0]


def test_alpha_0_shows_the_photo_and_alpha_1_hides_it() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (750, 1000, 3), dtype=np.uint8)
    labels = np.zeros((750, 1000), int)
    options = {"legend": False, "class_names": ["all"]}
    overlay = visualize.segmentation_overlay(photo, labels, alpha=0, **options)
    np.testing.assert_array_equal(np.asarray(overlay), photo)
    hidden = visualize.segmentation_overlay(photo, labels, alpha=1, **options)
    assert count(hidden, class_colours(["all"])[0]) == 750 * 1000


def test_contours_run_along_boundaries_only() -> None:
    labels = np.zeros((60, 100), int)
    labels[20:40, 30:70] = 1
    picture = visualize.segmentation_overlay(WHITE // 2, labels, ["a", "b"], legend=False)
    pixels = np.asarray(picture).astype(int)
    near = np.zeros(pixels.shape[:2], bool)
    near[190:410, 290:710] = True
    near[215:385, 315:685] = False
    inner = np.zeros_like(near)
    inner[215:385, 315:685] = True
    assert len(np.unique(pixels[inner], axis=0)) == 1
    assert len(np.unique(pixels[~near & ~inner], axis=0)) == 1
    light = luma(pixels) > 200
    assert not light[~near].any()
    # Thin, and without a gap: every row through the middle of the square crosses it twice.
    assert np.all((light[230:370].sum(axis=1) >= 2) & (light[230:370].sum(axis=1) <= 6))


def test_thin_structures_and_single_pixels_survive_the_smoothing_of_edges() -> None:
    labels = np.zeros((30, 40), np.int32)
    labels[10], labels[:, 20], labels[25, 5] = 1, 2, 3
    fine = _resized(labels, (400, 300))
    np.testing.assert_array_equal(fine[5::10, 5::10], labels)
    shares = [np.mean(fine == index) / np.mean(labels == index) for index in range(3)]
    np.testing.assert_allclose(shares, 1, atol=0.05)


def test_edges_are_smooth_and_no_stairs() -> None:
    labels = np.tri(40, dtype=np.int32)
    edge = (_resized(labels, (400, 400)) == 1).sum(axis=1)
    # Beyond the ends a straight edge moves by one pixel per row; stairs jump by ten.
    assert np.abs(np.diff(edge[30:370])).max() <= 3


def test_a_reduced_map_takes_the_class_that_most_pixels_have() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[:, 2::4] = 1  # the result with nearest neighbours
    labels[20:, :] = NONE
    small = _resized(labels, (10, 10))
    assert (small[:4] == 0).all()
    assert (small[6:] == NONE).all()


def test_the_legend_names_classes_that_occur_largest_first_with_shares(drawn: list[Drawn]) -> None:
    labels = np.full((60, 100), 2)
    labels[:6], labels[6:9], labels[9, 0] = 0, 255, 3
    names = ["dog", "cat", "grass", "ball"]
    visualize.segmentation_overlay(WHITE, labels, names)
    assert words(drawn) == [
        *("grass", "85.0%", "dog", "10.0%", "ball", "<0.1%", "no class", "5.0%"),
    ]


def test_the_legend_stops_after_20_classes(drawn: list[Drawn]) -> None:
    labels = np.repeat(np.arange(31), 10)[None].repeat(20, axis=0)
    photo = np.zeros((20, 310, 3), np.uint8)
    visualize.segmentation_overlay(photo, labels, [f"class number {i}" for i in range(40)])
    assert words(drawn)[-1] == "... and 11 more"
    assert len(drawn) == 41
    assert_inside(drawn)


def test_pixels_without_a_class_have_no_class_colour() -> None:
    labels = np.where(HALVES == 1, 7, 0)
    picture = visualize.segmentation_overlay(WHITE, labels, ["a"], ignored=7, legend=False)
    right = np.asarray(picture)[:, 520:].astype(int)
    assert np.ptp(right, axis=-1).max() <= 8  # greys: lines on white
    assert luma(right).min() < 200 < luma(right).mean()
    nothing = visualize.segmentation_overlay(WHITE, np.full((60, 100), 255), [], legend=True)
    assert nothing.size[0] == 1000 + 2 * MARGIN


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((160, 120), (1000, 750)),
        ((1, 1), (1000, 1000)),
        ((1200, 900), (1200, 900)),
        ((4000, 400), (1600, 160)),
        ((2, 3000), (1, 1600)),
    ],
)
def test_photos_are_brought_to_a_readable_size(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    labels = np.arange(size[0] * size[1]).reshape(size[::-1]) % 2
    picture = visualize.segmentation_overlay(
        Image.new("RGB", size), labels, ["a", "b"], legend=False
    )
    assert picture.size == expected
    with_legend = visualize.segmentation_overlay(Image.new("RGB", size), labels, ["a", "b"])
    beside = expected[1] > expected[0] * 0.85
    assert with_legend.size[beside] == expected[beside] + 2 * MARGIN or min(size) < 100
    assert with_legend.size[not beside] > expected[not beside] + 2 * MARGIN


def test_a_photo_turned_by_exif_is_turned_upright() -> None:
    photo = Image.new("RGB", (40, 20))
    photo.getexif()[0x0112] = 6
    labels = np.zeros((40, 20), int)
    assert visualize.segmentation_overlay(photo, labels, ["a"], legend=False).size == (500, 1000)


def test_a_comparison_says_how_much_is_right_and_both_shares(drawn: list[Drawn]) -> None:
    truth, labels = HALVES.copy(), np.zeros_like(HALVES)
    truth[:30] = 255
    picture = visualize.segmentation_comparison(WHITE, truth, labels, ["a", "b"], alpha=1)
    assert words(drawn) == [
        *("photo", "ground truth", "50.0% right", "prediction"),
        *("a", "25.0% / 100.0%", "b", "25.0% / 0%", "no class", "50.0% / 0%"),
        "share of pixels: ground truth / prediction",
    ]
    side = panel_side(3)
    y = MARGIN + TEXT * 3 // 2 + round(side * 0.6 * 0.75)
    row = np.asarray(picture)[y]
    colours = class_colours(["a", "b"])
    quarter, three = side // 4, side * 3 // 4
    first, second, third = (MARGIN + number * (side + GAP) for number in range(3))
    np.testing.assert_array_equal(row[[first + quarter, first + three]], 255)
    np.testing.assert_array_equal(row[[second + quarter, second + three]], colours)
    np.testing.assert_array_equal(row[[third + quarter, third + three]], colours[[0, 0]])


def test_a_sheet_has_a_row_for_every_entry_and_shares_of_all(drawn: list[Drawn]) -> None:
    ones = np.ones_like(HALVES)
    entries = [(WHITE, HALVES, HALVES), (Image.new("RGB", (100, 60)), ones, ones)]
    sheet = visualize.segmentation_sheet(entries, ["a", "b"])
    assert words(drawn).count("100.0% right") == 2
    assert words(drawn).index("b") < words(drawn).index("a")
    assert {"75.0% / 75.0%", "25.0% / 25.0%"} < set(words(drawn))
    single = visualize.segmentation_sheet(entries[:1], ["a", "b"])
    titled = visualize.segmentation_sheet(entries[:1], ["a", "b"], title="a model on\ndata")
    assert titled.height > single.height
    assert "a model on data" in words(drawn)
    assert sheet.width == single.width
    assert sheet.height > single.height + 0.6 * panel_side(3)
