"""Pictures of `dinotxt_jax.visualize`: what they show, and that everything fits on them."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dinotxt_jax import visualize
from dinotxt_jax.errors import UserError
from dinotxt_jax.visualize.colours import _linear, _oklab, class_colours, heat_colours
from dinotxt_jax.visualize.inputs import NONE
from dinotxt_jax.visualize.page import GAP, MARGIN, TEXT, panel_side
from dinotxt_jax.visualize.segmentation import _resized
from dinotxt_jax.visualize.text import numbers_between, one_line

WHITE = np.full((60, 100, 3), 255, np.uint8)
HALVES = np.repeat([[0, 1]], 60, axis=0).repeat(50, axis=1)
WEIRD = (
    "",
    " \n\t ",
    'a "quoted" name',
    "two\nlines\r\nand\vmore",
    "日本語",
    "café Straße",
    "\ud800 alone",
    "a\x00b\u202ec\u0301",
    "🙂",
    "w" * 500,
    "much " * 60,
    "{}%s\\n",
)


@dataclass
class Drawn:
    text: str
    box: tuple[float, float, float, float]
    size: tuple[int, int]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """Every text that is drawn, its box, and the size of the image it is drawn on."""
    texts: list[Drawn] = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, fill=None, font=None, anchor=None, **options):
        if text:
            box = self.textbbox(xy, text, font, anchor)
            texts.append(Drawn(text, box, self.im.size))
        original(self, xy, text, fill, font, anchor, **options)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return texts


def words(drawn: list[Drawn]) -> list[str]:
    return [one.text for one in drawn]


def assert_inside(drawn: list[Drawn]) -> None:
    for one in drawn:
        left, top, right, bottom = one.box
        inside = left >= -1 and top >= 0 and right <= one.size[0] + 1 and bottom <= one.size[1]
        assert inside, one


def luma(image: Image.Image | np.ndarray) -> np.ndarray:
    return np.asarray(image, np.float64) @ (0.2126, 0.7152, 0.0722)


def count(image: Image.Image, colour: np.ndarray) -> int:
    return int((np.asarray(image) == colour).all(axis=-1).sum())


# Class colours


def test_the_colour_of_a_class_does_not_depend_on_how_many_there_are() -> None:
    many = class_colours(512)
    np.testing.assert_array_equal(class_colours(7), many[:7])
    assert len(np.unique(many, axis=0)) == 512
    np.testing.assert_array_equal(class_colours(520)[512:], many[:8])


def test_neighbouring_classes_differ_well_and_the_first_ones_for_the_colour_blind() -> None:
    lab = _oklab(_linear(class_colours(400)))
    assert np.linalg.norm(np.diff(lab, axis=0), axis=1).min() > 0.05
    # Machado et al. 2009, no green cones.
    deuteranopia = np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    )
    seen = _oklab(np.clip(_linear(class_colours(12)) @ deuteranopia.T, 0, 1))
    apart = np.linalg.norm(seen[:, None] - seen, axis=-1) + np.eye(12)
    assert apart.min() > 0.05


def test_oklab_gives_its_published_values() -> None:
    red_and_white = np.array([[255, 0, 0], [255, 255, 255]])
    expected = [[0.62796, 0.22486, 0.12585], [1, 0, 0]]
    np.testing.assert_allclose(_oklab(_linear(red_and_white)), expected, atol=2e-4)


def test_heat_colours_get_lighter_in_even_steps() -> None:
    lab = _oklab(_linear(heat_colours(np.linspace(0, 1, 33))))
    assert np.all(np.diff(lab[:, 0]) > 0.005)
    steps = np.linalg.norm(np.diff(lab, axis=0), axis=1)
    assert steps.max() < 1.4 * steps.min()


# Segmentations


def test_regions_have_the_colours_of_their_chips_as_far_as_alpha_says() -> None:
    picture = visualize.segmentation_overlay(WHITE, HALVES, ["sky", "sea", "sand"], alpha=0.5)
    assert picture.mode == "RGB"
    pixels = np.asarray(picture).astype(int)
    colours = class_colours(3).astype(int)
    left, right = pixels[MARGIN + 300, MARGIN + 100], pixels[MARGIN + 300, MARGIN + 900]
    for found, colour in ((left, colours[0]), (right, colours[1])):
        np.testing.assert_allclose(found, (255 + colour) / 2, atol=1)
    assert [count(picture, colour) for colour in colours] == [TEXT**2, TEXT**2, 0]


def test_alpha_0_shows_the_photo_and_alpha_1_hides_it() -> None:
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (750, 1000, 3), dtype=np.uint8)
    labels = np.zeros((750, 1000), int)
    options = {"legend": False, "class_names": ["all"]}
    shown = visualize.segmentation_overlay(photo, labels, alpha=0, **options)
    np.testing.assert_array_equal(np.asarray(shown), photo)
    hidden = visualize.segmentation_overlay(photo, labels, alpha=1, **options)
    assert count(hidden, class_colours(1)[0]) == 750 * 1000


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
    # Beyond the ends a straight edge moves by one pixel a row; stairs jump by ten.
    assert np.abs(np.diff(edge[30:370])).max() <= 3


def test_a_reduced_map_takes_the_class_that_most_pixels_have() -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[:, ::4] = 1  # what nearest neighbours might hit
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
    colours = class_colours(2)
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
    assert sheet.width == single.width
    assert sheet.height > single.height + 0.6 * panel_side(3)


# Heat


def panel(picture: Image.Image, number: int, top: int, side: int, height: int) -> np.ndarray:
    left = MARGIN + number * (side + GAP)
    return np.asarray(picture)[MARGIN + top : MARGIN + top + height, left : left + side]


def test_heat_gets_lighter_as_the_similarity_grows() -> None:
    ramp = np.linspace(-0.1, 0.3, 24)[None].repeat(2, axis=0)
    picture = visualize.similarity_map(np.full((40, 80, 3), 128, np.uint8), ramp, "a phrase")
    side = panel_side(2)
    heat = panel(picture, 1, TEXT * 3 // 2 * 5 // 4 + GAP, side, side // 2)
    across = luma(heat[100])
    assert np.all(np.diff(across) > -0.8)  # the last bit of 8
    assert across[-1] - across[0] > 120
    assert np.abs(luma(heat) - across).max() < 1e-9  # rows are alike


def test_a_similarity_map_states_phrase_and_range(drawn: list[Drawn]) -> None:
    similarity = np.array([[-0.05, 0.35], [0.1, 0.2]])
    visualize.similarity_map(WHITE, similarity, "a dog\non the  grass")
    assert words(drawn) == [
        *("“a dog on the grass”", "cosine similarity"),
        *("-0.05", "0.05", "0.15", "0.25", "0.35"),
    ]
    assert_inside(drawn)


def test_heat_maps_share_one_scale_and_name_class_and_maximum(drawn: list[Drawn]) -> None:
    scores = np.stack([np.full((3, 4), 0.2), np.full((3, 4), 1.0), np.full((3, 4), 0.6)], -1)
    photo = np.zeros((40, 80, 3), np.uint8)
    picture = visualize.heat_maps(photo, scores, ["low", "high", "middle"], what="logit")
    side = panel_side(4)
    tiles = [panel(picture, number, TEXT * 3 // 2, side, side // 2) for number in range(4)]
    assert tiles[0].max() == 0
    for tile, unit in zip(tiles[1:], (0.0, 1.0, 0.5), strict=True):
        assert len(np.unique(tile.reshape(-1, 3), axis=0)) == 1
        np.testing.assert_allclose(tile[0, 0], 0.72 * heat_colours(np.array(unit)), atol=2)
    assert {"photo", "low", "max 0.20", "high", "max 1.00", "middle", "max 0.60"} < set(
        words(drawn)
    )
    assert words(drawn)[-6:] == [
        *("logit, one scale for all classes", "0.20", "0.40", "0.60", "0.80", "1.00"),
    ]


def test_columns_say_how_many_tiles_stand_beside_each_other() -> None:
    scores = np.random.default_rng(0).normal(size=(2, 2, 5))
    names = list("abcde")
    wide = visualize.heat_maps(WHITE, scores, names, columns=6)
    tall = visualize.heat_maps(WHITE, scores, names, columns=2)
    assert wide.width > 4 * wide.height
    assert tall.height > tall.width
    more = visualize.heat_maps(WHITE, scores, names, columns=99)
    np.testing.assert_array_equal(np.asarray(more), np.asarray(wide))


def test_numbers_of_a_scale_have_digits_enough() -> None:
    written = [
        numbers_between(low, high)(high) for low, high in ((0, 0.02), (0, 30), (-5e7, 3e7), (0, 0))
    ]
    assert written == ["0.0200", "30.0", "3e+07", "0"]
    assert numbers_between(0.3, 0.3)(0.3) == "0.30"


# Principal components


def clusters(rng: np.random.Generator, noise: float = 0.02) -> np.ndarray:
    """Patches [4 6 16] of which the left and the right half differ."""
    centres = rng.normal(size=(2, 16))
    return centres[np.repeat([0, 1], 3)][None] + noise * rng.normal(size=(4, 6, 16))


def test_components_tell_two_clusters_apart_the_same_way_every_time() -> None:
    patches = clusters(np.random.default_rng(0))
    picture = visualize.patch_pca(patches)
    side = panel_side(1)
    red = panel(picture, 0, 0, side, round(side * 2 / 3))[..., 0].astype(int)
    assert picture.height < MARGIN + red.shape[0] + 100  # the grid's shape
    left, right = red[:, : side // 3], red[:, -side // 3 :]
    assert abs(left.mean() - right.mean()) > 150
    assert max(left.std(), right.std()) < 40
    again = visualize.patch_pca(patches.copy())
    assert picture.tobytes() == again.tobytes()


def test_the_sign_of_a_component_does_not_depend_on_the_order_of_images() -> None:
    rng = np.random.default_rng(1)
    patches = np.stack([clusters(rng), clusters(rng), clusters(rng)])
    side = panel_side(2)
    height = round(side * 4 / 6)
    forwards = visualize.patch_pca(patches[:2])
    backwards = visualize.patch_pca(patches[1::-1])
    for number in range(2):
        one = panel(forwards, number, 0, side, height).astype(int)
        other = panel(backwards, 1 - number, 0, side, height)
        assert np.abs(one - other).max() <= 1


def test_images_share_one_pca() -> None:
    rng = np.random.default_rng(2)
    first = clusters(rng)
    second = np.concatenate([first[:, 3:], first[:, :3]], axis=1)
    photos = [WHITE, np.zeros((60, 100, 3), np.uint8)]
    picture = visualize.patch_pca(np.stack([first, second]), photos)
    side = panel_side(4)
    height = round(side * 0.6)
    shown = [panel(picture, number, 0, side, height).astype(int) for number in range(4)]
    assert shown[0].min() == 255
    assert shown[2].max() == 0
    third = side // 3
    for one, other in ((slice(third), slice(-third, None)), (slice(-third, None), slice(third))):
        mean = [shown[1][:, one].mean(axis=(0, 1)), shown[3][:, other].mean(axis=(0, 1))]
        assert np.abs(mean[0] - mean[1])[0] < 20  # red: the component of the clusters


def test_an_outlier_does_not_flatten_the_others() -> None:
    patches = clusters(np.random.default_rng(3)).repeat(4, 0).repeat(4, 1)
    patches[0, 0] *= 3
    red = np.asarray(visualize.patch_pca(patches))[..., 0].astype(int)
    middle = red[red.shape[0] // 2]
    assert abs(middle[MARGIN + 200] - middle[-MARGIN - 200]) > 150


@pytest.mark.parametrize("value", [0.0, 1000.1])
def test_patches_without_variance_are_grey(value: float) -> None:
    patches = np.full((3, 5, 7), value, np.float32)
    shown = np.asarray(visualize.patch_pca(patches))[MARGIN : MARGIN + 100, MARGIN : MARGIN + 100]
    np.testing.assert_array_equal(np.unique(shown), [128])


def test_tokens_of_one_or_two_dimensions_leave_components_grey() -> None:
    patches = np.random.default_rng(4).normal(size=(3, 3, 1))
    shown = panel(visualize.patch_pca(patches), 0, 0, panel_side(1), panel_side(1))
    assert np.ptp(shown[..., 0].astype(int)) == 255
    np.testing.assert_array_equal(np.unique(shown[..., 1:]), [128])


# Names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines \t here", "two lines here"),
        ("café Straße naïve Ångström", "cafe Strasse naive Angstrom"),
        ("cat 猫", "cat ?"),
        ("猫", "class 3"),
        ("", "class 3"),
        ("\ud800", "class 3"),
        ("a\u0301\u200bb\x00", "ab"),
        (7, "7"),
    ],
)
def test_a_name_becomes_one_line_that_the_font_can_draw(text: object, expected: str) -> None:
    assert one_line(text, "class 3") == expected


@pytest.mark.parametrize("size", [(120, 80), (80, 120), (400, 1), (1, 400)])
def test_weird_names_stay_on_the_picture(size: tuple[int, int], drawn: list[Drawn]) -> None:
    photo = Image.new("RGB", size)
    labels = np.arange(size[0] * size[1]).reshape(size[::-1]) % len(WEIRD)
    scores = np.random.default_rng(0).normal(size=(2, 2, len(WEIRD)))
    pictures = [
        visualize.segmentation_overlay(photo, labels, WEIRD),
        visualize.segmentation_comparison(photo, labels, labels, WEIRD),
        visualize.heat_maps(photo, scores, WEIRD, what=WEIRD[-2]),
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


# Bad input

NAN = np.full((2, 2), np.nan)
INFINITE = np.full((2, 2, 2), np.inf)


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
        ("heat_maps", (WHITE, np.ones((2, 2, 3)), ["a", "b"]), "3 classes, expected 2"),
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


# What was there before


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
