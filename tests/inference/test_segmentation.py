"""Protocols against direct recomputations, and options that must not change the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from dinotxt_jax import UserError, inference, sharding
from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.inference.canvas import Canvas
from dinotxt_jax.inference.clustering import clustered
from dinotxt_jax.inference.dense import DenseTexts
from dinotxt_jax.inference.protocols import PROTOCOLS, check_protocol
from dinotxt_jax.inference.segmentation import segment
from dinotxt_jax.inference.windows import Level, window_starts
from dinotxt_jax.models.presets import PRESETS

SLIDE = SegmentationConfig("slide", short_side=60, window=46, stride=23)
WHOLE = SegmentationConfig("whole", image_size=98)
HIGHRES = SegmentationConfig("highres", scales=(56, 98), window=56, stride=28)


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """Implements PyTorch's align_corners=False, pixel by pixel."""
    rows, columns = values.shape[:2]
    out = np.zeros((height, width, *values.shape[2:]))
    for i in range(height):
        y = max((i + 0.5) * rows / height - 0.5, 0)
        y0 = int(y)
        y1 = min(y0 + 1, rows - 1)
        for j in range(width):
            x = max((j + 0.5) * columns / width - 0.5, 0)
            x0 = int(x)
            x1 = min(x0 + 1, columns - 1)
            top = values[y0, x0] * (1 - x + x0) + values[y0, x1] * (x - x0)
            bottom = values[y1, x0] * (1 - x + x0) + values[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


def bicubic(values: np.ndarray, size: int) -> np.ndarray:
    """Implements PyTorch's bicubic (a = -0.75), pixel by pixel, to size x size."""

    def kernel(d: float) -> float:
        d = abs(d)
        if d <= 1:
            return 1.25 * d**3 - 2.25 * d**2 + 1
        return -0.75 * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0.0

    def along(values: np.ndarray) -> np.ndarray:
        n = len(values)
        out = np.zeros((size, *values.shape[1:]))
        for i in range(size):
            y = (i + 0.5) * n / size - 0.5
            first = int(np.floor(y)) - 1
            for tap in range(first, first + 4):
                out[i] += kernel(y - tap) * values[min(max(tap, 0), n - 1)]
        return out

    return np.swapaxes(along(np.swapaxes(along(values), 0, 1)), 0, 1)


def recomputed(model, image: Image.Image, texts: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Computes the protocol "slide", one window after the other, in float64."""
    short = min(image.size)
    width, height = (max(side * 60 // short, 60) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    total = np.zeros((height, width, len(texts)))
    visits = np.zeros((height, width, 1))
    rows = max(height - 46 + 22, 0) // 23 + 1
    columns = max(width - 46 + 22, 0) // 23 + 1
    preprocessing = model.description.preprocessing
    for r in range(rows):
        for c in range(columns):
            top, left = min(r * 23, height - 46), min(c * 23, width - 46)
            window = normalize(
                pixels[top : top + 46, left : left + 46], preprocessing.mean, preprocessing.std
            )
            stretched = bicubic(window.astype(np.float64), 56).astype(np.float32)
            patches = np.asarray(model.encode_patches(stretched[None]).patch_tokens[0], np.float64)
            patches /= np.linalg.norm(patches, axis=-1, keepdims=True)
            fine = bilinear(patches @ texts.T, 46, 46)
            chances = np.exp(fine) / np.exp(fine).sum(-1, keepdims=True)
            total[top : top + 46, left : left + 46] += chances
            visits[top : top + 46, left : left + 46] += 1
    return bilinear(total / visits, *shape).argmax(-1)


@pytest.fixture(scope="module")
def model(tiny_dinotxt: Path) -> inference.Model:
    return inference.load(tiny_dinotxt)


def drawn_images() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    shapes = [(90, 64), (64, 100), (60, 60), (75, 133), (200, 61)]
    return [
        Image.fromarray(rng.integers(0, 256, (h // 8 + 1, w // 8 + 1, 3), np.uint8)).resize((w, h))
        for h, w in shapes
    ]


def unit(rows: int) -> np.ndarray:
    values = np.random.default_rng(1).normal(size=(rows, 64)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def all_texts(rows: int) -> DenseTexts:
    return DenseTexts(unit(rows), np.arange(rows, dtype=np.int32))


def labels(model, images, texts, config, batch_size=4) -> list[np.ndarray]:
    result = segment(model, images, texts, config, batch_size)
    return [dense.labels(*image.size[::-1]) for image, dense in zip(images, result, strict=True)]


def agreement(labels: list[np.ndarray], others: list[np.ndarray]) -> float:
    assert all(a.shape == b.shape for a, b in zip(labels, others, strict=True))
    same = sum(int((a == b).sum()) for a, b in zip(labels, others, strict=True))
    return same / sum(a.size for a in labels)


def test_sliding_windows_equal_a_plain_recomputation(model: inference.Model) -> None:
    images = drawn_images()
    actual = labels(model, images, all_texts(5), SLIDE)
    expected = [recomputed(model, image, unit(5), image.size[::-1]) for image in images]
    assert all(len(np.unique(one)) > 1 for one in actual)
    assert agreement(actual, expected) > 0.999


@pytest.mark.parametrize("config", [SLIDE, WHOLE, HIGHRES])
def test_the_batch_of_windows_does_not_matter(
    model: inference.Model, config: SegmentationConfig
) -> None:
    one, many = (labels(model, drawn_images(), all_texts(5), config, n) for n in (1, 32))
    assert agreement(one, many) > 0.9999


def test_finished_images_are_handed_out_before_the_next_are_added(
    model: inference.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the canvases for a whole batch of windows would be in memory at once."""
    alive, most = 0, []

    add = Canvas.add

    def counted(canvas: Canvas, *arguments: object) -> None:
        nonlocal alive
        alive += canvas._total is None
        most.append(alive)
        add(canvas, *arguments)

    monkeypatch.setattr(Canvas, "add", counted)
    for _ in segment(model, drawn_images() * 2, all_texts(2), WHOLE, 10):
        alive -= 1
    assert max(most) == 1


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.slow), 8])
def test_the_number_of_devices_does_not_matter(tiny_dinotxt: Path, devices: int) -> None:
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    alone, together = inference.load(tiny_dinotxt), inference.load(tiny_dinotxt, mesh=mesh)
    for config in (SLIDE, HIGHRES):
        one, many = (labels(m, drawn_images(), all_texts(5), config, 8) for m in (alone, together))
        assert agreement(one, many) > 0.9999


