"""The interface of a protocol of dense prediction."""

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
    """Cosine similarities of L2-normalised patch tokens and texts."""
    return jnp.einsum("...d,td->...t", tokens, texts, precision="highest")


class DenseProtocol(Protocol):
    """How an image becomes scores of texts: windows in, scores out.

    `segmentation.segment` encodes the windows of `levels`, turns their patch tokens into
    `window_maps`, adds these up on one `canvas` a level, and hands the canvases of an image to
    `scores`. A module derives one class from this one, and `PROTOCOLS` lists an object of it.

    Attributes:
        unit: the unit of scores, for pictures.
        scores_alone: whether the score of a text depends on this text only; if not, one phrase
            alone cannot be scored.
    """

    unit: str
    scores_alone: bool

    def check(self, config: SegmentationConfig, patch: int, where: str) -> None:
        """Raises `UserError`, beginning with `where`, for sizes that cannot be used."""

    def resolution(self, config: SegmentationConfig) -> int | str:
        """The sizes that decide the result, for reports."""

    def levels(
        self, image: Image.Image, config: SegmentationConfig, patch: int, texts: DenseTexts
    ) -> list[Level]:
        """The sizes and windows of an RGB image.

        Raises:
            UserError: the image is so narrow that the result would not fit into 8 GiB.
        """

    def window_side(self, config: SegmentationConfig) -> int:
        """Side of the square windows that enter the encoder, pixels."""
        return config.window

    def window_maps(
        self, tokens: Float[Array, "b gh gw d"], texts: DenseTexts
    ) -> Float[Array, "b gh gw c"]:
        """The maps that are added up, from L2-normalised patch tokens of windows."""
        return cosines(tokens, texts.features)

    def canvas(self, level: Level, patch: int) -> Canvas:
        """An empty canvas for the window maps of a level; a cell is a patch."""
        return Canvas(level, patch)

    def scores(
        self, canvases: Sequence[Canvas], texts: DenseTexts, config: SegmentationConfig
    ) -> DenseScores:
        """The scores of an image, whose canvases (one a level) are complete."""
        (canvas,) = canvases
        return DenseScores(canvas.mean(), canvas.size, texts)
