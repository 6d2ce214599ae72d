"""Resize rules: squares, bilinear without antialiasing, and NaFlex's sizes."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dinotxt_jax.config.data import AUGMENTATIONS, RESIZE_RULES
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.resizing import (
    SQUARE_VIEWS,
    center_crop,
    naflex_size,
    prepare_image,
    squash,
    squash_plain,
)
from dinotxt_jax.storage.preprocessing import Preprocessing


def photo(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def test_the_tables_have_the_rules_of_the_settings() -> None:
    assert (*SQUARE_VIEWS, "naflex") == RESIZE_RULES
    assert (*SQUARE_VIEWS,) == AUGMENTATIONS[1:]


@pytest.mark.parametrize(("width", "height"), [(333, 500), (500, 333), (64, 64)])
def test_center_crop_resizes_the_short_side_and_floors_the_long_one(
    width: int, height: int
) -> None:
    image = photo(height, width)
    long = int(256 * max(width, height) / min(width, height))
    shape = (256, long) if width <= height else (long, 256)
    whole = np.asarray(image.resize(shape, Image.Resampling.BICUBIC))
    top, left = round((whole.shape[0] - 224) / 2), round((whole.shape[1] - 224) / 2)
    expected = whole[top : top + 224, left : left + 224]
    np.testing.assert_array_equal(center_crop(image, 256, 224), expected)


def test_squash_keeps_an_image_of_the_right_size_as_it_is() -> None:
    image = photo(224, 224)
    for rule in RESIZE_RULES[1:-1]:
        np.testing.assert_array_equal(SQUARE_VIEWS[rule](image, 256, 224), image)
    assert squash(photo(30, 90), 16).size == (16, 16)


def exact_bilinear(pixels: np.ndarray, size: int) -> list[list[list[Fraction]]]:
    """Interpolates between the four neighbours of each centre, in rational numbers."""

    def neighbours(index: int, count: int) -> tuple[int, int, Fraction]:
        centre = (index + Fraction(1, 2)) * Fraction(count, size) - Fraction(1, 2)
        first = math.floor(centre)
        return max(first, 0), min(first + 1, count - 1), centre - first

    rows = []
    for y in range(size):
        top, bottom, down = neighbours(y, pixels.shape[0])
        row = []
        for x in range(size):
            left, right, across = neighbours(x, pixels.shape[1])
            corners = [[int(c) for c in pixels[i, j]] for i in (top, bottom) for j in (left, right)]
            weights = [(1 - down) * (1 - across), (1 - down) * across]
            weights += [down * (1 - across), down * across]
            pairs = list(zip(weights, corners, strict=True))
            row.append([sum(weight * corner[k] for weight, corner in pairs) for k in range(3)])
        rows.append(row)
    return rows


@pytest.mark.parametrize(
    ("height", "width", "size"), [(7, 5, 3), (9, 31, 8), (4, 3, 10), (1, 1, 4), (12, 12, 6)]
)
def test_plain_bilinear_reads_four_neighbours_and_cuts_fractions_off(
    height: int, width: int, size: int
) -> None:
    image = photo(height, width)
    result = np.asarray(squash_plain(image, size))
    exact = exact_bilinear(np.asarray(image), size)
    for place in np.ndindex(result.shape):
        y, x, k = place
        value = exact[y][x][k]
        # Values up to 255 after about ten float32 roundings, which may cross a whole number.
        near = {math.floor(value + Fraction(e, 10_000)) for e in (-1, 1)}
        assert result[place] == math.floor(value) if len(near) == 1 else result[place] in near


def test_plain_bilinear_does_not_average_and_antialiased_does() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    image = Image.fromarray(stripes)
    assert np.ptp(np.asarray(SQUARE_VIEWS["squash_bilinear"](image, 0, 8))) < 20
    # Centres are at 3.5, 11.5, ...: half of a white and half of a black column, fraction cut off.
    assert set(np.asarray(squash_plain(image, 8)).ravel().tolist()) == {127}
    assert set(np.asarray(squash_plain(image, 16)).ravel().tolist()) == {0}


def test_bilinear_is_that_of_pil_and_not_bicubic() -> None:
    image = photo(100, 60)
    expected = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(SQUARE_VIEWS["squash_bilinear"](image, 0, 32), expected)
    assert (expected != np.asarray(squash(image, 32))).any()


def largest_grid(height: int, width: int, patch: int, most: int) -> tuple[tuple[int, int], bool]:
    """Tries every scale at which a side is a whole number of patches.

    Returns:
        Rows and columns at the largest of these scales, and whether another is so close below it
        that a bisection to 1e-5 may end beneath.
    """
    scales = {Fraction(100)}
    scales |= {Fraction(n * patch, side) for side in (height, width) for n in range(1, most + 1)}

    def grid(scale: Fraction) -> tuple[int, int]:
        return math.ceil(height * scale / patch), math.ceil(width * scale / patch)

    fitting = [scale for scale in scales if scale <= 100 and math.prod(grid(scale)) <= most]
    best = max(fitting)
    close = any(0 < best - scale < Fraction(3, 100_000) for scale in scales)
    return grid(best), close


@given(
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    patch=st.sampled_from([14, 16, 32]),
    most=st.sampled_from([1, 16, 100, 256, 1024]),
)
def test_naflex_takes_the_largest_size_with_enough_patches(
    height: int, width: int, patch: int, most: int
) -> None:
    if math.ceil(max(height, width) / min(height, width)) > most:
        with pytest.raises(BadImageError, match="are too (wide|tall)"):
            naflex_size(height, width, patch, most)
        return
    rows, columns = (side / patch for side in naflex_size(height, width, patch, most))
    assert rows == int(rows)
    assert columns == int(columns)
    assert 1 <= rows * columns <= most
    expected, close = largest_grid(height, width, patch, most)
    if not close:
        assert (rows, columns) == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        # 16 x 16 patches of a square, whatever its size.
        ((500, 500), (256, 256)),
        ((256, 256), (256, 256)),
        # Above the scale 0.45, 14 rows have 19 columns: 266 patches.
        ((480, 640), (224, 288)),
        ((640, 480), (288, 224)),
        # Above the scale 0.4, there are two rows of 251 columns.
        ((40, 10_000), (16, 4000)),
        # No scale above 100.
        ((1, 1), (112, 112)),
    ],
)
def test_naflex_sizes_by_hand(image: tuple[int, int], expected: tuple[int, int]) -> None:
    assert naflex_size(*image, patch_size=16, max_patches=256) == expected


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (10, 2561, "2561 x 10 pixels are too wide: a single row of square patches would have 257"),
        (2561, 10, "10 x 2561 pixels are too tall: a single column .* takes at most 256"),
    ],
)
def test_an_image_whose_short_side_is_less_than_a_patch_is_refused(
    height: int, width: int, message: str
) -> None:
    assert 16 in naflex_size(10, 2560, 16, 256)
    with pytest.raises(BadImageError, match=message):
        naflex_size(height, width, 16, 256)


def test_an_image_is_prepared_by_the_rule_of_the_model() -> None:
    image = photo(60, 90)
    for rule, view in SQUARE_VIEWS.items():
        preprocessing = Preprocessing(resize=40, crop=32, rule=rule)
        pixels = prepare_image(image, preprocessing, 16)
        np.testing.assert_array_equal(pixels, view(image, 40, 32))
    pixels = prepare_image(image, Preprocessing(rule="naflex", max_patches=24), 16)
    expected = image.resize((96, 64), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(pixels, expected)


def test_every_rule_has_words() -> None:
    sizes = Preprocessing(resize=40, crop=32)
    assert {rule: dataclasses.replace(sizes, rule=rule).described for rule in RESIZE_RULES} == {
        "center_crop": "short side 40, center crop 32",
        "squash": "squash to 32 x 32 (bicubic)",
        "squash_bilinear": "squash_bilinear to 32 x 32 (antialiased)",
        "squash_bilinear_plain": "squash_bilinear_plain to 32 x 32 (not antialiased)",
        "naflex": "naflex, at most 256 patches in the image's aspect ratio",
    }
