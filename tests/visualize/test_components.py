"""Principal components of patch tokens."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import WHITE, Drawn, panel, words

from dinotxt_jax import visualize
from dinotxt_jax.visualize.page import MARGIN, panel_side


def clusters(rng: np.random.Generator, noise: float = 0.02) -> np.ndarray:
    """Returns patches [4 6 16] whose left and right halves differ."""
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
    panels = [panel(picture, number, 0, side, height).astype(int) for number in range(4)]
    assert panels[0].min() == 255
    assert panels[2].max() == 0
    third = side // 3
    for one, other in ((slice(third), slice(-third, None)), (slice(-third, None), slice(third))):
        mean = [panels[1][:, one].mean(axis=(0, 1)), panels[3][:, other].mean(axis=(0, 1))]
        assert np.abs(mean[0] - mean[1])[0] < 20  # red: the component of the clusters


def test_an_outlier_does_not_flatten_the_others() -> None:
    patches = clusters(np.random.default_rng(3)).repeat(4, 0).repeat(4, 1)
    patches[0, 0] *= 3
    red = np.asarray(visualize.patch_pca(patches))[..., 0].astype(int)
    middle = red[red.shape[0] // 2]
    assert abs(middle[MARGIN + 200] - middle[-MARGIN - 200]) > 150


def test_images_that_differ_globally_get_different_colours(drawn: list[Drawn]) -> None:
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]).reshape(2, 2, 2)
    patches = np.zeros((2, 2, 2, 8))
    patches[0, ..., 4], patches[1, ..., 4] = 3, -3
    patches[..., 1], patches[..., 6] = 2 * signs[..., 0], signs[..., 1]
    picture = visualize.patch_pca(patches + 5)
    side = panel_side(2)
    first, second = (panel(picture, number, 0, side, side) for number in range(2))
    assert (first[..., 0] == 255).all()
    assert (second[..., 0] == 0).all()
    assert words(drawn) == [
        "patch tokens: three principal components as red, green, blue (64%, 29%, 7% of variance)"
    ]


@pytest.mark.parametrize("value", [0.0, 1000.1])
def test_patches_that_differ_by_rounding_only_are_grey(value: float) -> None:
    patches = np.full((3, 5, 7), value, np.float32)
    patches[::2] = np.nextafter(patches[::2], patches[::2] * 2)
    pixels = np.asarray(visualize.patch_pca(patches))[MARGIN : MARGIN + 100, MARGIN : MARGIN + 100]
    np.testing.assert_array_equal(np.unique(pixels), [128])


def test_tokens_of_one_or_two_dimensions_leave_components_grey() -> None:
    patches = np.random.default_rng(4).normal(size=(3, 3, 1))
    pixels = panel(visualize.patch_pca(patches), 0, 0, panel_side(1), panel_side(1))
    assert np.ptp(pixels[..., 0].astype(int)) == 255
    np.testing.assert_array_equal(np.unique(pixels[..., 1:]), [128])
