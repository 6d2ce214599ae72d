"""Times a train step with and without each speed-up, and prints ratios from the same run.

    python benchmarks/train_step.py [--dtype=float32|bfloat16] [--batch=256] [--steps=5]

The model is the one in configs/flickr8k_vit_tiny.py (ViT-Ti/16 at 224 px) with random weights,
random pixels and captions as long as Flickr8k's. Every line makes a single change relative to the
line that it names.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Mapping

import jax
import ml_dtypes
import numpy as np
from machine import device

from dinotxt_jax import sharding
from dinotxt_jax.config import (
    Config,
    HeadTrainingConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
    TokenizerConfig,
    check,
)
from dinotxt_jax.models.layers import abstract_arrays, initial_arrays
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.storage.model_directory import ModelDescription, Preprocessing
from dinotxt_jax.training.models import create_model, model_config
from dinotxt_jax.training.step import make_trainer

VOCABULARY, CONTEXT, LONGEST = 49_408, 77, 32
BACKBONE = ModelDescription(PRESETS["vit_tiny_patch16_224"], Preprocessing(), fingerprint="")


def seconds_per_step(
    config: Config, steps: int, *, cached: bool, text: Mapping[str, np.ndarray]
) -> float:
    """Returns the median step time with these caption arrays, excluding compilation."""
    check(config)
    mesh = sharding.make_mesh()
    trainer = make_trainer(config, BACKBONE, VOCABULARY, mesh)
    rng = np.random.default_rng(0)
    batch = dict(text)
    if cached:
        features = rng.normal(size=(config.batch_size, 197, 192)).astype(np.float32)
        frozen_dtype = getattr(ml_dtypes, config.precision.frozen, np.float32)
        batch["features"] = features.astype(frozen_dtype)
    else:
        batch["image"] = rng.integers(0, 256, (config.batch_size, 224, 224, 3), dtype=np.uint8)
    with jax.set_mesh(mesh):
        state = trainer.create_state()
        frozen = {} if cached else frozen_arrays(config)
        step = trainer.compiled_step()
        placed = sharding.global_batch(batch, mesh)
        times = []
        for _ in range(steps + 1):
            start = time.perf_counter()
            state, metrics = step(state, frozen, placed)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def drawn_text(batch_size: int, row_length: int) -> dict[str, np.ndarray]:
    """Draws captions with `LONGEST` random tokens each."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, VOCABULARY - 1, (batch_size, row_length), dtype=np.int32)
    tokens[:, LONGEST - 1 :] = 0
    tokens[:, LONGEST - 1] = VOCABULARY - 1
    return {"tokens": tokens}


def step_config(dtype: str, batch_size: int) -> Config:
    """Returns the config for the timed run."""
    return Config(
        steps=100,
        batch_size=batch_size,
        text=TextTrainingConfig(width=256, depth=6, num_heads=4),
        tokenizer=TokenizerConfig(context_length=CONTEXT),
        optimizer=OptimizerConfig(warmup_steps=10),
        precision=PrecisionConfig(compute=dtype, frozen=dtype),
    )


def frozen_arrays(config: Config) -> dict:
    """Draws random backbone arrays."""
    model = create_model(model_config(config, BACKBONE, VOCABULARY), config)
    abstract = abstract_arrays(lambda: model, sharding.make_mesh())
    return initial_arrays(model, {"backbone": abstract["backbone"]}, config.seed)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    base = step_config(options.dtype, options.batch)
    whole, short = (drawn_text(options.batch, length) for length in (CONTEXT, LONGEST))
    half = dataclasses.replace(base, head=HeadTrainingConfig(patch_tokens=98))
    no_drop = dataclasses.replace(base, head=HeadTrainingConfig(drop_path=0.0))
    print(f"{device()}, {options.dtype}")
    print("| step | seconds | ratio |\n|---|---|---|")

    def line(name: str, seconds: float, reference: float, against: str) -> float:
        print(f"| {name} | {seconds:.2f} | {seconds / reference:.2f} of {against} |", flush=True)
        return seconds

    full = seconds_per_step(base, options.steps, cached=True, text=whole)
    line("(a) cached features, rows of 77 tokens", full, full, "itself")
    trimmed = seconds_per_step(base, options.steps, cached=True, text=short)
    line("(b) rows trimmed to 32 tokens", trimmed, full, "(a)")
    kept = seconds_per_step(no_drop, options.steps, cached=True, text=short)
    line("(c) no drop path", kept, trimmed, "(b)")
    halved = seconds_per_step(half, options.steps, cached=True, text=short)
    line("(d) half of the patches", halved, trimmed, "(b)")
    running = seconds_per_step(base, options.steps, cached=False, text=short)
    line("(e) backbone run in the step", running, trimmed, "(b)")
    other = {"float32": "bfloat16", "bfloat16": "float32"}[options.dtype]
    cast = dataclasses.replace(base, precision=PrecisionConfig(compute=other, frozen=other))
    seconds = seconds_per_step(cast, options.steps, cached=True, text=short)
    line(f"(f) {other} instead", seconds, trimmed, "(b)")


if __name__ == "__main__":
    main()
