"""Resizes images as a protocol requires, and places the square windows that cover them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinotxt_jax.errors import UserError

_MOST_NUMBERS = 2**31  # float32: 8 GiB


class Level(NamedTuple):
    """An image at one size, and the square windows to encode.

    Attributes:
        pixels: uint8 [h w 3].
        starts: (top, left) of each window, pixels.
        side: window side, pixels.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    starts: list[tuple[int, int]]
    side: int


def check_fits(image: Image.Image, short: int, channels: int, cell: int = 1) -> None:
    """Raises `UserError` if an image is so narrow that the result would not fit into 8 GiB.

    Args:
        image: RGB.
        short: short side after resizing, pixels.
        channels: number of float32 values per cell in the result.
        cell: cell side, pixels.
    """
    height, width = _sides(image, short, cell)
    _check_size(image, height, width, height * width // cell**2 * channels)


def windowed(image: Image.Image, short: int, window: int, stride: int, cell: int = 1) -> Level:
    """Resizes to short side `short`, in whole cells, and places a window every `stride` pixels."""
    height, width = _sides(image, short, cell)
    tops, lefts = (window_starts(side, window, stride) for side in (height, width))
    starts = [(top, left) for top in tops for left in lefts]
    return Level(resized(image, height, width), starts, window)


def in_whole_patches(image: Image.Image, short: int, patch: int) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an RGB image to short side `short`, with both sides rounded to whole patches.

    Raises:
        UserError: the image is so narrow that attention over it would not fit into 8 GiB.
    """
    height, width = _sides(image, short, patch)
    _check_size(image, height, width, (height * width // patch**2) ** 2)
    return resized(image, height, width)


def _check_size(image: Image.Image, height: int, width: int, numbers: int) -> None:
    if numbers > _MOST_NUMBERS:
        raise UserError(
            f"an image of {image.width} x {image.height} pixels would be resized to {width} x "
            f"{height}, and the results would not fit into memory; crop it, or take a smaller "
            "size."
        )


def _sides(image: Image.Image, short: int, cell: int) -> tuple[int, int]:
    """Returns (height, width) with short side `short`, long side rounded down; both whole cells."""
    least = min(image.size)
    height, width = (max(side * short // least, short) for side in image.size[::-1])
    return to_whole(height, cell), to_whole(width, cell)


def to_whole(side: int, cell: int) -> int:
    """Returns the multiple of `cell` that is nearest to `side`, at least one cell."""
    return max((side + cell // 2) // cell, 1) * cell


def resized(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an RGB image to `height` x `width` with bicubic interpolation."""
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Returns window starts along one side: every `stride`, with the last one shifted inward."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [min(number * stride, max(side - window, 0)) for number in range(count)]
