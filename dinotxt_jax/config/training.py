"""Training run settings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.data import DataConfig, TokenizerConfig
from dinotxt_jax.config.evaluation import EvaluationConfig
from dinotxt_jax.config.ranges import Choice, Form, Range
from dinotxt_jax.config.recipe import (
    MOST_STEPS,
    HeadTrainingConfig,
    LossConfig,
    OptimizerConfig,
    TextTrainingConfig,
)
from dinotxt_jax.config.sources import CAPTIONS
from dinotxt_jax.errors import UserError

START_PARTS = ("head", "text")
REMAT_POLICIES = ("none", "full", "dots")
ATTENTIONS = ("auto", "xla", "grouped", "cudnn", "splash")
DTYPE_NAMES = ("float32", "bfloat16")
# Number formats for matrix products in the frozen backbone; "none": the backbone dtype.
PRODUCTS = ("none", "int8", "float8_e4m3fn")
# What a step with a non-finite loss or gradient does to a run.
ON_NONFINITE = ("stop", "skip")
DEFAULT_STEPS = 50_000
NO_TRACKER = "none"
TRACKERS = (NO_TRACKER, "wandb", "trackio")


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Array and computation dtypes, by name."""

    parameters: Annotated[str, Choice(DTYPE_NAMES), "trained array dtype"] = "float32"
    compute: Annotated[str, Choice(DTYPE_NAMES), "matrix product dtype in training"] = "bfloat16"
    normalization: Annotated[
        str, Choice(DTYPE_NAMES), "dtype for softmax and LayerNorm statistics"
    ] = "float32"
    frozen: Annotated[str, Choice(DTYPE_NAMES), "dtype for backbone arrays and matrix products"] = (
        "bfloat16"
    )
    frozen_products: Annotated[
        str,
        Choice(PRODUCTS),
        "number format for storing and multiplying the kernels in the backbone blocks, with a "
        "scale factor per channel and per token (int8 and float8_e4m3fn use half the memory of "
        "bfloat16; docs/results.md gives the effect on features); none: use the `frozen` dtype",
    ] = "none"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh with the shape data x fsdp x tensor (`sharding.make_mesh`)."""

    data: Annotated[
        int, Range(1, 2**20, special=-1), "number of replicas (-1: use all remaining devices)"
    ] = -1
    fsdp: Annotated[
        int,
        Range(1, 2**20),
        "number of parameter and optimizer state shards",
    ] = 1
    tensor: Annotated[
        int,
        Range(1, 2**20),
        "number of attention head and MLP channel shards",
    ] = 1
    slices: Annotated[
        int,
        Range(1, 2**20, special=-1),
        "number of TPU slices over which the replicas are distributed (-1: all slices)",
    ] = -1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Training checkpoints, in the work directory."""

    every: Annotated[
        int, Range(1, MOST_STEPS), "steps between checkpoints; the last step is also saved"
    ] = 1000
    keep: Annotated[int, Range(1, 1_000_000), "number of most recent checkpoints to keep"] = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings for a training run."""

    seed: Annotated[
        int,
        Range(0, 2**63 - 1),
        "every random choice derives from (seed, step, example index)",
    ] = 0
    steps: Annotated[
        int,
        Range(1, MOST_STEPS),
        "number of optimizer steps; the data repeat without an end",
    ] = DEFAULT_STEPS
    epochs: Annotated[
        float,
        Range(0, 1_000_000),
        "training pairs, as a multiple of the number of examples in all sources; sets `steps` when "
        "training has opened the data (0: use `steps`)",
    ] = 0.0
    batch_size: Annotated[int, Range(1, 2**24), "image-text pairs per batch, over all devices"] = (
        65_536
    )
    accumulate_steps: Annotated[
        int,
        Range(1, 65_536),
        "number of batches per optimizer update; the update is the same as with a single batch "
        "containing all pairs: batch_size=8192, accumulate_steps=8 trains on 65,536 pairs per "
        "step; the backbone tokens for all pairs are kept in memory, and the head and the text "
        "transformer run forward twice",
    ] = 1
    backbone: Annotated[
        str, "model directory with the frozen backbone, written by `python -m weights_convert`"
    ] = ""
    start_from: Annotated[
        str,
        "model directory (dino.txt, CLIP, SigLIP, TIPS) whose trained parts begin the run; its "
        "text transformer brings its architecture and tokenizer, in place of `text.width`, "
        "`text.depth`, `text.num_heads` and `tokenizer` (empty: all parts begin anew)",
    ] = ""
    start_parts: Annotated[
        tuple[str, ...],
        Choice(START_PARTS),
        "parts taken from `start_from`: text (with the logit scale) and head",
    ] = START_PARTS
    features: Annotated[
        str,
        "folder with cached backbone tokens, written by `python -m dinotxt_jax.precompute` "
        "(empty: run the backbone in every step)",
    ] = ""
    feature_views: Annotated[
        int,
        Range(1, 1_000_000),
        "precompute: number of prepared views per image; epoch e trains on view (e modulo this "
        "number), so that augmentation still applies with caching",
    ] = 1
    include_backbone: Annotated[
        bool,
        "whether the final model directory contains the backbone arrays; otherwise it "
        "references the backbone by path and fingerprint",
    ] = True
    remat: Annotated[
        str,
        Choice(REMAT_POLICIES),
        "recomputation in the backward pass: none, full (everything) or dots (everything except "
        "matrix products)",
    ] = "none"
    topology: Annotated[
        str,
        Form(r"(?:\d+\*)?\w+:\d+(?:x\d+)+", "KIND:AxB, KIND:AxBxC or N*KIND:...", "v6e:16x16"),
        "target TPU slices for the run; `python -m dinotxt_jax.plan` compiles for them",
    ] = ""
    attention: Annotated[
        str,
        Choice(ATTENTIONS),
        "attention implementation in training: xla, grouped (CPUs), cudnn (NVIDIA GPUs), splash "
        "(TPUs), or auto: the fastest known implementation for the devices in use "
        "(`models.attention`); `precompute` and loaded models use auto",
    ] = "auto"
    on_nonfinite: Annotated[
        str,
        Choice(ON_NONFINITE),
        "reaction to a loss or gradient norm that is not finite, whose update is never applied: "
        "stop the run (exit code 3), or skip the step and count it in the metrics",
    ] = "stop"
    max_nonfinite: Annotated[
        int,
        Range(1, MOST_STEPS),
        "with `on_nonfinite=skip`: number of non-finite steps in a row that stop the run",
    ] = 10
    log_every: Annotated[int, Range(1, MOST_STEPS), "steps between lines in `metrics.jsonl`"] = 10
    tracker: Annotated[
        str,
        Choice(TRACKERS),
        "experiment tracker that receives the metrics as well: none, wandb or trackio",
    ] = NO_TRACKER
    tracker_project: Annotated[str, "project name in the tracker"] = "dinotxt_jax"
    profile: Annotated[
        str,
        Form(r"[1-9]\d{0,9}:[1-9]\d{0,9}", "FIRST:LAST", "3:5"),
        "steps to trace for xprof, counted from the start or resumption (the first steps "
        "include compilation, so start later); the trace is written to the `tensorboard` folder "
        "in the work directory",
    ] = ""
    data: Annotated[DataConfig, "training images and captions"] = DataConfig()
    tokenizer: Annotated[TokenizerConfig, "caption tokenization"] = TokenizerConfig()
    head: Annotated[HeadTrainingConfig, "vision head"] = HeadTrainingConfig()
    text: Annotated[TextTrainingConfig, "text transformer"] = TextTrainingConfig()
    optimizer: Annotated[OptimizerConfig, "AdamW and learning rate schedule"] = OptimizerConfig()
    loss: Annotated[LossConfig, "training objective"] = LossConfig()
    precision: Annotated[PrecisionConfig, "dtypes"] = PrecisionConfig()
    mesh: Annotated[MeshConfig, "device mesh"] = MeshConfig()
    checkpoint: Annotated[CheckpointConfig, "checkpoints"] = CheckpointConfig()
    evaluation: Annotated[EvaluationConfig, "evaluation during training"] = EvaluationConfig()

    @property
    def pairs_per_step(self) -> int:
        """Image-text pairs per optimizer update."""
        return self.batch_size * self.accumulate_steps

    def for_examples(self, examples: int) -> Config:
        """Returns the settings with the number of steps in which `epochs` use `examples` examples.

        Settings without `epochs` are returned unchanged.

        Raises:
            UserError: these are too many steps.
        """
        if not self.epochs:
            return self
        steps = max(1, math.ceil(self.epochs * examples / self.pairs_per_step))
        if steps > MOST_STEPS:
            raise UserError(
                f"config.epochs is {self.epochs:g}, which takes {steps} steps for {examples} "
                f"examples, expected at most {MOST_STEPS}; lower it, or raise config.batch_size."
            )
        return dataclasses.replace(self, epochs=0.0, steps=steps)

    @property
    def nonfinite_limit(self) -> int:
        """Non-finite steps in a row that stop the run."""
        return self.max_nonfinite if self.on_nonfinite == "skip" else 1

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        if self.epochs and self.steps != DEFAULT_STEPS:
            yield (
                f"{key}.epochs is {self.epochs:g} and {key}.steps is {self.steps}, expected only "
                f"one of them; set {key}.epochs=0, or leave {key}.steps at {DEFAULT_STEPS}."
            )
        if self.optimizer.warmup_steps >= self.steps and not self.epochs:
            yield (
                f"{key}.optimizer.warmup_steps is {self.optimizer.warmup_steps}, expected fewer "
                f"than {key}.steps={self.steps}; lower it."
            )
        first, _, last = self.profile.partition(":")
        if self.profile and int(first) > int(last):
            yield (
                f"{key}.profile is {self.profile!r}, expected FIRST:LAST with FIRST not after "
                f"LAST; set it to {last}:{first}."
            )
        yield from self.data.content_conflicts(f"{key}.data", CAPTIONS, "training")
        yield from self.data.preparation_conflicts(f"{key}.data")
        yield from self.evaluation.training_conflicts(f"{key}.evaluation")
