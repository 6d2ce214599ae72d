"""Resampling against values printed by PyTorch's `interpolate`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dinotxt_jax.inference.interpolation import linear_taps, resampled
from dinotxt_jax.models.positions import cubic_weights

# PyTorch computes positions in float32: up to 24 samples, each off by 1e-6.
TOLERANCE = 2.4e-5


@pytest.fixture(scope="module")
def expected() -> dict[str, np.ndarray]:
    return dict(np.load(Path(__file__).parent.parent / "goldens/interpolation/interpolate.npz"))


@pytest.mark.parametrize("number", range(5))
def test_maps_are_resampled_as_pytorch_does_bilinearly(number: int, expected: dict) -> None:
    values, resampled_values = (expected[f"bilinear/{number}/{side}"] for side in ("in", "out"))
    taps = [
        linear_taps(s, t) for s, t in zip(values.shape[:2], resampled_values.shape[:2], strict=True)
    ]
    np.testing.assert_allclose(resampled(values, *taps), resampled_values, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("number", range(5))
def test_windows_are_stretched_as_pytorch_does_bicubically(number: int, expected: dict) -> None:
    values, resampled_values = (expected[f"bicubic/{number}/{side}"] for side in ("in", "out"))
    rows, columns = (
        cubic_weights(s, t)
        for s, t in zip(values.shape[:2], resampled_values.shape[:2], strict=True)
    )
    actual = np.einsum("in,jm,nmc->ijc", rows, columns, values)
    np.testing.assert_allclose(actual, resampled_values, rtol=0, atol=TOLERANCE)


def test_padding_repeats_the_last_sample() -> None:
    short, long = linear_taps(5, 11), linear_taps(5, 11, 16)
    for whole, part in zip(long, short, strict=True):
        np.testing.assert_array_equal(whole[:11], part)
        np.testing.assert_array_equal(whole[11:], np.repeat(part[-1:], 5))
