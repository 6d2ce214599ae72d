"""Which pieces of an image are looked at: the geometry of the segmentation protocols."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinotxt_jax.config import SegmentationConfig, check_image_size
from dinotxt_jax.errors import UserError

_MOST_SCORES = 2**31  # float32: 8 GiB


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


def check_protocol(config: SegmentationConfig, patch: int, key: str) -> None:
    """Raises `UserError` for sizes that patches of `patch` pixels do not allow.

    Args:
        config: the protocol, as `config.check` accepts it.
        patch: side of a patch, pixels.
        key: the key of the protocol in errors.
    """
    if config.protocol == "whole":
        check_image_size(config.image_size, patch, f"{key}.image_size")
    if config.protocol == "highres" and config.stride < patch:
        raise UserError(
            f"{key}.stride is {config.stride}, expected at least a patch of the backbone ({patch} "
            f"pixels); set it to {patch} or more."
        )


def levels(
    image: Image.Image, config: SegmentationConfig, patch: int, channels: int
) -> list[Level]:
    """The sizes and windows of an RGB image under a protocol.

    Args:
        image: RGB.
        config: the protocol.
        patch: side of a patch, pixels.
        channels: what each place of the result holds: scores of so many texts (slide), or a
            feature of so many dimensions (highres).

    Raises:
        UserError: the image is so narrow that the result would not fit into 8 GiB.
    """
    if config.protocol == "whole":
        side = config.image_size
        return [Level(_resized(image, side, side), [(0, 0)], side)]
    if config.protocol == "slide":
        height, width = _sides(image, config.short_side, 1)
        _check_size(image, height, width, height * width * channels)
        return [_windowed(image, height, width, config.window, config.stride)]
    window, stride = (_to_patches(side, patch) for side in (config.window, config.stride))
    sizes = [_sides(image, short, patch) for short in config.scales]
    height, width = max(sizes)
    _check_size(image, height, width, height * width // patch**2 * channels)
    return [_windowed(image, *size, window, stride) for size in sizes]


def in_whole_patches(image: Image.Image, short: int, patch: int) -> UInt8[np.ndarray, "h w 3"]:
    """An RGB image with that short side, both sides rounded to whole patches.

    Raises:
        UserError: the image is so narrow that attention over it would not fit into 8 GiB.
    """
    height, width = _sides(image, short, patch)
    _check_size(image, height, width, (height * width // patch**2) ** 2)
    return _resized(image, height, width)


def _check_size(image: Image.Image, height: int, width: int, numbers: int) -> None:
    if numbers > _MOST_SCORES:
        raise UserError(
            f"an image of {image.width} x {image.height} pixels would be resized to {width} x "
            f"{height}, and what is computed of it not fit into memory; crop it, or take a smaller "
            "size."
        )


def _windowed(image: Image.Image, height: int, width: int, window: int, stride: int) -> Level:
    tops, lefts = (window_starts(side, window, stride) for side in (height, width))
    starts = [(top, left) for top in tops for left in lefts]
    return Level(_resized(image, height, width), starts, window)


def _sides(image: Image.Image, short: int, patch: int) -> tuple[int, int]:
    """(height, width) with that short side, the long one rounded down; both whole patches."""
    least = min(image.size)
    height, width = (max(side * short // least, short) for side in image.size[::-1])
    return _to_patches(height, patch), _to_patches(width, patch)


def _to_patches(side: int, patch: int) -> int:
    """The multiple of the patch size that is nearest."""
    return max((side + patch // 2) // patch, 1) * patch


def _resized(image: Image.Image, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side: every `stride`, the last one shifted inward."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [min(number * stride, max(side - window, 0)) for number in range(count)]
