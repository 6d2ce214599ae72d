"""Class colours and the colours of heat maps."""

from __future__ import annotations

import numpy as np

from dinotxt_jax.visualize.colours import _linear, _oklab, class_colours, heat_colours


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
