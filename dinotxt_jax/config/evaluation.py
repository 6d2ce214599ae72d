"""Settings of evaluation tasks."""

from __future__ import annotations

import dataclasses

from dinotxt_jax.config.data import DataConfig


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """How an image becomes a map of classes.

    Attributes:
        protocol: "slide" (dino.txt's own), "whole" or "highres" (`inference.segmentation`).
        image_size: whole: side of the square that the image is squashed to, pixels.
        short_side: slide: short side of the resized image, pixels.
        window, stride: slide, highres: side of a window and distance between windows, pixels
            (highres: rounded to whole patches).
        scales: highres: short sides of the resized images, pixels.
        clusters: highres: so many groups of patches with like features, each of which gets one
            class (0: every patch its own).
        background_score: where no class scores as high, a pixel is background (-1: off). Scores
            are softmax values for slide, cosines for whole and highres.
        background_words: scene words, each of which stands for the background: a list that comes
            with the project (`data/texts`) or a text file ("": its name, "background").
    """

    protocol: str = "slide"
    image_size: int = 224
    short_side: int = 512
    window: int = 384
    stride: int = 192
    scales: tuple[int, ...] = (512, 768, 1024, 1536)
    clusters: int = 0
    background_score: float = -1.0
    background_words: str = ""


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One evaluation.

    Attributes:
        kind: "retrieval", "classification" or "segmentation".
        data: the examples; augmentation must be "center_crop" or "squash" (segmentation has its
            own preparation).
        max_examples: evaluate on so many, spread over the set (0: all).
        templates: classification, segmentation: prompt templates: a list that comes with the
            project (`data/texts`), a text file, or one template such as "a photo of a {}.".
        segmentation: of that kind.
        published: name of the published figures of this data set (`evaluation.published`) that
            the report puts beside the result, those of the same protocol ("": none).
    """

    kind: str = "retrieval"
    data: DataConfig = DataConfig(augmentation="center_crop", split="test")
    max_examples: int = 0
    templates: str = "openai_80"
    segmentation: SegmentationConfig = SegmentationConfig()
    published: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated: by `python -m dinotxt_jax.evaluate`, or in training every `every` steps.

    Attributes:
        tasks: by name; the name stands before each result.
        batch_size: images, windows of images, or token rows, encoded at once.
        every: training only: evaluate every so many steps, and after the last (0: never).
        at: training only: evaluate after these steps too.
        best: training only: the result that decides which model is kept as the best, such as
            "flickr8k/mean_recall" ("": none); higher is better.
    """

    tasks: dict[str, TaskConfig] = dataclasses.field(default_factory=dict)
    batch_size: int = 256
    every: int = 0
    at: tuple[int, ...] = ()
    best: str = ""
