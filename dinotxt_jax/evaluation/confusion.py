"""Confusion matrices of pixels, counted exactly, and the scores that follow from them."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from dinotxt_jax.data.masks import IGNORED
from dinotxt_jax.inference.dense import DenseScores, padded_side


class ConfusionMatrix:
    """Counts pixels by true class (rows) and predicted class (columns), on the device.

    Args:
        classes: number of classes.
    """

    def __init__(self, classes: int):
        self._classes = classes
        self._counts = np.zeros((classes, classes), np.int64)
        self._clear()

    def _clear(self) -> None:
        self._pixels = 0
        self._on_device = jnp.zeros(self._classes**2 + 1, jnp.int32)

    def add(self, mask: Int[np.ndarray, "h w"], dense: DenseScores) -> None:
        """Adds the pixels of an image, except the pixels that the mask marks as ignored."""
        height, width = mask.shape
        padding = ((0, padded_side(height) - height), (0, padded_side(width) - width))
        padded = np.pad(mask.astype(np.uint8), padding, constant_values=IGNORED)
        labels = dense.padded_labels(height, width)
        if self._pixels + padded.size >= 2**31:
            self.counts()
        self._pixels += padded.size
        self._on_device = _counted(self._on_device, padded, labels, self._classes)

    def counts(self) -> Int[np.ndarray, "c c"]:
        """Returns all counts so far."""
        added = np.asarray(self._on_device)[:-1].reshape(self._counts.shape)
        self._counts = self._counts + added
        self._clear()
        return self._counts


@functools.partial(jax.jit, static_argnames="classes", donate_argnums=0)
def _counted(
    counts: Int[Array, " k"], mask: Integer[Array, "h w"], labels: Int[Array, "h w"], classes: int
) -> Int[Array, " k"]:
    pairs = jnp.where(mask == IGNORED, classes**2, mask.astype(jnp.int32) * classes + labels)
    return counts + jnp.bincount(pairs.ravel(), length=classes**2 + 1)


def intersections_over_unions(confusion: Float[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Returns the IoU of each class; nan for classes neither in the masks nor predicted."""
    right = np.diag(confusion)
    union = confusion.sum(axis=1) + confusion.sum(axis=0) - right
    return np.divide(right, union, where=union > 0, out=np.full(len(right), np.nan))


def scores(confusion: Float[np.ndarray, "c c"]) -> dict[str, float]:
    """Returns mean IoU and mean accuracy over occurring classes, and pixel accuracy, in percent."""
    right, true = np.diag(confusion), confusion.sum(axis=1)
    return {
        "mean_iou": 100.0 * float(np.nanmean(intersections_over_unions(confusion))),
        "mean_accuracy": 100.0 * float(np.mean(right[true > 0] / true[true > 0])),
        "pixel_accuracy": 100.0 * float(right.sum()) / float(confusion.sum()),
    }


def chance_scores(confusion: Float[np.ndarray, "c c"]) -> dict[str, float]:
    """Returns the expected scores of classes drawn uniformly at random for each pixel."""
    true = confusion.sum(axis=1)
    expected = np.repeat(true[:, None], len(true), axis=1) / len(true)
    return scores(expected)
