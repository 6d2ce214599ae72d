"""Evaluation task settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.data import DataConfig
from dinotxt_jax.config.ranges import Choice, Range
from dinotxt_jax.config.sources import CAPTIONS, LABELS, MASKS, wrong_choice


@dataclasses.dataclass(frozen=True)
class KindSettings:
    """The settings that a task kind allows; `evaluation.tasks` runs the task.

    Attributes:
        content: the content that the source must provide.
        metrics: names of the results.
        encodes_whole_images: whether the task encodes whole images, as prepared by `data`.
    """

    content: str
    metrics: tuple[str, ...]
    encodes_whole_images: bool = True


KIND_SETTINGS: dict[str, KindSettings] = {
    "retrieval": KindSettings(
        CAPTIONS,
        (
            "image_to_text_r1",
            "image_to_text_r5",
            "image_to_text_r10",
            "text_to_image_r1",
            "text_to_image_r5",
            "text_to_image_r10",
            "mean_recall",
        ),
    ),
    "classification": KindSettings(
        LABELS, ("top1", "top5", "mean_per_class", "mean_average_precision")
    ),
    "segmentation": KindSettings(
        MASKS, ("mean_iou", "mean_accuracy", "pixel_accuracy"), encodes_whole_images=False
    ),
    "text": KindSettings(
        CAPTIONS,
        ("caption_r1", "caption_r5", "caption_r10", "spearman", "pearson"),
        encodes_whole_images=False,
    ),
}
# Segmentation protocol -> setting with the short sides that must be at least as large as a window.
PROTOCOL_SIDES: dict[str, str] = {"slide": "short_side", "whole": "", "highres": "scales"}
# Data sets with published figures (`evaluation.published`).
PUBLISHED_SETS = ("imagenet1k", "coco", "ade20k_150", "cityscapes_19")


DENSE_FEATURE_NAMES = (
    "auto",
    "plain",
    "backbone",
    "value",
    "csa",
    "kk",
    "map_values",
    "map_values_csa",
)


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """Semantic segmentation protocol."""

    protocol: Annotated[
        str,
        Choice(PROTOCOL_SIDES),
        "slide (the dino.txt protocol), whole or highres (`inference.segmentation`)",
    ] = "slide"
    image_size: Annotated[
        int,
        Range(1, 16_384),
        "whole: side of the square input image, pixels (the aspect ratio is not kept)",
    ] = 224
    short_side: Annotated[
        int, Range(1, 16_384), "slide: short side of the resized image, pixels"
    ] = 512
    window: Annotated[int, Range(1, 16_384), "slide, highres: window side, pixels"] = 384
    stride: Annotated[
        int,
        Range(1, 16_384),
        "slide, highres: window stride, pixels (highres: rounded to whole patches)",
    ] = 192
    scales: Annotated[
        tuple[int, ...], Range(1, 16_384), "highres: short sides of the resized images, pixels"
    ] = (512, 768, 1024, 1536)
    clusters: Annotated[
        int,
        Range(0, 1_000_000),
        "highres: number of clusters of similar patches; all patches in a cluster get the same "
        "class (0: each patch is classified separately)",
    ] = 0
    features: Annotated[
        str,
        Choice(DENSE_FEATURE_NAMES),
        "patch tokens that are compared with texts: auto (map_values for SigLIP, otherwise plain), "
        "plain (through the model's head), backbone (before the head), value, csa or kk (another "
        "attention in the last block: MaskCLIP, SCLIP, ClearCLIP), map_values or map_values_csa "
        "(each token through SigLIP's attention pooling head)",
    ] = "auto"
    background_score: Annotated[
        float,
        Range(-1, 1),
        "minimum class score; a pixel is background if every class scores lower (-1: off); "
        "scores are softmax values for slide, cosine similarities for whole and highres",
    ] = -1.0
    background_words: Annotated[
        str,
        "scene words, each treated as background: a list included with the project "
        '(`data/texts`) or a text file (empty: the word "background")',
    ] = ""

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        name = PROTOCOL_SIDES[self.protocol]
        if not name:
            return
        value = getattr(self, name)
        sides = value if isinstance(value, tuple) else (value,)
        if not sides:
            yield f"{key}.{name} is empty, expected at least one size in pixels; set it."
        elif self.window > min(sides):
            yield (
                f"{key}.window is {self.window}, expected at most {key}.{name}={min(sides)}, the "
                "short side of the image; lower it."
            )
        if self.stride > self.window:
            yield (
                f"{key}.stride is {self.stride}, expected at most {key}.window={self.window}, so "
                "that windows leave no gap; lower it."
            )


PREPARATIONS = ("data", "model")
TEXT_PARTS = ("whole", "class", "patch")


@dataclasses.dataclass(frozen=True)
class TextTaskConfig:
    """Comparing texts with texts."""

    pairs: Annotated[
        str,
        "text: CSV, TSV or JSON Lines file with rated pairs of texts, such as STS files, whose "
        "scores are correlated with the similarities (empty: each caption of `data` searches the "
        "other captions of its image among all captions)",
    ] = ""
    first: Annotated[str, "text: column with the first text of a pair"] = "sentence1"
    second: Annotated[str, "text: column with the second text of a pair"] = "sentence2"
    score: Annotated[str, "text: column with the score of a pair, a number"] = "score"
    part: Annotated[
        str,
        Choice(TEXT_PARTS),
        "text: part of the text features that is compared: whole, or in dino.txt class or patch, "
        "the half that images' class tokens or patch tokens are compared with",
    ] = "whole"


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """A single evaluation task."""

    kind: Annotated[
        str, Choice(KIND_SETTINGS), "task type: retrieval, classification, segmentation or text"
    ] = "retrieval"
    data: Annotated[
        DataConfig,
        "evaluation examples; augmentation must not be random_resized_crop (segmentation has its "
        "own image preparation)",
    ] = DataConfig(augmentation="center_crop", split="test")
    preparation: Annotated[
        str,
        Choice(PREPARATIONS),
        "retrieval, classification: image preparation: data (image_size, resize and augmentation "
        "of `data`), or model (size and resize rule of the model, as in its `model.json`)",
    ] = "data"
    max_examples: Annotated[
        int,
        Range(0, 2**32 - 1),
        "maximum number of evaluated examples, spread over the data set (0: all)",
    ] = 0
    templates: Annotated[
        str,
        "classification, segmentation: prompt templates: a list included with the project "
        '(`data/texts`), a text file, or a single template such as "a photo of a {}."',
    ] = "openai_80"
    segmentation: Annotated[SegmentationConfig, "segmentation: protocol settings"] = (
        SegmentationConfig()
    )
    text: Annotated[TextTaskConfig, "text: what is compared"] = TextTaskConfig()
    published: Annotated[
        str,
        Choice(PUBLISHED_SETS, optional=True),
        "published results (`evaluation.published`) that the report shows next to the measured "
        "result if the protocols match",
    ] = ""

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        kind = KIND_SETTINGS[self.kind]
        yield from self.data.training_only(f"{key}.data")
        if self.kind == "text" and self.text.pairs:
            return
        yield from self.data.content_conflicts(
            f"{key}.data", kind.content, f"{key}.kind={self.kind}"
        )
        if not kind.encodes_whole_images:
            return
        if self.data.augmentation == "random_resized_crop":
            yield (
                f"{key}.data.augmentation is 'random_resized_crop', expected center_crop or "
                "squash, since random crops give another result each time; set it to one of these."
            )
        yield from self.data.preparation_conflicts(f"{key}.data")


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation tasks, run by `python -m dinotxt_jax.evaluate` or during training."""

    tasks: Annotated[
        dict[str, TaskConfig], "evaluations by name (the name is a prefix for each result)"
    ] = dataclasses.field(default_factory=dict)
    batch_size: Annotated[
        int,
        Range(1, 2**24),
        "images, image windows or token rows per batch, over all devices",
    ] = 256
    every: Annotated[
        int,
        Range(0, 2**31 - 1),
        "training only: steps between evaluations; the last step is also evaluated (0: never)",
    ] = 0
    at: Annotated[
        tuple[int, ...], Range(1, 2**31 - 1), "training only: evaluate after these additional steps"
    ] = ()
    best: Annotated[
        str,
        "training only: result used to select the best model, such as flickr8k/mean_recall; the "
        "model with the highest value is kept (empty: none)",
    ] = ""

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        for name in self.tasks:
            if not name or name.startswith(".") or any(c in name for c in "/\0"):
                yield (
                    f"{key}.tasks has a task called {name!r}, expected a name that a file can "
                    "have (not empty, no slash, no leading dot); rename it."
                )

    def training_conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that are used only in training."""
        for name, task in self.tasks.items():
            if task.preparation == "model":
                yield (
                    f"{key}.tasks.{name}.preparation is 'model', expected data, since a model in "
                    "training has no preparation of its own; set it to data."
                )
        if not self.best:
            return
        results = [f"{name}/{m}" for name, t in self.tasks.items() for m in _metrics(t)]
        if not results:
            yield (
                f"{key}.best is {self.best!r}, expected a result of a task, but {key}.tasks is "
                "empty; add a task."
            )
        else:
            yield from wrong_choice(f"{key}.best", self.best, tuple(results))
        if not self.every and not self.at:
            yield (
                f"{key}.best is {self.best!r}, expected evaluations to choose from, but none is "
                f"made; set {key}.every."
            )


def _metrics(task: TaskConfig) -> tuple[str, ...]:
    return KIND_SETTINGS[task.kind].metrics
