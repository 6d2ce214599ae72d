"""The protocol "whole": the image squashed to one square; cosines of patch tokens and texts."""

from __future__ import annotations

from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.dense import DenseTexts
from dinotxt_jax.inference.protocols.protocol import DenseProtocol
from dinotxt_jax.inference.windows import Level, resized


class Whole(DenseProtocol):
    """Cosines of one square image, without softmax."""

    unit = "cosine similarity"
    scores_alone = True

    def check(self, config: SegmentationConfig, patch: int, where: str) -> None:
        if config.image_size < patch or config.image_size % patch:
            lower = max(config.image_size // patch, 1) * patch
            raise UserError(
                f"{where} has image_size={config.image_size}, but the backbone's patches have "
                f"{patch} pixels; take a multiple ({lower} or {lower + patch})."
            )

    def window_side(self, config: SegmentationConfig) -> int:
        return config.image_size

    def resolution(self, config: SegmentationConfig) -> int | str:
        return config.image_size

    def levels(
        self, image: Image.Image, config: SegmentationConfig, patch: int, texts: DenseTexts
    ) -> list[Level]:
        side = config.image_size
        return [Level(resized(image, side, side), [(0, 0)], side)]
