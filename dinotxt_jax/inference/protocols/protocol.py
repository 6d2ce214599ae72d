"""The interface for dense prediction protocols."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.inference.canvas import Canvas
from dinotxt_jax.inference.dense import DenseScores, DenseTexts
from dinotxt_jax.inference.windows import Level


@jax.jit
def cosines(tokens: Float[Array, "*p d"], texts: Float[Array, "t d"]) -> Float[Array, "*p t"]:
    """Returns cosine similarities between L2-normalised patch tokens and texts."""
    return jnp.einsum("...d,td->...t", tokens, texts, precision="highest")


class DenseProtocol(Protocol):
    """Defines how an image is cut into windows, and how window tokens become text scores.

    `segmentation.segment` encodes the windows from `levels`, converts the patch tokens to
    `window_maps`, accumulates the maps on one `canvas` per level, and passes the canvases of an
    image to `scores`. Each protocol module derives one class, and `PROTOCOLS` lists an instance.

    Attributes:
        unit: score unit, for pictures.
        scores_alone: whether a text's score depends on that text only; if not, a single phrase
            cannot be scored.
    """

    unit: str
    scores_alone: bool

    def check(self, config: SegmentationConfig, patch: int, where: str) -> None:
        """Raises `UserError` if sizes do not fit the patches; `where` is the config key."""

    def resolution(self, config: SegmentationConfig) -> int | str:
        """Returns the sizes that determine the result, for reports."""

    def levels(
        self, image: Image.Image, config: SegmentationConfig, patch: int, texts: DenseTexts
    ) -> list[Level]:
        """Returns the resized versions and windows of an RGB image.

        Raises:
            UserError: the image is so narrow that the result would not fit into 8 GiB.
        """

    def window_side(self, config: SegmentationConfig) -> int:
        """Returns the side of the square windows that enter the encoder, in pixels."""
        return config.window

    def window_maps(
        self, tokens: Float[Array, "b gh gw d"], texts: DenseTexts
    ) -> Float[Array, "b gh gw c"]:
        """Returns the maps to accumulate, computed from L2-normalised window patch tokens."""
        return cosines(tokens, texts.features)

    def canvas(self, level: Level, patch: int) -> Canvas:
        """Returns an empty canvas for the window maps on one level, with one cell per patch."""
        return Canvas(level, patch)

    def scores(
        self, canvases: Sequence[Canvas], texts: DenseTexts, config: SegmentationConfig
    ) -> DenseScores:
        """Returns the scores of an image from complete canvases (one per level)."""
        (canvas,) = canvases
        return DenseScores(canvas.mean(), canvas.size, texts)
