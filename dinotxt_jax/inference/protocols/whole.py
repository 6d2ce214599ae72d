"""The protocol "whole": squashes the image to one square; cosines between patches and texts."""

from __future__ import annotations

from PIL import Image

from dinotxt_jax.config import SegmentationConfig, check_image_size
from dinotxt_jax.inference.dense import DenseTexts
from dinotxt_jax.inference.protocols.protocol import DenseProtocol
from dinotxt_jax.inference.windows import Level, resized


class Whole(DenseProtocol):
    """Scores texts by cosine similarity on one square image, without softmax."""

    unit = "cosine similarity"
    scores_alone = True

    def check(self, config: SegmentationConfig, patch: int, where: str) -> None:
        check_image_size(config.image_size, patch, f"{where}.image_size")

    def window_side(self, config: SegmentationConfig) -> int:
        return config.image_size

    def resolution(self, config: SegmentationConfig) -> int | str:
        return config.image_size

    def levels(
        self, image: Image.Image, config: SegmentationConfig, patch: int, texts: DenseTexts
    ) -> list[Level]:
        side = config.image_size
        return [Level(resized(image, side, side), [(0, 0)], side)]
