"""Reads images from files, bytes, arrays and PIL images."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np
from PIL import Image

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import to_address
from dinotxt_jax.storage.faults import is_passing
from dinotxt_jax.storage.retries import retried

ImageLike = Image.Image | np.ndarray | bytes | str | os.PathLike[str]


def read_image(image: ImageLike) -> Image.Image:
    """Reads an image as upright 8-bit RGB (conversions: see `data.transforms.decode_image`).

    Args:
        image: a path, file bytes, a PIL image, or an array uint8 [h w], [h w 3] or [h w 4] or
            uint16 [h w].

    Raises:
        UserError: the image cannot be read.
    """
    name = str(image) if isinstance(image, (str, os.PathLike)) else f"an image ({_kind(image)})"
    try:
        if isinstance(image, (str, os.PathLike)):
            return decode_image(retried(to_address(image).read_bytes))
        return decode_image(image)
    except OSError as error:
        if is_passing(error):
            raise
        raise UserError(f"{name} cannot be read ({error.strerror}); correct the path.") from error
    except ValueError as error:  # a zero byte, or half of a surrogate pair
        raise UserError(f"{name!a} is no path ({error}); correct it.") from error
    except BadImageError as error:
        raise UserError(
            f"{name} cannot be read ({error}), expected an image such as a JPEG or PNG file; "
            "convert or replace it."
        ) from error


def _kind(image: object) -> str:
    if isinstance(image, np.ndarray):
        return f"{image.dtype}{list(image.shape)}"
    return type(image).__name__


def image_sequence(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Returns one image, or an array with several [n h w c], as a sequence of images."""
    if isinstance(images, (Image.Image, bytes, str, os.PathLike)):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim < 4:
        return [images]
    return images
