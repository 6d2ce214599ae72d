"""Reads images from files, bytes, arrays and PIL images."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence

import einops
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.resizing import prepare_image
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError
from dinotxt_jax.models.vit import PatchBatch
from dinotxt_jax.storage.addresses import to_address
from dinotxt_jax.storage.faults import is_passing
from dinotxt_jax.storage.preprocessing import Preprocessing
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
    name = _name(image)
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


def prepared_image(
    image: ImageLike, preprocessing: Preprocessing, patch_size: int
) -> UInt8[np.ndarray, "h w 3"]:
    """Reads an image and resizes it as a model expects (`data.resizing.prepare_image`).

    Raises:
        UserError: the image cannot be read, or is too wide or too tall for the model.
    """
    try:
        return prepare_image(read_image(image), preprocessing, patch_size)
    except BadImageError as error:
        raise UserError(f"{_name(image)} cannot be used ({error}); crop it.") from error


def _name(image: ImageLike) -> str:
    if isinstance(image, (str, os.PathLike)):
        return str(image)
    if isinstance(image, np.ndarray):
        return f"an image ({image.dtype}{list(image.shape)})"
    return f"an image ({type(image).__name__})"


def stacks(
    images: Iterable[UInt8[np.ndarray, "h w 3"]], size: int
) -> Iterator[UInt8[np.ndarray, "b h w 3"]]:
    """Yields prepared images in batches of up to `size`, in order, each of one shape.

    All images have the same shape unless the model keeps their aspect ratio (naflex).
    """
    for _, same in itertools.groupby(images, lambda image: image.shape):
        while batch := list(itertools.islice(same, size)):
            yield np.stack(batch)


def patch_batches(
    images: Iterable[UInt8[np.ndarray, "_ _ 3"]], size: int, patch_size: int, length: int
) -> Iterator[PatchBatch]:
    """Yields batches of up to `size` images of any sizes, cut into patches and padded.

    Only one shape is compiled, whatever the aspect ratios.
    """
    images = iter(images)
    while batch := list(itertools.islice(images, size)):
        yield patch_batch(batch, patch_size, length)


def patch_batch(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]], patch_size: int, length: int
) -> PatchBatch:
    """Cuts images whose sides are whole patches into patches, and pads them to `length`."""
    patches = np.zeros((len(images), length, patch_size * patch_size * 3), np.uint8)
    grids = np.zeros((len(images), 2), np.int32)
    for row, image in enumerate(images):
        cut = einops.rearrange(
            image, "(gh ph) (gw pw) c -> (gh gw) (ph pw c)", ph=patch_size, pw=patch_size
        )
        patches[row, : len(cut)] = cut
        grids[row] = image.shape[0] // patch_size, image.shape[1] // patch_size
    return PatchBatch(patches, grids)


def image_sequence(images: ImageLike | Iterable[ImageLike]) -> Iterable[ImageLike]:
    """Returns one image, or an array with several [n h w c], as a sequence of images."""
    if isinstance(images, (Image.Image, bytes, str, os.PathLike)):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim < 4:
        return [images]
    return images
