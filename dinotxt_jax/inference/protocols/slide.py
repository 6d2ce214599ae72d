"""The protocol "slide" of dino.txt (arXiv 2412.16334).

Short side to `short_side`; windows of `window` pixels every `stride`, the last one shifted inward,
each stretched to whole patches; cosines of patch tokens and texts, bilinearly to the window's
pixels, softmax over texts (no temperature); added up and divided by visits.
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
from dinotxt_jax.inference.windows import Level, check_fits, check_windows, windowed


class Slide(DenseProtocol):
    """Softmax values of sliding windows; a cell of the canvas is a pixel."""

    unit = "softmax value"
    scores_alone = False

    def check(self, config: SegmentationConfig, patch: int, where: str) -> None:
        check_windows(config, "short_side", (config.short_side,), where)

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
    odds = jnp.exp(resampled(piece, rows, columns))  # of cosines: no overflow
    return odds / jnp.sum(odds, axis=-1, keepdims=True)
