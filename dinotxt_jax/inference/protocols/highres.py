"""The protocol "highres", based on the "high-resolution" inference in arXiv 2412.16334.

Encodes windows at several scales. L2-normalised patch tokens are averaged where windows overlap,
resampled bilinearly to the finest grid, and averaged over the scales. Optionally, spherical k-means
replaces them with cluster means. The scores are cosine similarities to the texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.canvas import Canvas
from dinotxt_jax.inference.clustering import clustered
from dinotxt_jax.inference.dense import DenseScores, DenseTexts, padded_side
from dinotxt_jax.inference.encoder import unit_length
from dinotxt_jax.inference.interpolation import linear_taps, resampled
from dinotxt_jax.inference.protocols.protocol import DenseProtocol, cosines
from dinotxt_jax.inference.windows import Level, check_fits, to_whole, windowed


class HighRes(DenseProtocol):
    """Scores texts by cosine similarity to features averaged over windows and scales."""

    unit = "cosine similarity"
    scores_alone = True

    def check(self, config: SegmentationConfig, patch: int, where: str) -> None:
        if config.stride < patch:
            raise UserError(
                f"{where}.stride is {config.stride}, expected at least a patch of the backbone "
                f"({patch} pixels); set it to {patch} or more."
            )

    def resolution(self, config: SegmentationConfig) -> int | str:
        sides = ", ".join(map(str, config.scales))
        groups = f", {config.clusters} clusters" if config.clusters else ""
        return f"short sides {sides}, window {config.window}, stride {config.stride}{groups}"

    def levels(
        self, image: Image.Image, config: SegmentationConfig, patch: int, texts: DenseTexts
    ) -> list[Level]:
        window, stride = (to_whole(side, patch) for side in (config.window, config.stride))
        # Check before resizing. Features at all scales are resampled to the finest grid.
        check_fits(image, max(config.scales), texts.features.shape[1], patch)
        return [windowed(image, short, window, stride, patch) for short in config.scales]

    def window_maps(
        self, tokens: Float[Array, "b gh gw d"], texts: DenseTexts
    ) -> Float[Array, "b gh gw d"]:
        return tokens

    def scores(
        self, canvases: Sequence[Canvas], texts: DenseTexts, config: SegmentationConfig
    ) -> DenseScores:
        """Adds the mean scores of all resolutions, resampled to the finest one."""
        finest = max(canvas.size for canvas in canvases)
        rows, columns = (padded_side(side) for side in finest)
        total = jnp.zeros((), jnp.float32)
        for canvas in canvases:
            total = total + _resampled(
                canvas.mean(),
                linear_taps(canvas.size[0], finest[0], rows),
                linear_taps(canvas.size[1], finest[1], columns),
            )
        # The sum and the mean over scales have the same direction, and only direction matters.
        features = unit_length(total)  # [rows columns d]
        if config.clusters:
            inside = np.zeros((rows, columns), bool)
            inside[: finest[0], : finest[1]] = True
            features = clustered(features, inside, config.clusters)
        return DenseScores(cosines(features, jnp.asarray(texts.features)), finest, texts)


_resampled = jax.jit(resampled)
