"""Training run settings."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.architecture import POOLINGS, divides
from dinotxt_jax.config.data import CAPTIONS, DataConfig, TokenizerConfig
from dinotxt_jax.config.evaluation import EvaluationConfig
from dinotxt_jax.config.ranges import Choice, Form, Range

LOSS_KINDS = ("softmax", "sigmoid")
REMAT_POLICIES = ("none", "full", "dots")
ATTENTIONS = ("auto", "xla", "grouped", "cudnn", "splash")
DTYPE_NAMES = ("float32", "bfloat16")
# Number formats for matrix products in the frozen backbone; "none": the backbone dtype.
PRODUCTS = ("none", "int8", "float8_e4m3fn")
# Steps are counted in 32 bits on devices.
MOST_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class HeadTrainingConfig:
    """The trainable vision head; the defaults are the released recipe."""

    num_blocks: Annotated[
        int, Range(0, 1000), "number of blocks (0: the tokens of the backbone as they are)"
    ] = 2
    num_heads: Annotated[
        int, Range(0, 1024), "attention heads of a block (0: as many as the backbone has)"
    ] = 0
    pooling: Annotated[
        str,
        Choice(POOLINGS),
        "pooling of patch tokens: mean, max or gem; none compares the class token alone, and with "
        "num_blocks=0 as well the model is LiT (arXiv 2111.07991)",
    ] = "mean"
    drop_path: Annotated[
        float, Range(0, 0.99), "fraction of examples that skip a branch in training"
    ] = 0.3
    layer_scale: Annotated[float, Range(0, 10), "initial LayerScale factor"] = 1e-5
    patch_tokens: Annotated[
        int,
        Range(0, 1_000_000),
        "number of patch tokens, drawn anew for every step, that enter the head in training (0: "
        "all, as released); half of them cost half and lose little (as in arXiv 2212.00794); "
        "evaluation and inference always take all",
    ] = 0


@dataclasses.dataclass(frozen=True)
class TextTrainingConfig:
    """The text transformer; the defaults are the released recipe."""

    width: Annotated[int, Range(1, 65_536), "width; the MLP is four times as wide"] = 1280
    depth: Annotated[int, Range(1, 1000), "number of blocks"] = 24
    num_heads: Annotated[int, Range(1, 1024), "attention heads of a block"] = 20
    pack: Annotated[
        bool,
        "several captions share a row, as many as fit (exact, see docs/concepts.md); otherwise "
        "each caption has a row of the context length",
    ] = False
    trim: Annotated[
        int,
        Range(0, 65_536),
        "without `pack`: rows of a batch are cut to the longest caption, rounded up to a multiple "
        "of this number of tokens (exact, since attention is causal; each length is compiled "
        "once); 0 never cuts",
    ] = 0

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        yield from divides(
            f"{key}.num_heads", self.num_heads, self.width, f"{key}.width={self.width}"
        )
        if self.pack and self.trim:
            yield (
                f"{key}.trim is {self.trim}, expected 0 with {key}.pack=True, since packed rows "
                f"are not cut; set it to 0, or {key}.pack=False."
            )


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the released recipe."""

    learning_rate: Annotated[
        float,
        Range(0, 1),
        "peak learning rate, reached after `warmup_steps` of linear warm-up from 0; a cosine then "
        "ends at 0 with the last step",
    ] = 7e-4
    # 1 - beta must not vanish in float32, since Adam divides by it.
    beta1: Annotated[float, Range(0, 0.99999), "decay rate of Adam's first moment"] = 0.9
    beta2: Annotated[float, Range(0, 0.99999), "decay rate of Adam's second moment"] = 0.99
    # Smaller numbers vanish in float32.
    epsilon: Annotated[
        float, Range(1e-30, 1), "added to the root of Adam's second moment before the division"
    ] = 1e-8
    weight_decay: Annotated[
        float, Range(0, 100), "decoupled weight decay, on arrays of two or more dimensions"
    ] = 1e-4
    warmup_steps: Annotated[
        int, Range(0, MOST_STEPS), "steps of linear warm-up, fewer than `config.steps`"
    ] = 2000


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective."""

    kind: Annotated[
        str, Choice(LOSS_KINDS), "softmax (CLIP's) or sigmoid (SigLIP's, with a learned bias)"
    ] = "softmax"
    chunk: Annotated[
        int,
        Range(1, 2**31 - 1),
        "columns of the contrastive logits that exist at a time, over all devices (rounded up to a "
        "multiple of their number); memory on a device is its part of the batch x chunk, and the "
        "result does not depend on it",
    ] = 2048
    max_logit_scale: Annotated[
        float, Range(1, 10_000), "exp(logit_scale) is clamped to 1 to this after every step"
    ] = 100.0
    gram_weight: Annotated[
        float,
        Range(0, 1_000_000),
        "weight of the Gram loss, which keeps the similarities among the patch tokens of the head "
        "near those of the backbone (0: not computed)",
    ] = 0.0
    gram_patches: Annotated[
        int,
        Range(0, 1_000_000),
        "number of patch tokens of an image that are drawn for the Gram loss (0: all)",
    ] = 0
    gram_normalize: Annotated[bool, "whether patch tokens are L2-normalised in the Gram loss"] = (
        True
    )


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Dtypes, by name."""

    parameters: Annotated[str, Choice(DTYPE_NAMES), "dtype of trained arrays"] = "float32"
    compute: Annotated[str, Choice(DTYPE_NAMES), "dtype of matrix products in training"] = (
        "bfloat16"
    )
    normalization: Annotated[
        str, Choice(DTYPE_NAMES), "dtype of softmax and LayerNorm statistics"
    ] = "float32"
    frozen: Annotated[str, Choice(DTYPE_NAMES), "dtype of the backbone's arrays and products"] = (
        "bfloat16"
    )
    frozen_products: Annotated[
        str,
        Choice(PRODUCTS),
        "number format in which the kernels of the backbone's blocks are stored and multiplied, "
        "with a factor per channel and per token (int8 and float8_e4m3fn take half the memory of "
        "bfloat16; docs/results.md gives the effect on features); none: the dtype `frozen`",
    ] = "none"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged (`sharding.make_mesh`): a mesh of data x fsdp x tensor."""

    data: Annotated[
        int, Range(1, 2**20, special=-1), "number of replicas (-1: the devices that are left)"
    ] = -1
    fsdp: Annotated[
        int,
        Range(1, 2**20),
        "number of parts that parameters and optimizer state are split into",
    ] = 1
    tensor: Annotated[
        int,
        Range(1, 2**20),
        "number of parts that attention heads and MLP channels are split into",
    ] = 1
    slices: Annotated[
        int,
        Range(1, 2**20, special=-1),
        "number of TPU slices that the replicas are spread over (-1: all slices there are)",
    ] = -1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Training checkpoints, in the work directory."""

    every: Annotated[
        int, Range(1, MOST_STEPS), "steps between two checkpoints; the last step is saved too"
    ] = 1000
    keep: Annotated[int, Range(1, 1_000_000), "number of newest checkpoints that are kept"] = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run."""

    seed: Annotated[
        int,
        Range(0, 2**63 - 1),
        "every random choice derives from (seed, step, example index)",
    ] = 0
    steps: Annotated[int, Range(1, MOST_STEPS), "number of optimizer steps"] = 50_000
    batch_size: Annotated[
        int, Range(1, 2**24), "image-text pairs, over all devices, that are computed at once"
    ] = 65_536
    accumulate_steps: Annotated[
        int,
        Range(1, 65_536),
        "number of batches that make one update, the same as that of one batch of all their pairs: "
        "batch_size=8192, accumulate_steps=8 trains on 65,536 pairs per step; backbone tokens of "
        "all of them are kept, and head and text transformer run forward twice",
    ] = 1
    backbone: Annotated[
        str, "model directory of the frozen backbone, made by `python -m weights_convert`"
    ] = ""
    features: Annotated[
        str,
        "folder of cached backbone tokens, written by `python -m dinotxt_jax.precompute` (empty: "
        "the backbone runs in every step)",
    ] = ""
    feature_views: Annotated[
        int,
        Range(1, 1_000_000),
        "precompute: number of prepared views of each image; epoch e trains on view e modulo this "
        "number, so that augmentation survives caching",
    ] = 1
    include_backbone: Annotated[
        bool,
        "whether the final model directory holds the arrays of the backbone, or names the backbone "
        "by path and fingerprint",
    ] = True
    remat: Annotated[
        str, Choice(REMAT_POLICIES), "what the backward pass recomputes: none, full or dots"
    ] = "none"
    topology: Annotated[
        str,
        Form(r"(?:\d+\*)?\w+:\d+(?:x\d+)+", "KIND:AxB, KIND:AxBxC or N*KIND:...", "v6e:16x16"),
        "TPU slices that the run is meant for; `python -m dinotxt_jax.plan` compiles for them",
    ] = ""
    attention: Annotated[
        str,
        Choice(ATTENTIONS),
        "implementation of attention in training: xla, grouped (CPUs), cudnn (NVIDIA GPUs), splash "
        "(TPUs), or auto: the fastest that is known for the devices of the run "
        "(`models.attention`); `precompute` and models that are loaded take auto",
    ] = "auto"
    log_every: Annotated[
        int, Range(1, MOST_STEPS), "steps between two lines of `metrics.jsonl`"
    ] = 10
    profile: Annotated[
        str,
        Form(r"[1-9]\d{0,9}:[1-9]\d{0,9}", "FIRST:LAST", "3:5"),
        "steps to trace for xprof, counted from the start or resumption (the first ones are "
        "compiled, so begin later); the trace lies in the folder `tensorboard` of the run",
    ] = ""
    data: Annotated[DataConfig, "training images and captions"] = DataConfig()
    tokenizer: Annotated[TokenizerConfig, "token ids of captions"] = TokenizerConfig()
    head: Annotated[HeadTrainingConfig, "the vision head"] = HeadTrainingConfig()
    text: Annotated[TextTrainingConfig, "the text transformer"] = TextTrainingConfig()
    optimizer: Annotated[OptimizerConfig, "AdamW and its schedule"] = OptimizerConfig()
    loss: Annotated[LossConfig, "the objective"] = LossConfig()
    precision: Annotated[PrecisionConfig, "dtypes"] = PrecisionConfig()
    mesh: Annotated[MeshConfig, "arrangement of devices"] = MeshConfig()
    checkpoint: Annotated[CheckpointConfig, "checkpoints"] = CheckpointConfig()
    evaluation: Annotated[EvaluationConfig, "evaluation during training"] = EvaluationConfig()

    @property
    def pairs_per_step(self) -> int:
        """Image-text pairs per optimizer update."""
        return self.batch_size * self.accumulate_steps

    def conflicts(self, key: str) -> Iterator[str]:
        """Yields sentences about settings that cannot be combined; `key` is the group key."""
        if self.optimizer.warmup_steps >= self.steps:
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
