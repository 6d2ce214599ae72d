"""Bounds on the difference between two floating-point computations of a number, with reasons.

Equalities that hold in real arithmetic (meshes, packing, accumulation, the official code) are
compared in float64 wherever the code can run in float64: rounding is 1e-16 there, and a difference
of 1e-12 can only come from a different formula. Float32 results are compared with float64 results
from the same formula, within a number of roundings. No bound is an error observed on one processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Half a unit in the last place, relative: the error from one rounding to nearest.
ROUNDING = 2.0**-24
# Bound for two float64 computations of a number near 1: 9000 roundings at 2**-53. Sums over a few
# thousand terms differ by a few dozen roundings, in any summation order.
EXACT = 1e-12
# Roundings for a gradient: it sums over the 16 x 77 tokens in a batch, and errors with random sign
# add up to the square root of that number; eight standard deviations. This keeps 16 of float32's
# 24 bits.
SUM_OVER_TOKENS = 8 * (16 * 77) ** 0.5
# Roundings between two float32 programs for one formula: the tests' models compute about forty sums
# over 64 features in sequence, and errors with random sign add up to (40 * 64) ** 0.5 = 51 in each
# program. This keeps 17 of float32's 24 bits; another mask, weight or order changes the first few.
TWO_PROGRAMS = 128
# Bound between our float32 outputs and those of the official code or of another library: ten times
# the difference between the official model's float32 and float64 outputs.
FEATURES = 5e-5
# The same for features with unit norm.
NORMALIZED = 5e-6
# The same as TWO_PROGRAMS for a loss, which averages over rows.
SAME_LOSS = 64 * ROUNDING

# Roundings for the learning rate, relative to the peak: from the progress, which enters the angle
# multiplied by pi, from the cosine, and from the products.
SCHEDULE_ROUNDINGS = 8


def assert_exact(actual: Any, expected: Any, name: str = "") -> None:
    """Asserts that float64 arrays agree within `EXACT` times the largest |`expected`|."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == np.float64, f"{name} is {actual.dtype}: computed in less than float64"
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=EXACT * scale, err_msg=name)


def assert_rounded(actual: Any, expected: Any, roundings: float, name: str = "") -> None:
    """Asserts that a float32 array is within `roundings` of the float64 array `expected`.

    Errors are relative to the largest absolute value in `expected`, because terms that cancel in
    one element are as large as the terms in neighbouring elements.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert expected.dtype == np.float64, f"{name}: the reference is {expected.dtype}"
    scale = np.abs(expected).max(initial=0)
    bound = roundings * ROUNDING * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=name)


def assert_same(actual: Any, expected: Any, name: str = "") -> None:
    """Asserts that float32 results of two programs agree within `TWO_PROGRAMS` roundings.

    Errors are relative to the largest |`expected`|, as in `assert_rounded`.
    """
    expected = np.asarray(expected)
    scale = np.abs(expected).max(initial=0)
    bound = TWO_PROGRAMS * ROUNDING * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=name)
