"""Class colours and the colours of heat maps."""

from __future__ import annotations

import numpy as np
import pytest

from dinotxt_jax.data.texts import read_list
from dinotxt_jax.visualize.colours import (
    _distances,
    _linear,
    _oklab,
    class_colours,
    heat_colours,
)
from dinotxt_jax.visualize.known_colours import known_colour


def numbered(count: int) -> list[str]:
    return [f"class {number}" for number in range(count)]


def test_the_colour_of_a_class_does_not_depend_on_the_class_count() -> None:
    many = class_colours(numbered(512))
    np.testing.assert_array_equal(class_colours(numbered(7)), many[:7])
    assert len(np.unique(many, axis=0)) == 512
    np.testing.assert_array_equal(class_colours(numbered(520))[512:], many[:8])


def test_neighbouring_classes_differ_well_and_the_first_ones_for_the_colour_blind() -> None:
    lab = _oklab(_linear(class_colours(numbered(400))))
    assert np.linalg.norm(np.diff(lab, axis=0), axis=1).min() > 0.05
    # Machado et al. 2009, no green cones.
    deuteranopia = np.array(
        [
            [0.367322, 0.860646, -0.227968],
            [0.280085, 0.672501, 0.047413],
            [-0.011820, 0.042940, 0.968881],
        ]
    )
    perceived = _oklab(np.clip(_linear(class_colours(numbered(12))) @ deuteranopia.T, 0, 1))
    apart = np.linalg.norm(perceived[:, None] - perceived, axis=-1) + np.eye(12)
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


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("sky", True),
        ("sky-other", True),
        ("the blue Sky", True),
        ("clouds", True),
        ("beaches", True),
        ("palm tree", True),
        ("tree house", True),  # a house
        ("sea, ocean", True),
        ("a red car", True),
        ("orange juice", True),
        ("seat", False),
        ("snowboard", False),
        ("sea lion", False),
        ("fire hydrant", False),
        ("", False),
        ("42", False),
        ("空", False),
    ],
)
def test_a_known_colour_follows_the_last_word_of_a_name(name: str, known: bool) -> None:
    assert (known_colour(name) is not None) == known
    assert known_colour("tree house") == known_colour("house") != known_colour("tree")


def test_sky_grass_water_and_skin_look_as_people_expect() -> None:
    names = ["dog", "sky", "grass", "water", "skin", "tree", "snow", "road", "car"]
    colours = dict(zip(names, class_colours(names).astype(int).tolist(), strict=True))
    for blue in ("sky", "water"):
        assert np.argmax(colours[blue]) == 2
    for green in ("grass", "tree"):
        assert np.argmax(colours[green]) == 1
    red, green, blue = colours["skin"]
    assert red > green > blue > 100
    assert min(colours["snow"]) > 220
    assert np.ptp(colours["road"]) < 20
    assert sum(colours["sky"]) > sum(colours["water"])
    assert sum(colours["grass"]) > sum(colours["tree"])


def test_a_name_with_a_colour_has_it_unless_the_thing_says_more() -> None:
    names = ["red car", "blue car", "green car", "blue grass", "yellow cab"]
    red, blue, green, grass, yellow = class_colours(names).astype(int)
    assert [colour.argmax() for colour in (red, blue, green, grass)] == [0, 2, 1, 1]
    assert min(yellow[:2]) > 200
    assert yellow[2] < 100


def test_other_classes_differ_from_known_colours() -> None:
    names = ["dog", "sky", "grass", "cat", "tree", "water", "cow", "skin"]
    lab = _oklab(_linear(class_colours(names)))
    known = [known_colour(name) is not None for name in names]
    apart = np.linalg.norm(lab[:, None] - lab, axis=-1)[known][:, ~np.array(known)]
    assert apart.min() >= 0.12


@pytest.mark.parametrize("listed", ["ade20k_150", "coco_stuff_91", "context_59", "msrc_v2"])
def test_known_colours_keep_classes_as_distinct(listed: str) -> None:
    names = read_list(listed, "classes")
    diagonal = np.eye(len(names))
    colours, without = class_colours(names), class_colours(numbered(len(names)))
    closest = (_distances(colours, colours) + diagonal).min()
    assert closest > 0.8 * (_distances(without, without) + diagonal).min()
    np.testing.assert_array_equal(colours, class_colours(list(names)))


def test_classes_with_one_known_colour_get_different_shades() -> None:
    colours = class_colours(["tree", "palm tree", "forest", "apple tree"]).astype(int)
    assert len(np.unique(colours, axis=0)) == 4
    assert (colours.argmax(axis=1) == 1).all()
    # More classes than shades: the remaining classes get any colour.
    assert len(np.unique(class_colours(["sky"] * 60), axis=0)) == 60
