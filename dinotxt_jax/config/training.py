"""Settings of training runs."""

from __future__ import annotations

import dataclasses

from dinotxt_jax.config.data import DataConfig, TokenizerConfig
from dinotxt_jax.config.evaluation import EvaluationConfig


@dataclasses.dataclass(frozen=True)
class HeadTrainingConfig:
    """The trainable vision head; the defaults are the released recipe.

    Attributes:
        num_blocks: number of blocks. num_heads: attention heads (0: the backbone's).
        pooling: of patch tokens: "mean", "max" or "gem"; "none" compares the class token alone,
            and with num_blocks=0 as well the model is LiT (arXiv 2111.07991).
        drop_path: share of examples that skip a branch in training.
        layer_scale: initial LayerScale factor.
        patch_tokens: so many patch tokens, drawn anew for every step, enter the head in training
            (0: all, as released). Half of them cost half and lose little (as in arXiv 2212.00794);
            evaluation and inference always take all.
    """

    num_blocks: int = 2
    num_heads: int = 0
    pooling: str = "mean"
    drop_path: float = 0.3
    layer_scale: float = 1e-5
    patch_tokens: int = 0


@dataclasses.dataclass(frozen=True)
class TextTrainingConfig:
    """The text transformer; the defaults are the released recipe.

    Attributes:
        width, depth, num_heads: of the transformer; its MLP is four times as wide.
        pack: several captions share a row, as many as fit (exact, see docs/concepts.md); without,
            each has a row of the context length.
        trim: without `pack`: rows of a batch are cut to the longest caption, rounded up to a
            multiple of this many tokens (exact, since attention is causal; each length is compiled
            once); 0 never cuts.
    """

    width: int = 1280
    depth: int = 24
    num_heads: int = 20
    pack: bool = False
    trim: int = 0


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the released recipe.

    Attributes:
        learning_rate: peak, after `warmup_steps` of linear warm-up from 0; a cosine then ends at 0
            with the last step.
        beta1, beta2, epsilon: of Adam.
        weight_decay: decoupled, on arrays of two or more dimensions.
        warmup_steps: steps of linear warm-up.
    """

    learning_rate: float = 7e-4
    beta1: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-8
    weight_decay: float = 1e-4
    warmup_steps: int = 2000


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective.

    Attributes:
        kind: "softmax" (CLIP's) or "sigmoid" (SigLIP's, with a learned bias).
        chunk: columns of the contrastive logits that exist at a time, over all devices (rounded up
            to a multiple of their number). Memory on a device is its part of the batch x chunk;
            the result does not depend on it.
        max_logit_scale: exp(logit_scale) is clamped to [1, this] after every step.
        gram_weight: weight of the Gram loss, which holds the similarities among the head's patch
            tokens to the backbone's; 0 leaves it out.
        gram_patches: patch tokens of an image drawn for it (0: all).
        gram_normalize: whether patch tokens are L2-normalised in it.
    """

    kind: str = "softmax"
    chunk: int = 2048
    max_logit_scale: float = 100.0
    gram_weight: float = 0.0
    gram_patches: int = 0
    gram_normalize: bool = True


DTYPE_NAMES = ("float32", "bfloat16")
# What products of a frozen backbone may run in; "none": in its dtype.
PRODUCTS = ("none", "int8", "float8_e4m3fn")


@dataclasses.dataclass(frozen=True)
class PrecisionConfig:
    """Dtypes, by name (`DTYPE_NAMES`).

    Attributes:
        parameters: of trained arrays. compute: of matrix products in training.
        normalization: softmax, LayerNorm statistics. frozen: the backbone's arrays and products.
        frozen_products: "none", or "int8" or "float8_e4m3fn": kernels of the backbone's blocks are
            stored and multiplied so, with a factor per channel and per token (half the memory of
            bfloat16; docs/results.md says what it does to features).
    """

    parameters: str = "float32"
    compute: str = "bfloat16"
    normalization: str = "float32"
    frozen: str = "bfloat16"
    frozen_products: str = "none"


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices are arranged (`sharding.make_mesh`): data x fsdp x tensor of them.

    Attributes:
        data: replicas (-1: what is left). fsdp: parts of parameters and optimizer state.
        tensor: parts of attention heads and MLP channels.
        slices: TPU slices that the replicas are spread over (-1: those that there are).
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    slices: int = -1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Training checkpoints: one every `every` steps and after the last; the `keep` newest stay."""

    every: int = 1000
    keep: int = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """A training run.

    Attributes:
        seed: everything random derives from (seed, step, example index).
        steps: optimizer steps.
        batch_size: image-text pairs, over all devices, that are computed at once.
        accumulate_steps: so many batches make one update, the same as that of one batch of all
            their pairs: batch_size=8192, accumulate_steps=8 trains on 65,536 pairs a step. Backbone
            tokens of all of them are kept; head and text transformer run forward twice.
        backbone: model directory of the frozen backbone (`python -m weights_convert`).
        features: folder of cached backbone tokens (`python -m dinotxt_jax.precompute`); "" runs
            the backbone in every step.
        feature_views: precompute: prepared views of each image; epoch e trains on view e modulo
            this, so that augmentation survives caching.
        include_backbone: whether the final model directory holds the backbone's arrays, or names
            it by path and fingerprint.
        remat: what the backward pass recomputes: "none", "full" or "dots".
        topology: the TPU slices that the run is meant for, such as "v6e:16x16" ("": none);
            `python -m dinotxt_jax.plan` compiles for them.
        attention: how training computes attention: "xla", "grouped" (CPUs), "cudnn" (NVIDIA GPUs),
            "splash" (TPUs), or "auto": the one known to be best on the devices of the run
            (`models.attention`). `precompute` and models that are loaded take "auto".
        log_every: steps between two lines of `metrics.jsonl`.
        profile: steps to trace for xprof, "FIRST:LAST", counted from the start or resumption
            ("3:5": the first ones are compiled); the trace lies in the run's `tensorboard` folder.
    """

    seed: int = 0
    steps: int = 50_000
    batch_size: int = 65_536
    accumulate_steps: int = 1
    backbone: str = ""
    features: str = ""
    feature_views: int = 1
    include_backbone: bool = True
    remat: str = "none"
    topology: str = ""
    attention: str = "auto"
    log_every: int = 10
    profile: str = ""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    head: HeadTrainingConfig = HeadTrainingConfig()
    text: TextTrainingConfig = TextTrainingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    loss: LossConfig = LossConfig()
    precision: PrecisionConfig = PrecisionConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()

    @property
    def pairs_per_step(self) -> int:
        """Image-text pairs of an update."""
        return self.batch_size * self.accumulate_steps
