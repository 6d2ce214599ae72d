"""Images at the sizes of a protocol, and the square windows that cover them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.errors import UserError

_MOST_NUMBERS = 2**31  # float32: 8 GiB


class Level(NamedTuple):
    """An image at one size, and the square windows to look at.

    Attributes:
        pixels: uint8 [h w 3].
        starts: (top, left) of each window, pixels.
        side: of a window, pixels.
    """

    pixels: UInt8[np.ndarray, "h w 3"]
    starts: list[tuple[int, int]]
    side: int


def check_fits(image: Image.Image, short: int, channels: int, cell: int = 1) -> None:
    """Raises `UserError` if an image is so narrow that its result would not fit into 8 GiB.

    Args:
        image: RGB.
        short: short side of the resized image, pixels.
        channels: float32 numbers that the result holds for every cell.
        cell: side of a cell, pixels.
    """
    height, width = _sides(image, short, cell)
    _check_size(image, height, width, height * width // cell**2 * channels)


def windowed(image: Image.Image, short: int, window: int, stride: int, cell: int = 1) -> Level:
    """An image with that short side, rounded to whole cells, and windows every `stride` pixels."""
    height, width = _sides(image, short, cell)
    tops, lefts = (window_starts(side, window, stride) for side in (height, width))
    starts = [(top, left) for top in tops for left in lefts]
    return Level(resized(image, height, width), starts, window)


def check_windows(config: SegmentationConfig, name: str, shorts: Sequence[int], where: str) -> None:
    """Raises `UserError`, beginning with `where`, unless windows cover every resized image.

    Args:
        config: holds window and stride.
        name, shorts: the setting that holds the short sides, and its value, pixels.
        where: the task, for the message.
    """
    if not shorts or not 0 < config.stride <= config.window <= min(shorts):
        raise UserError(
            f"{where} has stride={config.stride}, window={config.window} and {name}="
            f"{', '.join(map(str, shorts)) or '()'}, expected 0 < stride <= window <= {name}; "
            "correct them."
        )


def in_whole_patches(image: Image.Image, short: int, patch: int) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image with that short side, both sides rounded to whole patches.

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
            f"{height}, and what is computed of it not fit into memory; crop it, or take a smaller "
            "size."
        )


def _sides(image: Image.Image, short: int, cell: int) -> tuple[int, int]:
    """(height, width) with that short side, the long one rounded down; both whole cells."""
    least = min(image.size)
    height, width = (max(side * short // least, short) for side in image.size[::-1])
    return to_whole(height, cell), to_whole(width, cell)


def to_whole(side: int, cell: int) -> int:
    """The multiple of `cell` that is nearest to a side, at least one cell."""
    return max((side + cell // 2) // cell, 1) * cell


def resized(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image of that size, bicubically."""
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side: every `stride`, the last one shifted inward."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [min(number * stride, max(side - window, 0)) for number in range(count)]
