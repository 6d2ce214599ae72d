"""Training runs of a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
    TokenizerConfig,
)

HELD_OUT = DataConfig(split="test", num_scenes=24, image_size=56, augmentation="squash", threads=2)


def config(backbone: Path, /, **changes: Any) -> Config:
    """A run of a few seconds with everything in it: crops, drop path, evaluation, checkpoints."""
    settings = {
        "steps": 12,
        "batch_size": 16,
        "backbone": str(backbone),
        "log_every": 1,
        "data": DataConfig(num_scenes=40, image_size=56, threads=2, prefetch=16),
        "tokenizer": TokenizerConfig(kind="bpe", vocabulary_size=300, context_length=64),
        "text": TextTrainingConfig(width=32, depth=2, num_heads=2),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2),
        "precision": PrecisionConfig(compute="float32", frozen="float32"),
        "checkpoint": CheckpointConfig(every=4),
    }
    return Config(**(settings | changes))
