"""Result types returned by `Model.classify` and `Model.segment`."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.inference.dense import DenseScores
from dinotxt_jax.inference.protocols import PROTOCOLS


@dataclasses.dataclass(frozen=True)
class Classification:
    """Images compared with classes.

    Attributes:
        class_names: the c classes.
        cosines: similarities between n images and c classes [n c].
        logit_scale, logit_bias: the model's; the bias is 0 for models without one.
    """

    class_names: tuple[str, ...]
    cosines: Float[np.ndarray, "n c"]
    logit_scale: float
    logit_bias: float = 0.0

    @property
    def labels(self) -> Int[np.ndarray, " n"]:
        """The most similar class of each image."""
        return self.cosines.argmax(axis=1)

    @property
    def probabilities(self) -> Float[np.ndarray, "n c"]:
        """Softmax of exp(logit_scale) times the cosines."""
        logits = math.exp(self.logit_scale) * (self.cosines - self.cosines.max(1, keepdims=True))
        odds = np.exp(logits)
        return odds / odds.sum(axis=1, keepdims=True)

    @property
    def sigmoids(self) -> Float[np.ndarray, "n c"]:
        """Sigmoid of the logits: the probability of each class alone, for the sigmoid loss."""
        logits = math.exp(self.logit_scale) * self.cosines + self.logit_bias
        return 1 / (1 + np.exp(-logits))

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the k most probable classes with probabilities for each image, best first."""
        return [
            [(self.class_names[i], float(row[i])) for i in np.argsort(-row, kind="stable")[:k]]
            for row in self.probabilities
        ]


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """An image and the class of each pixel.

    Attributes:
        image: upright RGB.
        class_names: the classes, with the background last if there is one.
        protocol: name of the protocol that produced the segmentation.
        dense: scores at the protocol's resolution.
    """

    image: Image.Image
    class_names: tuple[str, ...]
    protocol: str
    dense: DenseScores

    @functools.cached_property
    def labels(self) -> Int[np.ndarray, "h w"]:
        """The class of every pixel in the image."""
        return self.dense.labels(self.image.height, self.image.width)

    @functools.cached_property
    def scores(self) -> Float[np.ndarray, "gh gw t"]:
        """Text scores at the protocol's resolution: softmax values (slide) or cosines.

        There is one text per class, with two exceptions: background words follow the classes, and a
        background defined by a score threshold has no text.
        """
        return self.dense.scores()

    def mask(self) -> Image.Image:
        """Returns an 8-bit greyscale image with one value per class (16 bits for over 256)."""
        wide = len(self.class_names) > 256
        return Image.fromarray(self.labels.astype(np.uint16 if wide else np.uint8))

    def overlay(self) -> Image.Image:
        """Draws the class colours over the image, with a legend."""
        # Every pixel has a class: with more than 255 classes, 255 is a real label, not "ignored".
        return visualize.segmentation_overlay(self.image, self.labels, self.class_names, ignored=-1)

    def heat_maps(self) -> Image.Image:
        """Draws the scores of every class over the image, except for an added background."""
        texts = self.dense.texts
        indices = [n for n, label in enumerate(texts.classes) if label != texts.background]
        names = [self.class_names[texts.classes[n]] for n in indices]
        unit = PROTOCOLS[self.protocol].unit
        return visualize.heat_maps(self.image, self.scores[..., indices], names, score_name=unit)
