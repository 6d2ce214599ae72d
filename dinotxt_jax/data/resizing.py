"""Resizes images of any size to model inputs for evaluation, by rules with names.

The names are `config.data.RESIZE_RULES`; `model.json` and `config.data.augmentation` use them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from PIL import Image

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.storage.preprocessing import Preprocessing

_BICUBIC, _BILINEAR = Image.Resampling.BICUBIC, Image.Resampling.BILINEAR
# The bisection for NaFlex: the range of scales, and the interval width at which it stops.
_LOWEST_SCALE, _HIGHEST_SCALE, _SCALE_WIDTH = 1e-6, 100.0, 1e-5


def prepare_image(
    image: Image.Image, preprocessing: Preprocessing, patch_size: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Resizes an RGB image by a model's rule, for evaluation.

    Args:
        image: RGB, any size.
        preprocessing: names the rule and its sizes.
        patch_size: side of the backbone's patches, pixels; used by naflex.

    Returns:
        A square with the side `preprocessing.crop`; for naflex, both sides are multiples of
        `patch_size`.

    Raises:
        BadImageError: the image is too wide or too tall for naflex.
    """
    rule = preprocessing.rule
    if rule in SQUARE_VIEWS:
        return square_view(image, rule, preprocessing.resize, preprocessing.crop)
    height, width = naflex_size(image.height, image.width, patch_size, preprocessing.max_patches)
    return np.asarray(image.resize((width, height), _BILINEAR))


def square_view(
    image: Image.Image, rule: str, resize: int, size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Resizes an RGB image to size x size by a rule in `SQUARE_VIEWS`.

    `resize` is the short side before cropping, for center_crop.
    """
    return np.asarray(SQUARE_VIEWS[rule](image, resize, size))


def center_crop(image: Image.Image, resize: int, size: int) -> Image.Image:
    """Resizes the short side to `resize` (long side rounded down), then center-crops size x size.

    The arithmetic matches torchvision's `Resize(resize)` and `CenterCrop(size)`.
    """
    short, long = sorted(image.size)
    long = int(resize * long / short)
    shape = (resize, long) if image.width <= image.height else (long, resize)
    image = image.resize(shape, _BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def squash(image: Image.Image, size: int, filter: Image.Resampling = _BICUBIC) -> Image.Image:
    """Resizes the whole image to size x size, antialiased, for any aspect ratio."""
    return image.resize((size, size), filter)


def squash_plain(image: Image.Image, size: int) -> Image.Image:
    """Resizes the whole image to size x size, bilinear without antialiasing; truncates to uint8.

    This equals `tf.image.resize(..., antialias=False)` followed by a cast to uint8, as in
    big_vision's SigLIP demo, with the same float32 arithmetic: each new pixel interpolates the four
    old pixels around its centre, regardless of how many old pixels it covers.
    """
    pixels = np.asarray(image, np.float32)
    (top, bottom, down), (left, right, across) = (
        _neighbours(count, size) for count in pixels.shape[:2]
    )
    down, across = down[:, None, None], across[:, None]  # [size 1 1], [size 1]
    upper, lower = pixels[top], pixels[bottom]  # [size w 3]
    upper = upper[:, left] + (upper[:, right] - upper[:, left]) * across  # [size size 3]
    lower = lower[:, left] + (lower[:, right] - lower[:, left]) * across
    return Image.fromarray((upper + (lower - upper) * down).astype(np.uint8))


def _neighbours(
    count: int, size: int
) -> tuple[Int64[np.ndarray, " size"], Int64[np.ndarray, " size"], Float32[np.ndarray, " size"]]:
    """Returns both old neighbours for each new pixel along an axis, and the second's weight.

    Args:
        count: number of old pixels along the axis.
        size: number of new pixels along the axis.
    """
    scale = np.float32(count) / np.float32(size)
    centre = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    below = np.floor(centre)
    first = np.maximum(below, 0).astype(np.int64)
    second = np.minimum(np.ceil(centre), count - 1).astype(np.int64)
    return first, second, centre - below


SQUARE_VIEWS: dict[str, Callable[[Image.Image, int, int], Image.Image]] = {
    "center_crop": center_crop,
    "squash": lambda image, resize, size: squash(image, size),
    "squash_bilinear": lambda image, resize, size: squash(image, size, _BILINEAR),
    "squash_bilinear_plain": lambda image, resize, size: squash_plain(image, size),
}
"""The rules that give a square: functions of an image, the short side, and the square's side."""


def naflex_size(height: int, width: int, patch_size: int, max_patches: int) -> tuple[int, int]:
    """Returns the size to which SigLIP 2 NaFlex resizes an image, keeping the aspect ratio.

    The scale is the largest (within 1e-5, and at most 100) for which the image covers at most
    `max_patches` patches. Both sides are rounded up to multiples of `patch_size`.

    Args:
        height, width: image size in pixels.
        patch_size: patch side in pixels.
        max_patches: maximum number of patches.

    Returns:
        Height and width, pixels.

    Raises:
        BadImageError: the short side would be shorter than a patch.
    """
    needed = math.ceil(max(height, width) / min(height, width))
    if needed > max_patches:
        shape, line = ("wide", "row") if width > height else ("tall", "column")
        raise BadImageError(
            f"{width} x {height} pixels are too {shape}: a single {line} of square patches would "
            f"have {needed}, the model takes at most {max_patches}"
        )

    def grid(scale: float) -> tuple[int, int]:
        rows, columns = (max(1, math.ceil(side * scale / patch_size)) for side in (height, width))
        return rows, columns

    low, high = _LOWEST_SCALE, _HIGHEST_SCALE
    while high - low >= _SCALE_WIDTH:
        scale = (low + high) / 2
        if math.prod(grid(scale)) <= max_patches:
            low = scale
        else:
            high = scale
    rows, columns = grid(low)
    return rows * patch_size, columns * patch_size
