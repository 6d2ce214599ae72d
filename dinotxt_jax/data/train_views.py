"""Makes training views in two stages: decoding, then crop and resize."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinotxt_jax.config.data import FAST, OFFICIAL
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.jpeg_crops import decode_jpeg_crop, resize_crop
from dinotxt_jax.data.transforms import TrainTransform, decode_image, is_random

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig
    from dinotxt_jax.data.examples import Example
    from dinotxt_jax.data.order import Draw


class Decoded(NamedTuple):
    """A decoded image before the resize.

    Attributes:
        pixels: the crop (fast decoder) or the whole image (exact decoder).
        rng: the generator for the remaining random choices.
    """

    pixels: UInt8[np.ndarray, "h w 3"] | Image.Image
    rng: np.random.Generator


class TrainViews:
    """Makes training views with the decoder that `config.decoder` names.

    The fast decoder handles random crops from undamaged JPEG files; everything else falls back to
    the exact decoder.
    """

    def __init__(self, config: DataConfig):
        self._config = config
        self._transform = TrainTransform(config)
        self._is_fast = config.decoder == FAST and is_random(config)

    def decode(self, example: Example, draw: Draw) -> Decoded:
        """Decodes an example's image.

        Raises:
            BadImageError: the image cannot be decoded; the message names the example.
        """
        if self._is_fast:
            rng = draw.rng()
            crop = decode_jpeg_crop(example.image, self._config, rng)
            if crop is not None:
                return Decoded(crop, rng)
        return Decoded(decoded_image(example, self._config), draw.rng())

    def finish(self, decoded: Decoded) -> UInt8[np.ndarray, "s s 3"]:
        """Crops, resizes and randomly flips a decoded image."""
        pixels, rng = decoded
        if isinstance(pixels, Image.Image):
            return self._transform(pixels, rng)
        flipped = rng.random() < self._config.flip_probability
        return resize_crop(pixels, self._config.image_size, flipped)


def decoded_image(example: Example, config: DataConfig) -> Image.Image:
    """Decodes the whole image of an example as `config.decoder` and `config.max_pixels` say.

    Raises:
        BadImageError: the image does not decode; the message names the example.
    """
    try:
        official = config.decoder == OFFICIAL
        return decode_image(example.image, config.max_pixels, official=official)
    except BadImageError as error:
        raise BadImageError(f"{example.key} does not decode: {error}") from error
