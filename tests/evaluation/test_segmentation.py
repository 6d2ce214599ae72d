"""Segmentation against a straightforward recomputation, metrics, and bad pairs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dinotxt_jax import UserError, inference
from dinotxt_jax.config import DataConfig, TaskConfig
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.evaluation.segmentation import (
    check,
    confusion_matrix,
    linear_weights,
    scores,
    segment,
    window_starts,
)

SLIDE = TaskConfig(
    kind="segmentation",
    protocol="slide",
    short_side=60,
    window=46,
    stride=23,
    data=DataConfig(source="csv", image_size=98, augmentation="squash", threads=2),
)


def bilinear(values: np.ndarray, height: int, width: int) -> np.ndarray:
    """PyTorch's align_corners=False, pixel by pixel."""
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
    """PyTorch's bicubic (a = -0.75), pixel by pixel, to size x size."""

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
    """The protocol "slide", one window after the other, in float64."""
    short = min(image.size)
    width, height = (max(side * 60 // short, 60) for side in image.size)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    total = np.zeros((height, width, len(texts)))
    visits = np.zeros((height, width, 1))
    rows = max(height - 46 + 22, 0) // 23 + 1
    columns = max(width - 46 + 22, 0) // 23 + 1
    wanted = model.description.preprocessing
    for r in range(rows):
        for c in range(columns):
            top, left = min(r * 23, height - 46), min(c * 23, width - 46)
            window = normalize(pixels[top : top + 46, left : left + 46], wanted.mean, wanted.std)
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


def test_sliding_windows_equal_a_plain_recomputation(model: inference.Model) -> None:
    texts = unit(5)
    images = drawn_images()
    shapes = [image.size[::-1] for image in images]
    found = list(segment(model, iter(zip(images, shapes, strict=True)), texts, SLIDE, 4))
    agree = total = 0
    for image, labels in zip(images, found, strict=True):
        expected = recomputed(model, image, texts, labels.shape)
        assert labels.shape == image.size[::-1]
        assert len(np.unique(labels)) > 1
        agree += int((labels == expected).sum())
        total += labels.size
    assert agree / total > 0.999


def test_the_batch_of_windows_does_not_matter(model: inference.Model) -> None:
    images = [(image, image.size[::-1]) for image in drawn_images()]
    one, many = (list(segment(model, iter(images), unit(5), SLIDE, n)) for n in (1, 32))
    same = sum(int((a == b).sum()) for a, b in zip(one, many, strict=True))
    assert same / sum(a.size for a in one) > 0.9999


def test_the_whole_image_takes_the_most_similar_class_without_softmax(
    model: inference.Model,
) -> None:
    task = TaskConfig(kind="segmentation", protocol="whole", data=SLIDE.data)
    image = drawn_images()[0]
    (found,) = segment(model, iter([(image, (90, 64))]), unit(5), task, 1)
    wanted = model.description.preprocessing
    pixels = np.asarray(image.resize((98, 98), Image.Resampling.BICUBIC))
    patches = np.asarray(
        model.encode_patches(normalize(pixels[None], wanted.mean, wanted.std)).patch_tokens[0]
    )
    patches = patches / np.linalg.norm(patches, axis=-1, keepdims=True)
    expected = bilinear(patches @ unit(5).T, 90, 64).argmax(-1)
    assert (found == expected).mean() > 0.999


def test_windows_cover_a_side_and_the_last_one_is_shifted_inward() -> None:
    assert window_starts(512, 384, 192) == [0, 128]
    assert window_starts(384, 384, 192) == [0]
    assert window_starts(700, 384, 192) == [0, 192, 316]
    assert window_starts(300, 384, 192) == [0]


def test_linear_weights_are_those_of_pytorch() -> None:
    values = np.random.default_rng(0).normal(size=(5, 7, 2))
    for shape in ((11, 20), (3, 4), (5, 7)):
        found = np.einsum(
            "in,jm,nmc->ijc", linear_weights(5, shape[0]), linear_weights(7, shape[1]), values
        )
        np.testing.assert_allclose(found, bilinear(values, *shape), atol=1e-6)


def test_scores_come_from_one_confusion_matrix() -> None:
    mask = np.array([[0, 0, 1, 255], [1, 1, 2, 255]])
    labels = np.array([[0, 1, 1, 0], [1, 1, 0, 3]])
    found = scores(confusion_matrix(mask, labels, 4))
    # Class 0: 1 of {2 true, 2 found}: 1/3; class 1: 3 of {3, 4}: 3/4; class 2: 0; 3 never occurs.
    assert found["mean_iou"] == pytest.approx(100 * (1 / 3 + 3 / 4 + 0) / 3)
    assert found["mean_accuracy"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(100 * 4 / 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": "jump"}, "choose among slide, whole"),
        ({"stride": 0}, "expected 0 < stride <= window <= short_side"),
        ({"window": 900}, "expected 0 < stride <= window"),
        ({"templates": "{}{}"}, "expected one {}"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check("a", TaskConfig(kind="segmentation", **changes))
