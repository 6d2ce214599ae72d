"""Settings of evaluation tasks."""

from __future__ import annotations

import dataclasses

from dinotxt_jax.config.data import DataConfig


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """One evaluation.

    Attributes:
        kind: "retrieval", "classification" or "segmentation".
        data: the examples; augmentation must be "center_crop" or "squash".
        max_examples: evaluate on the first so many only (0: all).
        templates: classification, segmentation: prompt templates: a list that comes with the
            project (`data/texts`), a text file, or one template such as "a photo of a {}.".
        protocol: segmentation: "slide" or "whole" (`evaluation.segmentation`).
        short_side, window, stride: of the protocol "slide", pixels.
    """

    kind: str = "retrieval"
    data: DataConfig = DataConfig(augmentation="center_crop", split="test")
    max_examples: int = 0
    templates: str = "openai_80"
    protocol: str = "slide"
    short_side: int = 512
    window: int = 384
    stride: int = 192


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """What is evaluated: by `python -m dinotxt_jax.evaluate`, or in training every `every` steps.

    Attributes:
        tasks: by name; the name stands before each result.
        batch_size: images, and token rows, encoded at once.
        every: training only: evaluate every so many steps, and after the last (0: never).
    """

    tasks: dict[str, TaskConfig] = dataclasses.field(default_factory=dict)
    batch_size: int = 256
    every: int = 0
