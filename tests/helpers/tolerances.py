"""How far two floating-point computations of the same number may be apart, and why.

Equalities that hold in real arithmetic (meshes, packing, accumulation, the official code) are
compared in float64 wherever the code can run in it: rounding is 1e-16 there, and a difference of
1e-12 can only be another formula. Float32 results are compared with float64 results of the same
formula, within a number of roundings. No bound is the error that was observed on one processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# Half a unit in the last place, relative: the error of one rounding to nearest.
ROUNDING = 2.0**-24
# Bound on two float64 computations of a number near 1: 9000 roundings of 2**-53. Sums over a few
# thousand terms differ by a few dozen of them, in whatever order they are taken.
EXACT = 1e-12
# Roundings of a gradient: it sums over the 16 x 77 tokens of a batch, and errors of random sign add
# up to the root of their number; eight standard deviations. It keeps 16 of float32's 24 bits.
SUM_OVER_TOKENS = 8 * (16 * 77) ** 0.5

# Roundings of the learning rate, relative to its peak: of the progress, which the angle contains pi
# times, of the cosine, and of the products.
SCHEDULE_ROUNDINGS = 8


def assert_exact(found: Any, expected: Any, name: str = "") -> None:
    """Float64 arrays are equal but for `EXACT` times the largest absolute value of `expected`."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.dtype == np.float64, f"{name} is {found.dtype}: computed in less than float64"
    scale = np.abs(expected).max(initial=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=EXACT * scale, err_msg=name)


def assert_rounded(found: Any, expected: Any, roundings: float, name: str = "") -> None:
    """A float32 array is within `roundings` of float32 of the float64 array `expected`.

    Errors are relative to the largest absolute value of `expected`, because terms that cancel in
    one element are as large as those that make up its neighbours.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    assert expected.dtype == np.float64, f"{name}: the reference is {expected.dtype}"
    scale = np.abs(expected).max(initial=0)
    bound = roundings * ROUNDING * scale
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=name)
