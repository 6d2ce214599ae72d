"""The fast JPEG decoder: the same crops as the exact one, and pixels close to its pixels."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data import jpeg_crops
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.jpeg_crops import decode_jpeg_crop, resize_crop
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.train_views import TrainViews
from dinotxt_jax.data.transforms import sample_crop

SIZE = 64
# The whole image counts as the crop.
WHOLE = {"crop_scale": (1.0, 1.0), "crop_ratio": (0.5, 2.0)}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draws smooth colours with details at all scales, as photos have them."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells in (3, 9, 27, 81):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        pixels += np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC)) / cells
    pixels *= 255 / pixels.max()
    return Image.fromarray(pixels.astype(np.uint8))


def jpeg(image: Image.Image, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90} | options)
    return buffer.getvalue()


def view(data: bytes, decoder: str, epoch: int = 0, **options: object) -> np.ndarray:
    config = DataConfig(image_size=SIZE, decoder=decoder, **options)
    views = TrainViews(config)
    return views.finish(views.decode(Example(data, ("",), "a.jpg"), Draw(epoch, 0, 0, 0))).astype(
        int
    )


def is_fast(data: bytes) -> bool:
    config = DataConfig(image_size=SIZE)
    return decode_jpeg_crop(data, config, np.random.default_rng(0)) is not None


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return jpeg(photo(90, 70), exif=exif)


JPEGS = {
    "baseline": lambda: jpeg(photo(90, 70)),
    "progressive": lambda: jpeg(photo(90, 70), progressive=True),
    "without subsampling": lambda: jpeg(photo(90, 70), subsampling=0),
    "grey": lambda: jpeg(photo(90, 70).convert("L")),
    "stored as RGB": lambda: jpeg(photo(90, 70), keep_rgb=True),
} | {f"orientation {number}": lambda number=number: rotated(number) for number in range(1, 9)}


@pytest.mark.parametrize("name", JPEGS)
def test_at_full_size_views_differ_by_the_rounding_of_the_resize(name):
    """Both resize the rows and then the columns, with weights rounded to fixed point.

    Pillow keeps 22 bits of a weight and rounds to 8 bits after each of the passes. The fast resize
    keeps 14 bits. In enlargements a bicubic filter has four weights with a sum of absolute values
    of at most 1.25, and each rounding adds 0.5: 1.25 * 0.5 + 0.5 levels after two passes. Weights
    of 14 bits add 4 * 255 / 2^15 per pass. Together the distance of two results stays below 3.
    """
    data = JPEGS[name]()
    assert is_fast(data)
    for epoch in range(4):
        fast, exact = view(data, "fast", epoch), view(data, "exact", epoch)
        assert fast.shape == exact.shape == (SIZE, SIZE, 3)
        assert np.abs(fast - exact).max() <= 3
        assert np.abs(fast - exact).mean() < 0.25


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("shape", [(300, 200), (523, 389)])
def test_reduced_crops_stay_where_the_exact_crops_are(orientation, shape):
    """A crop may move by half a pixel of the view, which a picture of slow ramps shows."""
    width, height = shape
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    ramps = np.stack([x, y, (x + y) / 2], -1).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(Image.fromarray(ramps), exif=exif, quality=100, subsampling=0)
    for epoch in range(4):
        fast, exact = view(data, "fast", epoch), view(data, "exact", epoch)
        # A pixel of the view is at most 255 / 64 levels wide. The JPEG adds 1, and each rounding 1.
        assert np.abs(fast - exact).max() <= 0.5 * 255 / SIZE + 3


@pytest.mark.parametrize(
    ("side", "factor"), [(64, 1), (127, 1), (128, 2), (255, 2), (256, 4), (512, 8), (2000, 8)]
)
def test_the_size_is_reduced_only_while_the_crop_has_the_pixels_of_the_view(side, factor):
    config = DataConfig(image_size=SIZE, **WHOLE)
    crop = decode_jpeg_crop(jpeg(photo(side, side)), config, np.random.default_rng(0))
    assert crop.shape == (-(-side // factor), -(-side // factor), 3)
    assert min(crop.shape[:2]) >= SIZE


def test_a_crop_within_a_large_image_is_decoded_at_the_reduced_box():
    config = DataConfig(image_size=SIZE, crop_scale=(0.3, 0.3), crop_ratio=(1.0, 1.0))
    image = photo(501, 403)
    box = sample_crop(501, 403, (0.3, 0.3), (1.0, 1.0), np.random.default_rng(5))
    crop = decode_jpeg_crop(jpeg(image), config, np.random.default_rng(5))
    assert (abs(crop.shape[1] - box[2] / 2), abs(crop.shape[0] - box[3] / 2)) <= (0.5, 0.5)
    left, top, w, h = box
    expected = np.asarray(
        image.resize(crop.shape[1::-1], Image.Resampling.BOX, box=(left, top, left + w, top + h))
    )
    assert np.abs(expected.astype(int) - crop).mean() < 4


@pytest.mark.parametrize("epoch", range(6))
def test_random_choices_are_the_same_for_both_decoders(epoch):
    """A flip that only one of them drew would exchange the left and the right half."""
    halves = np.zeros((70, 90, 3), np.uint8)
    halves[:, 45:] = 255
    data = jpeg(Image.fromarray(halves))
    options = {"crop_scale": (0.9, 1.0)}
    fast, exact = view(data, "fast", epoch, **options), view(data, "exact", epoch, **options)
    assert (fast[:, 0].mean() < 128) == (exact[:, 0].mean() < 128)
    assert np.abs(fast - exact).max() <= 3


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def damaged() -> bytes:
    """Returns a JPEG in which Pillow accepts a damage that libjpeg-turbo warns about."""
    data = jpeg(photo(90, 70))
    start = data.index(b"\xff\xda") + 200
    return data[:start] + b"\xff\xd9" * 8 + data[start + 16 :]


EXACT_ONLY = {
    "png": lambda: png(photo(90, 70)),
    "cmyk": lambda: jpeg(photo(90, 70).convert("CMYK")),
    "damaged": damaged,
}


@pytest.mark.parametrize("name", EXACT_ONLY)
def test_other_images_are_decoded_exactly_with_the_same_random_choices(name):
    data = EXACT_ONLY[name]()
    assert not is_fast(data)
    np.testing.assert_array_equal(view(data, "fast"), view(data, "exact"))


def test_a_truncated_jpeg_is_bad_with_both_decoders():
    data = jpeg(photo(90, 70))[:-400]
    assert not is_fast(data)
    for decoder in ("fast", "exact"):
        with pytest.raises(BadImageError, match=r"a.jpg does not decode: .*truncated"):
            view(data, decoder)


def test_text_that_begins_like_a_jpeg_is_bad():
    with pytest.raises(BadImageError, match=r"a.jpg does not decode"):
        view(b"\xff\xd8\xff and nothing else", "fast")


def test_an_image_above_the_limit_is_left_to_the_exact_decoder():
    data = jpeg(photo(300, 200))
    config = DataConfig(image_size=SIZE, max_pixels=300 * 200 - 1)
    assert decode_jpeg_crop(data, config, np.random.default_rng(0)) is None
    assert is_fast(data)


@pytest.mark.parametrize("has_simd", [True, False])
def test_a_crop_is_resized_and_mirrored_with_and_without_the_simd_library(has_simd, monkeypatch):
    monkeypatch.setattr(jpeg_crops, "_has_simd_resize", lambda: has_simd)
    crop = np.asarray(photo(97, 61))[5:50, 7:90]
    expected = np.asarray(Image.fromarray(crop).resize((SIZE, SIZE), Image.Resampling.BICUBIC), int)
    view, mirrored = resize_crop(crop, SIZE), resize_crop(crop, SIZE, flipped=True)
    assert (mirrored == view[:, ::-1]).all()
    difference = np.abs(view.astype(int) - expected)
    # Rounding; 2 levels where this was written. Without the library, it is Pillow's result.
    assert difference.max() <= (4 if has_simd else 0)


@pytest.mark.parametrize("augmentation", ["center_crop", "squash"])
def test_fixed_views_are_exact_with_both_decoders(augmentation):
    data = jpeg(photo(300, 200))
    options = {"augmentation": augmentation, "resize": SIZE}
    np.testing.assert_array_equal(view(data, "fast", **options), view(data, "exact", **options))