def unit_patches(model: inference.Model, pixels: np.ndarray) -> np.ndarray:
    preprocessing = model.description.preprocessing
    images = normalize(pixels[None], preprocessing.mean, preprocessing.std)
    patches = np.asarray(model.encode_patches(images).patch_tokens[0], np.float64)
    return patches / np.linalg.norm(patches, axis=-1, keepdims=True)


def test_the_whole_image_takes_the_most_similar_class_without_softmax(
    model: inference.Model,
) -> None:
    image = drawn_images()[0]
    result = labels(model, [image], all_texts(5), WHOLE)
    pixels = np.asarray(image.resize((98, 98), Image.Resampling.BICUBIC))
    cosines = unit_patches(model, pixels) @ unit(5).T
    assert agreement(result, [bilinear(cosines, 90, 64).argmax(-1)]) > 0.999


def highres_features(model: inference.Model, image: Image.Image) -> np.ndarray:
    """Computes features at 56 and 98 pixels, with windows 4 patches wide every 2, in float64."""
    total: np.ndarray = np.zeros(())
    finest = None
    for short in (98, 56):
        least = min(image.size)
        width, height = ((max(s * short // least, short) + 7) // 14 * 14 for s in image.size)
        pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
        grid = np.zeros((height // 14, width // 14, 64))
        visits = np.zeros((*grid.shape[:2], 1))
        for top in {*range(0, height - 55, 28), height - 56}:
            for left in {*range(0, width - 55, 28), width - 56}:
                place = np.s_[top // 14 : top // 14 + 4, left // 14 : left // 14 + 4]
                grid[place] += unit_patches(model, pixels[top : top + 56, left : left + 56])
                visits[place] += 1
        finest = finest or grid.shape[:2]
        total = total + bilinear(grid / visits, *finest)
    return total / np.linalg.norm(total, axis=-1, keepdims=True)


def test_several_scales_equal_a_plain_recomputation(model: inference.Model) -> None:
    images = drawn_images()[:3]
    actual = labels(model, images, all_texts(5), HIGHRES)
    expected = [
        bilinear(highres_features(model, image) @ unit(5).T, *image.size[::-1]).argmax(-1)
        for image in images
    ]
    assert agreement(actual, expected) > 0.999


def test_clusters_are_given_one_class_each(model: inference.Model) -> None:
    grouped = dataclasses.replace(HIGHRES, clusters=3)
    (dense,) = segment(model, [drawn_images()[0]], all_texts(9), grouped, 4)
    assert 2 <= len(np.unique(dense.scores().reshape(-1, 9), axis=0)) <= 3


def test_clustering_finds_groups_and_ignores_masked_patches() -> None:
    rng = np.random.default_rng(0)
    centres = np.linalg.qr(rng.normal(size=(8, 8)))[0][:4]
    group = rng.integers(0, 4, (6, 7))
    features = centres[group] + 0.1 * rng.normal(size=(6, 7, 8))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    inside = np.ones((6, 7), bool)
    inside[:, -1] = False
    features[:, -1] = -centres[0]  # a fifth group, which does not count
    result = np.asarray(clustered(features.astype(np.float32), inside, 4))[:, :-1]
    for label in range(4):
        own = result[group[:, :-1] == label]
        mean = features[:, :-1][group[:, :-1] == label].mean(0)
        np.testing.assert_allclose(
            own, np.tile(mean / np.linalg.norm(mean), (len(own), 1)), atol=1e-5
        )
    more = np.asarray(clustered(features.astype(np.float32), inside, 64))
    assert np.isfinite(more).all()


def test_low_scores_are_background_and_words_map_to_their_class(
    model: inference.Model,
) -> None:
    image = drawn_images()[1]
    (dense,) = segment(model, [image], all_texts(4), WHOLE, 1)
    best = bilinear(dense.scores().astype(np.float64), *image.size[::-1])
    floor = float(np.median(best.max(-1)))
    texts = all_texts(4)._replace(background=7, background_score=floor)
    (result,) = labels(model, [image], texts, WHOLE)
    assert agreement([result == 7], [best.max(-1) < floor]) > 0.999
    words = DenseTexts(unit(4), np.array([0, 1, 1, 5], np.int32))
    (result,) = labels(model, [image], words, WHOLE)
    assert agreement([result], [np.array([0, 1, 1, 5])[best.argmax(-1)]]) > 0.999


def test_windows_cover_a_side_and_the_last_one_is_shifted_inward() -> None:
    assert window_starts(512, 384, 192) == [0, 128]
    assert window_starts(384, 384, 192) == [0]
    assert window_starts(700, 384, 192) == [0, 192, 316]
    assert window_starts(300, 384, 192) == [0]


def levels(
    image: Image.Image, config: SegmentationConfig, texts: int = 3, dim: int = 64
) -> list[Level]:
    features = np.zeros((texts, dim), np.float32)
    dense = DenseTexts(features, np.arange(texts, dtype=np.int32))
    return PROTOCOLS[config.protocol].levels(image, config, 14, dense)


def test_an_image_of_one_pixel_is_segmented_and_a_hair_is_refused(model: inference.Model) -> None:
    dot, hair = (Image.new("RGB", size, "red") for size in ((1, 1), (2**21, 1)))
    for config in (SLIDE, WHOLE, HIGHRES):
        assert labels(model, [dot], all_texts(3), config)[0].shape == (1, 1)
    for config in (SLIDE, HIGHRES):
        with pytest.raises(UserError, match="an image of 2097152 x 1 pixels would be resized to"):
            levels(hair, config, texts=64)
    strip = Image.new("RGB", (500, 1))
    assert levels(strip, SegmentationConfig())
    with pytest.raises(UserError, match="and the results would not fit into memory"):
        levels(strip, SegmentationConfig(), texts=150)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "whole", "image_size": 100}, "image_size is 100, .* set it to 98 or 112"),
        ({"protocol": "highres", "stride": 10}, "stride is 10, expected at least a patch of the "),
    ],
)
def test_sizes_that_patches_do_not_allow_are_named(changes: dict, message: str) -> None:
    config = SegmentationConfig(**changes)
    with pytest.raises(UserError, match=f"^tasks.a.segmentation.{message}"):
        check_protocol(config, PRESETS["dinov2_vits14"], "tasks.a.segmentation")
