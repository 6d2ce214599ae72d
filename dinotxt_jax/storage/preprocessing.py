"""Image preprocessing that a model expects, as `model.json` describes it."""

from __future__ import annotations

import dataclasses
from typing import Annotated

from dinotxt_jax.config.data import RESIZE_RULES
from dinotxt_jax.config.ranges import Choice, Range

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Image preprocessing that the backbone expects.

    Attributes:
        mean, std: per RGB channel, for pixels in [0, 1].
        resize, crop: in evaluation, short side (center_crop only), then side of the square, pixels.
        rule: how an image is resized in evaluation (`data.resizing.prepare_image`).
        max_patches: naflex: maximum number of patches per image.
    """

    mean: Annotated[tuple[float, float, float], Range(-1000, 1000)] = IMAGENET_MEAN
    std: Annotated[tuple[float, float, float], Range(0, 1000, open_low=True)] = IMAGENET_STD
    resize: Annotated[int, Range(1, 16_384)] = 256
    crop: Annotated[int, Range(1, 16_384)] = 224
    rule: Annotated[str, Choice(RESIZE_RULES)] = "center_crop"
    max_patches: Annotated[int, Range(1, 65_536)] = 256

    @property
    def described(self) -> str:
        """The resize rule in words, with sizes."""
        square = f"{self.rule} to {self.crop} x {self.crop}"
        return {
            "center_crop": f"short side {self.resize}, center crop {self.crop}",
            "squash": f"{square} (bicubic)",
            "squash_bilinear": f"{square} (antialiased)",
            "squash_bilinear_plain": f"{square} (not antialiased)",
            "naflex": f"naflex, at most {self.max_patches} patches in the image's aspect ratio",
        }[self.rule]
