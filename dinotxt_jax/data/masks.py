"""Images with index masks for segmentation: the protocol, and an implementation for file pairs."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from dinotxt_jax.config.data import OFFICIAL
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import image_bytes
from dinotxt_jax.data.transforms import decode_image
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address

IGNORED = 255  # in a mask: the pixel has no class


class MaskSource(Protocol):
    """Images with a known class for every pixel."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """The class names, ordered by class index."""

    @property
    def background(self) -> int | None:
        """The class index for everything else, or None if there is no background class."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> str:
        """Returns the example name that reports use."""

    def load(self, index: int) -> tuple[Image.Image, Int[np.ndarray, "h w"]]:
        """Returns an upright RGB image and the mask, `IGNORED` where a pixel has no class."""


class MaskFiles:
    """A `MaskSource` for image files, each with a mask file that stores a class per pixel.

    Images are rotated upright according to the EXIF orientation, but not by the official decoder.
    Masks are used as stored, and must already be upright.
    """

    def __init__(
        self,
        root: Address,
        pairs: Sequence[tuple[str, str]],
        to_indices: Callable[[Shaped[np.ndarray, "h w *rgb"]], Int[np.ndarray, "h w"]],
        class_names: Sequence[str],
        background: int | None,
        decoder: str,
    ):
        """
        Args:
            root: folder that the paths in `pairs` are relative to.
            pairs: (image file, mask file).
            to_indices: maps mask pixels, as opened by PIL ([h w] indices or [h w 3] colours), to
                class indices, `IGNORED` where a pixel has no class. Raises `ValueError` with a
                message that completes a sentence starting with the mask name.
            class_names, background: see the attributes.
            decoder: "official" reads images as `decode_image` does with `official`.
        """
        if len(class_names) > IGNORED:
            raise UserError(
                f"there are {len(class_names)} class names, expected at most {IGNORED}, because "
                f"{IGNORED} in a mask means no class; name fewer."
            )
        self._root, self._pairs, self._to_indices = root, pairs, to_indices
        self._official = decoder == OFFICIAL
        self.class_names = tuple(class_names)
        self.background = background

    def __len__(self) -> int:
        return len(self._pairs)

    def key(self, index: int) -> str:
        """Returns the example name that reports use."""
        return self._pairs[index][0]

    def load(self, index: int) -> tuple[Image.Image, Int[np.ndarray, "h w"]]:
        """Returns an upright RGB image and the mask.

        Raises:
            UserError: a file cannot be read, the mask size differs from the image size, or a mask
                value belongs to no class.
        """
        image_name, mask_name = self._pairs[index]
        try:
            data = image_bytes(self._root / image_name, image_name)
            image = decode_image(data, official=self._official)
        except BadImageError as error:
            raise UserError(
                f"{image_name} cannot be read ({error}); repair or remove it."
            ) from error
        pixels = self._mask_pixels(image_name, mask_name)
        height, width = pixels.shape[:2]
        if (width, height) != image.size:
            turned = Image.open(io.BytesIO(data)).size == (width, height)
            raise UserError(
                f"{mask_name} has the shape {list(pixels.shape)}, but {image_name} has "
                f"{list(image.size[::-1])} pixels"
                + (
                    " once turned upright by its EXIF orientation; turn the mask upright, too, or "
                    "set data.decoder=official, which turns no image."
                    if turned
                    else ", expected as many; correct the pair."
                )
            )
        try:
            return image, self._to_indices(pixels)
        except ValueError as error:
            raise UserError(f"{mask_name} {error}.") from error

    def _mask_pixels(self, image_name: str, mask_name: str) -> Shaped[np.ndarray, "h w *rgb"]:
        try:
            content = image_bytes(self._root / mask_name, mask_name)
        except BadImageError as error:
            raise _unreadable(mask_name, image_name, error) from error
        try:
            return np.asarray(Image.open(io.BytesIO(content)))
        except MemoryError:
            raise
        except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, ...
            raise _unreadable(mask_name, image_name, error) from error


def _unreadable(mask_name: str, image_name: str, error: Exception) -> UserError:
    return UserError(
        f"{mask_name}, the mask for {image_name}, cannot be read ({error}); repair or remove the "
        "pair."
    )


def one_value_a_pixel(pixels: Shaped[np.ndarray, "h w *rgb"]) -> Int[np.ndarray, "h w"]:
    """Converts an index, palette, greyscale or 16-bit mask to int32.

    Raises:
        ValueError: the mask contains colours or fractions; the message completes a sentence that
            starts with the mask name.
    """
    if pixels.ndim != 2 or pixels.dtype.kind not in "biu":
        raise ValueError(
            f"has {pixels.dtype} pixels with the shape {list(pixels.shape)}, expected one integer "
            "class index per pixel; correct it"
        )
    return pixels.astype(np.int32)


def checked_indices(
    pixels: Shaped[np.ndarray, "h w *rgb"], classes: int, section: str
) -> Int[np.ndarray, "h w"]:
    """Converts an index mask to int32 and checks the indices.

    Raises:
        ValueError: not an index mask, or an index is neither a class nor `IGNORED`.
    """
    mask = one_value_a_pixel(pixels)
    outside = mask[(mask != IGNORED) & ((mask < 0) | (mask >= classes))]
    if outside.size:
        raise ValueError(
            f"holds the index {outside.min()}, but there are {classes} classes (0 to "
            f"{classes - 1}, {IGNORED} for none); correct it, or {section}.classes"
        )
    return mask
