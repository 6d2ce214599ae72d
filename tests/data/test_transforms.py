"""Decoding, crops and normalisation of `dinotxt_jax.data.transforms`."""

from __future__ import annotations

import io
import math

import jax
import numpy as np
import pytest
from PIL import Image

from dinotxt_jax.config import DataConfig
from dinotxt_jax.config.data import AUGMENTATIONS
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.resizing import center_crop
from dinotxt_jax.data.transforms import (
    EvalTransform,
    TrainTransform,
    decode_image,
    normalize,
    random_resized_crop,
    sample_crop,
    view_decoder,
)

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    """Returns a smooth image that JPEG preserves almost exactly."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def test_rgb_png_decodes_to_the_same_pixels():
    image = photo()
    np.testing.assert_array_equal(decode_image(encoded(image, "PNG")), image)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = np.zeros((4, 6, 3), np.uint8)
    upright[0, 0] = (255, 0, 0)
    upright[0, -1] = (0, 255, 0)
    undo = {  # how a camera stores an upright image under each orientation tag
        1: lambda x: x,
        2: lambda x: x[:, ::-1],
        3: lambda x: x[::-1, ::-1],
        4: lambda x: x[::-1],
        5: lambda x: x.transpose(1, 0, 2),
        6: lambda x: np.rot90(x),
        7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
        8: lambda x: np.rot90(x, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encoded(stored, "PNG", exif=exif)), upright)


def test_broken_exif_costs_neither_the_image_nor_its_orientation():
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x011A] = 6, "Canon", 1.5
    data = exif.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x21\x00\x05")  # a tag of wrong type
    assert decode_image(encoded(photo(), "JPEG", exif=data)).size == (48, 64)
    data = b"Exif\x00\x00this is no TIFF header"
    assert decode_image(encoded(photo(), "JPEG", exif=data)).size == (64, 48)


def test_greyscale_becomes_three_equal_channels():
    grey = photo().convert("L")
    rgb = np.asarray(decode_image(encoded(grey, "PNG")))
    np.testing.assert_array_equal(rgb, np.repeat(np.asarray(grey)[..., None], 3, -1))


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_greyscale_is_scaled_not_clipped(format):
    wide = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    rgb = np.asarray(decode_image(encoded(Image.fromarray(wide), format)))
    np.testing.assert_array_equal(rgb[..., 0], np.round(wide / 257).astype(np.uint8))
    np.testing.assert_array_equal(decode_image(wide), rgb)


def test_cmyk_jpeg_keeps_its_colours():
    image = photo()
    rgb = np.asarray(decode_image(encoded(image.convert("CMYK"), "JPEG", quality=95)))
    assert np.abs(rgb.astype(int) - np.asarray(image)).mean() < 3  # JPEG loss; inverted is > 60


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_laid_over_white(mode):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0] = (0, 0, 0, 255)
    data = encoded(Image.fromarray(rgba).convert(mode), "PNG")
    rgb = np.asarray(decode_image(data))
    assert rgb[0, 0].tolist() == [0, 0, 0]
    assert rgb[1, 1].tolist() == [255, 255, 255]


def test_a_transparent_grey_level_of_16_bits_is_laid_over_white():
    values = np.array([[1000, 30_000], [1001, 65_535]], np.uint16)
    data = encoded(Image.fromarray(values), "PNG", transparency=1000)
    grey = np.asarray(decode_image(data))[..., 0]
    assert grey.tolist() == [[255, 117], [4, 255]]


def test_an_image_with_too_many_pixels_is_bad_and_a_jpeg_is_reduced():
    """A PNG of 13,000 x 13,000 equal pixels has 20 kB and takes 1 GB to decode."""
    bomb = encoded(Image.new("1", (13_000, 13_000)), "PNG")
    assert len(bomb) < 40_000
    with pytest.raises(BadImageError, match=r"13000 x 13000 pixels .* limit of 67108864"):
        decode_image(bomb, DataConfig().max_pixels)
    large = photo().resize((403, 307), Image.Resampling.BICUBIC)
    data = encoded(large, "JPEG", quality=95)
    assert decode_image(data, 403 * 307).size == (403, 307)
    assert decode_image(data, 403 * 307 - 1).size == (202, 154)
    assert decode_image(data, 403 * 307 // 20).size == (51, 39)
    half = np.asarray(decode_image(data, 403 * 307 - 1), np.float32)
    expected = np.asarray(large.resize((202, 154), Image.Resampling.BOX), np.float32)
    assert np.abs(half - expected).mean() < 3
    with pytest.raises(BadImageError, match="403 x 307 pixels"):
        decode_image(data, 1000)


def test_the_official_reading_neither_turns_nor_composes():
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[..., 3], pixels[0, 0] = 200, 255, (10, 20, 30, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(pixels), "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(data, official=True), pixels[..., :3])
    ours = np.asarray(decode_image(data))
    assert ours.shape == (6, 4, 3)
    assert ours[0, -1].tolist() == [255, 255, 255]  # transparent, in the corner to which it turns
    assert ours[-1, 0].tolist() == [200, 0, 0]
    opened = Image.open(io.BytesIO(data))
    np.testing.assert_array_equal(decode_image(opened, official=True), opened.convert("RGB"))
    np.testing.assert_array_equal(decode_image(pixels, official=True), pixels[..., :3])
    with pytest.raises(BadImageError, match="6 x 4 pixels are more than the limit of 23"):
        decode_image(data, 23, official=True)


@pytest.mark.parametrize(
    ("augmentation", "decoder", "used"),
    [
        ("random_resized_crop", "fast", "fast"),
        ("random_resized_crop", "exact", "exact"),
        ("random_resized_crop", "official", "official"),
        ("squash", "fast", "exact"),
        ("squash", "official", "official"),
    ],
)
def test_only_random_crops_are_decoded_fast(augmentation, decoder, used):
    assert view_decoder(DataConfig(augmentation=augmentation, decoder=decoder)) == used


def test_arrays_are_images_too():
    pixels = np.asarray(photo())
    np.testing.assert_array_equal(decode_image(pixels), pixels)
    one = np.asarray(decode_image(pixels[..., :1]))
    np.testing.assert_array_equal(one, np.repeat(pixels[..., :1], 3, -1))


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"not an image",
        encoded(photo(), "JPEG")[:300],
        encoded(photo(), "PNG")[:-200],
        encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "float tiff", "float array", "empty array"],
)
def test_other_files_are_bad_images(image):
    with pytest.raises(BadImageError):
        decode_image(image)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "the file is empty"),
        (b"a caption\nand another\n", "text, not an image"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "a file in the format heic, which is not supported",
        ),
        (b"\x93\0\xff" * 30, "not an image in a format that PIL knows"),
    ],
)
def test_the_error_names_the_type_of_a_file_that_is_no_image(image: bytes, reason: str) -> None:
    with pytest.raises(BadImageError, match=reason):
        decode_image(image)


def torchvision_crop(width, height, scale, ratio, rng):
    """Reimplements `RandomResizedCrop.get_params` over numpy draws as a plain loop."""
    for _ in range(10):
        target_area = width * height * rng.uniform(*scale)
        aspect = np.exp(rng.uniform(*np.log(ratio)))
        w = round(math.sqrt(target_area * aspect))
        h = round(math.sqrt(target_area / aspect))
        if 0 < w <= width and 0 < h <= height:
            i = rng.integers(0, height - h + 1)
            j = rng.integers(0, width - w + 1)
            return j, i, w, h
    in_ratio = width / height
    if in_ratio < min(ratio):
        w, h = width, round(width / min(ratio))
    elif in_ratio > max(ratio):
        w, h = round(height * max(ratio)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


@pytest.mark.parametrize("size", [(500, 333), (64, 64), (30, 300), (300, 30), (7, 5)])
def test_crops_follow_the_rule_of_torchvision(size):
    for seed in range(300):
        ours = sample_crop(*size, SCALE, RATIO, np.random.default_rng(seed))
        assert ours == torchvision_crop(*size, SCALE, RATIO, np.random.default_rng(seed))


def test_crops_cover_area_and_aspect_as_the_rule_says():
    rng = np.random.default_rng(0)
    crops = np.array([sample_crop(2000, 2000, (0.08, 0.5), RATIO, rng) for _ in range(4000)])
    left, top, w, h = crops.T
    area, aspect = w * h / 2000**2, np.log(w / h)
    # No rejection at these scales: 4000 draws, so 5 standard errors of the mean are
    # 5 * 0.42 / sqrt(12 * 4000) = 0.010 and 5 * 0.575 / sqrt(12 * 4000) = 0.013.
    assert abs(area.mean() - 0.29) < 0.010
    assert abs(aspect.mean()) < 0.013
    assert area.min() < 0.085
    assert area.max() > 0.495
    assert aspect.min() < -0.28
    assert aspect.max() > 0.28
    assert abs((left / (2000 - w)).mean() - 0.5) < 0.025
    assert abs((top / (2000 - h)).mean() - 0.5) < 0.025


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1000, 10, (493, 0, 13, 10)), (10, 1000, (0, 493, 10, 13)), (1000, 1000, (0, 0, 1000, 1000))],
)
def test_crop_that_never_fits_falls_back_to_the_centre(width, height, expected):
    assert sample_crop(width, height, (4.0, 4.0), RATIO, np.random.default_rng(0)) == expected


def test_random_resized_crop_is_the_resized_crop_and_depends_on_the_generator_alone():
    image = photo(200, 300)
    left, top, w, h = sample_crop(300, 200, SCALE, RATIO, np.random.default_rng(5))
    expected = image.crop((left, top, left + w, top + h)).resize((32, 32), 3)
    crop = random_resized_crop(image, 32, SCALE, RATIO, np.random.default_rng(5))
    np.testing.assert_array_equal(crop, expected)
    other = random_resized_crop(image, 32, SCALE, RATIO, np.random.default_rng(6))
    assert not np.array_equal(crop, other)


def test_normalize_agrees_on_numpy_and_jax_and_with_float64():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 4, 3), np.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    expected = (images.astype(np.float64) / 255 - np.array(mean)) / np.array(std)
    ours = normalize(images, mean, std)
    assert ours.dtype == np.float32
    # Values up to 2.6 after a subtraction: a few float32 roundings of 1/0.22 each.
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    on_device = jax.jit(lambda x: normalize(x, mean, std))(images)
    assert on_device.dtype == np.float32
    np.testing.assert_allclose(on_device, expected, atol=2e-6)


def test_train_transform_crops_and_flips_half_of_the_time():
    image = photo()
    config = DataConfig(image_size=16, crop_scale=(1.0, 1.0), crop_ratio=(4 / 3, 4 / 3))
    transform = TrainTransform(config)
    whole = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    flips = 0
    for seed in range(200):
        view = transform(image, np.random.default_rng(seed))
        assert view.dtype == np.uint8
        flipped = np.array_equal(view, whole[:, ::-1])
        assert flipped or np.array_equal(view, whole)
        flips += flipped
    assert 65 < flips < 135  # 100 +- 5 standard deviations


@pytest.mark.parametrize("augmentation", AUGMENTATIONS[1:])
def test_train_transform_without_augmentation_is_the_evaluation_view(augmentation):
    config = DataConfig(image_size=16, resize=20, augmentation=augmentation)
    view = TrainTransform(config)(photo(), np.random.default_rng(0))
    np.testing.assert_array_equal(view, EvalTransform(config)(photo()))


def test_evaluation_of_a_random_crop_config_is_its_center_crop():
    config = DataConfig(image_size=16, resize=20)
    np.testing.assert_array_equal(EvalTransform(config)(photo()), center_crop(photo(), 20, 16))
