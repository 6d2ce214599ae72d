"""The protocol "slide" from dino.txt (arXiv 2412.16334).

Resizes the short side to `short_side` and places windows with side `window` every `stride` pixels,
with the last one shifted inward. Each window is stretched to whole patches. Cosine similarities
between patch tokens and texts are resampled bilinearly to the window's pixels, followed by a
softmax over texts (no temperature). Window maps are summed and divided by the visit counts.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float
from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.inference.canvas import Canvas
from dinotxt_jax.inference.dense import DenseTexts
from dinotxt_jax.inference.interpolation import Taps, resampled
from dinotxt_jax.inference.protocols.protocol import DenseProtocol
from dinotxt_jax.inference.windows import Level, check_fits, windowed


class Slide(DenseProtocol):
    """Averages softmax values from sliding windows, with one canvas cell per pixel."""

    unit = "softmax value"
    scores_alone = False

    def check(self, config: SegmentationConfig, patch: int, where: str) -> None:
        """Accepts all sizes, because windows are stretched to whole patches."""

    def resolution(self, config: SegmentationConfig) -> int | str:
        return f"short side {config.short_side}, window {config.window}, stride {config.stride}"

    def levels(
        self, image: Image.Image, config: SegmentationConfig, patch: int, texts: DenseTexts
    ) -> list[Level]:
        check_fits(image, config.short_side, len(texts.features))
        return [windowed(image, config.short_side, config.window, config.stride)]

    def canvas(self, level: Level, patch: int) -> Canvas:
        return Canvas(level, 1, _softmax_of_pixels)


def _softmax_of_pixels(
    piece: Float[Array, "gh gw t"], rows: Taps, columns: Taps
) -> Float[Array, "h w t"]:
    odds = jnp.exp(resampled(piece, rows, columns))  # cosines are bounded: no overflow
    return odds / jnp.sum(odds, axis=-1, keepdims=True)
