"""Dense scores of one image, as returned by `segmentation.segment`."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dinotxt_jax.inference.interpolation import Taps, linear_taps, resampled

_ROUND = 64  # canvases and labels are padded to multiples of 64, so that few shapes are compiled


class DenseTexts(NamedTuple):
    """Text features that pixels are compared with.

    Attributes:
        features: L2-normalised text features, only the patch half [t d].
        classes: the class of each text [t]; several texts may share a class.
        background: class of pixels whose best score is below `background_score`; None: no such
            class.
        background_score: threshold, in the same unit as the protocol's scores.
    """

    features: Float[np.ndarray, "t d"]
    classes: Int[np.ndarray, " t"]
    background: int | None = None
    background_score: float = -1.0


class DenseScores:
    """Scores of one image, at the protocol's resolution.

    Args:
        padded: scores [H W t] on a device.
        size: number of rows and columns that belong to the image; the rest is padding.
        texts: the texts that the last dimension indexes.
    """

    def __init__(self, padded: Float[Array, "hp wp t"], size: tuple[int, int], texts: DenseTexts):
        self._padded, self._size, self.texts = padded, size, texts

    def scores(self) -> Float[np.ndarray, "h w t"]:
        """Returns scores of each pixel in the resized image (slide), otherwise of each patch."""
        return np.asarray(self._padded)[: self._size[0], : self._size[1]]

    def labels(self, height: int, width: int) -> Int[np.ndarray, "h w"]:
        """Returns the class of every pixel in an image with that height and width."""
        return np.asarray(self.padded_labels(height, width))[:height, :width]

    def padded_labels(self, height: int, width: int) -> Int[Array, "hp wp"]:
        """Same as `labels`, but on the device and edge-padded, so that few shapes are compiled."""
        rows, columns = (
            linear_taps(source, target, padded_side(target))
            for source, target in zip(self._size, (height, width), strict=True)
        )
        texts = self.texts
        background = -1 if texts.background is None else texts.background
        floor = -math.inf if background < 0 else texts.background_score
        return _labels(self._padded, rows, columns, texts.classes, background, floor)


def padded_side(side: int) -> int:
    """Rounds a side up to a multiple of 64, so that few shapes are compiled."""
    return -(-side // _ROUND) * _ROUND


@jax.jit
def _labels(
    scores: Float[Array, "h w t"],
    rows: Taps,
    columns: Taps,
    classes: Int[Array, " t"],
    background: Int[Array, ""],
    floor: Float[Array, ""],
) -> Int[Array, "i j"]:
    def label_rows(rows: Taps) -> Int[Array, "r j"]:
        fine = resampled(scores, rows, columns)
        pixel_labels = jnp.take(classes, jnp.argmax(fine, axis=-1))
        return jnp.where(jnp.max(fine, axis=-1) < floor, background, pixel_labels)

    # Process rows in pieces: all scores at photo resolution might not fit in memory.
    pieces = jax.tree.map(lambda tap: tap.reshape(-1, _ROUND), rows)
    return jax.lax.map(label_rows, pieces).reshape(-1, columns.lower.shape[0])
