"""Image transforms: RGB decoding, crops, resizes and flips in PIL, and array normalisation.

All transforms before `normalize` use 8-bit RGB. Pipelines transfer uint8 and normalise on the
device, because uint8 takes a quarter of the float32 bytes.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from dinotxt_jax.config.data import EXACT, FAST
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.resizing import square_view

if TYPE_CHECKING:
    import jax

    from dinotxt_jax.config import DataConfig

_CROP_TRIES = 10
_BICUBIC = Image.Resampling.BICUBIC
EXIF_ORIENTATION = 0x0112
_TURNS: dict[object, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations for which width and height are swapped.
_EXCHANGE = (5, 6, 7, 8)

ArrayT = TypeVar("ArrayT", np.ndarray, "jax.Array")


def decode_image(
    image: bytes | np.ndarray | Image.Image,
    max_pixels: int | None = None,
    *,
    official: bool = False,
) -> Image.Image:
    """Converts an encoded image, a pixel array or a PIL image to upright 8-bit RGB.

    The EXIF orientation is applied. Transparent pixels are composited over white. 16-bit greyscale
    is scaled to 8 bits (PIL's own conversion would clip it to white). PIL converts CMYK, palettes
    and all other modes. Only the first frame in an animation is used.

    Args:
        image: image file bytes, or uint8 [h w] or [h w c] with c 1, 3 or 4, or uint16 [h w], or
            an image that PIL opened.
        max_pixels: limit for encoded images, which may be a thousand times larger in memory than
            in the file; None for PIL's limit. A larger JPEG is decoded at a half, a quarter or an
            eighth of the size.
        official: convert as the official evaluations of most models do, with PIL's
            `convert("RGB")` alone: images are not turned, and transparent pixels have the colour
            that the file stores for them.

    Raises:
        BadImageError: the input is not an image, is truncated, has too many pixels, or has pixels
            without a defined range.
    """
    with _bad_image_errors(image):
        if isinstance(image, np.ndarray):
            opened = _from_array(image)
        elif isinstance(image, Image.Image):
            opened = image
        else:
            opened = Image.open(io.BytesIO(image))
            if max_pixels is not None:
                _limit_size(opened, max_pixels)
        return opened.convert("RGB") if official else _to_rgb(_upright(opened))


def open_image(image: bytes, max_pixels: int) -> tuple[Image.Image, tuple[int, int]]:
    """Reads the header of an image file.

    Args:
        image: the file.
        max_pixels: limit as in `decode_image`.

    Returns:
        The undecoded image for `decode_image`, and its upright width and height (after applying
        the EXIF orientation).

    Raises:
        BadImageError: the file does not begin like an image, or has too many pixels.
    """
    with _bad_image_errors(image):
        opened = Image.open(io.BytesIO(image))
        width, height = opened.size
        _limit_size(opened, max_pixels)  # before `getexif`, which decodes a PNG
        turned = opened.getexif().get(EXIF_ORIENTATION) in _EXCHANGE
    return opened, (height, width) if turned else (width, height)


@contextlib.contextmanager
def _bad_image_errors(image: object) -> Iterator[None]:
    """Converts PIL errors to `BadImageError`."""
    try:
        yield
    except MemoryError:
        raise
    except UnidentifiedImageError as error:
        raise BadImageError(_unidentified(image)) from error
    except Exception as error:  # PIL's decoders raise OSError, SyntaxError, struct.error, ...
        raise BadImageError(f"{type(error).__name__}: {error}") from error


def image_size(image: bytes | np.ndarray) -> tuple[int, int]:
    """Returns width and height in pixels, as stored (before any EXIF rotation), without decoding.

    Raises:
        BadImageError: the file does not begin like an image.
    """
    if isinstance(image, np.ndarray):
        return image.shape[1], image.shape[0]
    with _bad_image_errors(image):
        return Image.open(io.BytesIO(image)).size


def _limit_size(image: Image.Image, max_pixels: int) -> None:
    """Sets a large JPEG's decoding scale to meet the limit; raises an error for other formats."""
    width, height = image.size
    for factor in (1, 2, 4, 8) if image.format == "JPEG" else (1,):
        if (width // factor) * (height // factor) <= max_pixels:
            if factor > 1:
                image.draft(None, (width // factor, height // factor))
            return
    raise ValueError(
        f"{width} x {height} pixels are more than the limit of {max_pixels} (data.max_pixels)"
    )


def _unidentified(image: object) -> str:
    """Explains, from the first bytes, why PIL does not recognise the image."""
    if not image:
        return "the file is empty"
    if not isinstance(image, bytes):
        return "not an image in a format that PIL knows"
    if image[4:8] == b"ftyp":  # HEIC and video container; bytes 8 to 12 name the format
        kind = image[8:12].decode("ascii", "replace").strip()
        return f"a file in the format {kind}, which is not supported"
    if image[:256].isascii() and image[:256].decode("ascii").replace("\n", "").isprintable():
        return "text, not an image"
    return "not an image in a format that PIL knows"


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    # ImageOps.exif_transpose also rewrites the EXIF block, and fails if a camera corrupted it.
    turn = _TURNS.get(image.getexif().get(EXIF_ORIENTATION))
    return image if turn is None else image.transpose(turn)


def _from_array(pixels: np.ndarray) -> Image.Image:
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    grey = pixels.ndim == 2 and pixels.dtype in (np.uint8, np.uint16)
    colour = pixels.ndim == 3 and pixels.shape[-1] in (3, 4) and pixels.dtype == np.uint8
    if pixels.size == 0 or not (grey or colour):
        raise ValueError(f"an array {pixels.dtype}{list(pixels.shape)} is not an image")
    return Image.fromarray(pixels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no defined range")
    if image.mode == "I" or image.mode.startswith("I;16"):
        # PIL opens 16-bit PGM and, before version 10, 16-bit PNG in mode "I", at the same scale.
        wide = np.clip(np.asarray(image).astype(np.int32), 0, 65535)
        # A PNG may declare a single grey level transparent, as a 16-bit number.
        clear = wide == image.info.get("transparency", -1)
        image = Image.fromarray(np.where(clear, 255, (wide + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return image if image.mode == "RGB" else image.convert("RGB")


def sample_crop(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Samples a crop box in the same way as torchvision's `RandomResizedCrop.get_params`.

    Each try samples an area, uniform in `scale` times the image area, and an aspect ratio,
    log-uniform in `ratio`. The first crop that fits into the image gets a uniform random position.
    After ten failed tries, the result is the largest central crop with an aspect ratio within
    `ratio`.

    Returns:
        (left, top, width, height) in pixels.
    """
    area = width * height
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_TRIES):
        target = area * rng.uniform(scale[0], scale[1])
        aspect = math.exp(rng.uniform(log_low, log_high))
        w = round(math.sqrt(target * aspect))
        h = round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h + 1))
            left = int(rng.integers(0, width - w + 1))
            return left, top, w, h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    return (width - w) // 2, (height - h) // 2, w, h


def random_resized_crop(
    image: Image.Image,
    size: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Image.Image:
    """Crops randomly (see `sample_crop`) and resizes to size x size with antialiased bicubic.

    The crop comes before the resize, as in torchvision: with PIL's `resize(box=...)` the filter
    would read pixels outside the crop.
    """
    left, top, w, h = sample_crop(image.width, image.height, scale, ratio, rng)
    crop = image.crop((left, top, left + w, top + h))
    return crop.resize((size, size), _BICUBIC)


def normalize(images: ArrayT, mean: Sequence[float], std: Sequence[float]) -> ArrayT:
    """Computes (x / 255 - mean) / std in float32, for numpy and JAX arrays, also under `jax.jit`.

    Args:
        images: uint8 [... h w 3].
        mean, std: values per channel, for pixels scaled to [0, 1].

    Returns:
        float32 with the same shape.
    """
    unit = images.astype(np.float32) / np.float32(255)
    return (unit - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)


def is_random(config: DataConfig) -> bool:
    """Returns whether an image's training view depends on the seed and the epoch."""
    return config.augmentation == "random_resized_crop"


def view_decoder(config: DataConfig) -> str:
    """Returns the decoder of a config's views; the fast one decodes random crops only."""
    return EXACT if config.decoder == FAST and not is_random(config) else config.decoder


@dataclass(frozen=True)
class TrainTransform:
    """Makes the training view for an image: random crop and flip, or a fixed view, per `config`."""

    config: DataConfig

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> UInt8[np.ndarray, "s s 3"]:
        config = self.config
        if not is_random(config):
            return EvalTransform(config)(image)
        size = config.image_size
        image = random_resized_crop(image, size, config.crop_scale, config.crop_ratio, rng)
        if rng.random() < config.flip_probability:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return np.asarray(image)


@dataclass(frozen=True)
class EvalTransform:
    """Makes the same view every time, by `config.view_rule`."""

    config: DataConfig

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "s s 3"]:
        config = self.config
        return square_view(image, config.view_rule, config.resize, config.image_size)
