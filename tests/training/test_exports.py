"""What the description of an exported model says."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import config
from tiny_step import BACKBONE

from dinotxt_jax.tokenizers import TrainedTokenizer
from dinotxt_jax.training.exports import Exporter


@pytest.mark.parametrize(
    ("augmentation", "rule", "resize"),
    [
        ("random_resized_crop", "center_crop", 64),
        ("center_crop", "center_crop", 80),
        ("squash", "squash", 80),
        ("squash_bilinear_plain", "squash_bilinear_plain", 80),
    ],
)
def test_a_model_prepares_images_as_in_training(augmentation: str, rule: str, resize: int) -> None:
    run = config(Path("backbone"))
    data = dataclasses.replace(run.data, augmentation=augmentation, resize=80)
    trainer: Any = SimpleNamespace(model=SimpleNamespace(head=None, text=None, logit_bias=False))
    tokenizer = TrainedTokenizer.train(["a red circle"] * 2, 300)
    exporter = Exporter(dataclasses.replace(run, data=data), BACKBONE, trainer, tokenizer)
    images = exporter.description().preprocessing
    assert (images.rule, images.resize, images.crop) == (rule, resize, 56)
    assert (images.mean, images.std) == (BACKBONE.preprocessing.mean, BACKBONE.preprocessing.std)
