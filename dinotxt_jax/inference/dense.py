"""Scores of every pixel of an image: what `segmentation.segment` returns."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dinotxt_jax.inference.interpolation import Taps, linear_taps, resampled

_ROUND = 64  # canvases and answers are padded to multiples of this: few shapes are compiled


class DenseTexts(NamedTuple):
    """What pixels are compared with.

    Attributes:
        features: of texts, L2-normalised, their half that speaks of patches [t d].
        classes: the class that each text stands for [t]; several may stand for one.
        background: the class of pixels whose best score is below `background_score`; None: none.
        background_score: in the units of the protocol's scores.
    """

    features: Float[np.ndarray, "t d"]
    classes: Int[np.ndarray, " t"]
    background: int | None = None
    background_score: float = -1.0


class DenseScores:
    """The scores of one image, at the protocol's own resolution.

    Args:
        padded: scores [H W t] on a device.
        size: how many of the rows and columns are the image's.
        texts: what the last dimension means.
    """

    def __init__(self, padded: Float[Array, "hp wp t"], size: tuple[int, int], texts: DenseTexts):
        self._padded, self._size, self.texts = padded, size, texts

    def scores(self) -> Float[np.ndarray, "h w t"]:
        """At the protocol's resolution: pixels of the resized image (slide), else patches."""
        return np.asarray(self._padded)[: self._size[0], : self._size[1]]

    def labels(self, height: int, width: int) -> Int[np.ndarray, "h w"]:
        """The class of every pixel of an image of that size."""
        return np.asarray(self.padded_labels(height, width))[:height, :width]

    def padded_labels(self, height: int, width: int) -> Int[Array, "hp wp"]:
        """As `labels`, on the device, padded to few shapes by whatever lies at the edge."""
        rows, columns = (
            linear_taps(source, target, padded_side(target))
            for source, target in zip(self._size, (height, width), strict=True)
        )
        texts = self.texts
        background = -1 if texts.background is None else texts.background
        floor = -math.inf if background < 0 else texts.background_score
        return _labels(self._padded, rows, columns, texts.classes, background, floor)


def padded_side(side: int) -> int:
    """A side rounded up, so that few shapes are compiled."""
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
    def of_rows(rows: Taps) -> Int[Array, "r j"]:
        fine = resampled(scores, rows, columns)
        found = jnp.take(classes, jnp.argmax(fine, axis=-1))
        return jnp.where(jnp.max(fine, axis=-1) < floor, background, found)

    # In pieces, since all scores at the size of a photo need not fit in memory.
    pieces = jax.tree.map(lambda tap: tap.reshape(-1, _ROUND), rows)
    return jax.lax.map(of_rows, pieces).reshape(-1, columns.lower.shape[0])
