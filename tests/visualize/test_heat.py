"""Heat maps of classes and of a phrase."""

from __future__ import annotations

import numpy as np
from pictures import WHITE, Drawn, assert_inside, luma, panel, words

from dinotxt_jax import visualize
from dinotxt_jax.visualize.colours import heat_colours
from dinotxt_jax.visualize.page import GAP, TEXT, panel_side
from dinotxt_jax.visualize.text import numbers_between


def test_heat_gets_lighter_as_the_similarity_grows() -> None:
    ramp = np.linspace(-0.1, 0.3, 24)[None].repeat(2, axis=0)
    picture = visualize.similarity_map(np.full((40, 80, 3), 128, np.uint8), ramp, "a phrase")
    side = panel_side(2)
    heat = panel(picture, 1, TEXT * 3 // 2 * 5 // 4 + GAP, side, side // 2)
    across = luma(heat[100])
    assert np.all(np.diff(across) > -0.8)  # the last of 8 bits
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
    picture = visualize.heat_maps(photo, scores, ["low", "high", "middle"], score_name="logit")
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
