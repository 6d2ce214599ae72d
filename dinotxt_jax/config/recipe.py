"""Settings of a recipe: the trained head and text transformer, the optimizer and the loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated

from dinotxt_jax.config.architecture import POOLINGS, divides
from dinotxt_jax.config.ranges import Choice, Range

LOSS_KINDS = ("softmax", "sigmoid")
# Steps are counted in 32 bits on devices.
MOST_STEPS = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class HeadTrainingConfig:
    """Trainable vision head; the defaults match the released recipe."""

    num_blocks: Annotated[
        int, Range(0, 1000), "number of blocks (0: backbone tokens unchanged)"
    ] = 2
    num_heads: Annotated[
        int, Range(0, 1024), "attention heads per block (0: same as the backbone)"
    ] = 0
    pooling: Annotated[
        str,
        Choice(POOLINGS),
        "patch token pooling: mean, max or gem; none uses only the class token, and none with "
        "num_blocks=0 is LiT (arXiv 2111.07991)",
    ] = "mean"
    drop_path: Annotated[
        float,
        Range(0, 0.99),
        "fraction of examples that skip a residual branch in training (stochastic depth)",
    ] = 0.3
    layer_scale: Annotated[float, Range(0, 10), "initial LayerScale factor"] = 1e-5
    patch_tokens: Annotated[
        int,
        Range(0, 1_000_000),
        "number of head input patch tokens in training, sampled at random in each step (0: all, "
        "as released); using half halves the cost with little loss in quality (as in arXiv "
        "2212.00794); evaluation and inference always use all",
    ] = 0


@dataclasses.dataclass(frozen=True)
class TextTrainingConfig:
    """Trainable text transformer; the defaults match the released recipe."""

    width: Annotated[
        int, Range(1, 65_536), "residual stream width; the MLP hidden width is 4 times this value"
    ] = 1280
    depth: Annotated[int, Range(1, 1000), "number of blocks"] = 24
    num_heads: Annotated[int, Range(1, 1024), "attention heads per block"] = 20
    pack: Annotated[
        bool,
        "whether to pack as many captions into each row as fit (exact, see docs/concepts.md); "
        "otherwise each caption has a separate row with the full context length",
    ] = False
    trim: Annotated[
        int,
        Range(0, 65_536),
        "without `pack`: trim the rows in each batch to the longest caption, rounded up to "
        "a multiple of this number of tokens (exact, since attention is causal; each length is "
        "compiled once); 0: no trimming",
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
    """AdamW and learning rate schedule; the defaults match the released recipe."""

    learning_rate: Annotated[
        float,
        Range(0, 1),
        "peak learning rate, after `warmup_steps` steps of linear warm-up from 0; cosine decay "
        "to 0 at the last step follows",
    ] = 7e-4
    # 1 - beta must not vanish in float32, since Adam divides by it.
    beta1: Annotated[float, Range(0, 0.99999), "decay rate of Adam's first moment"] = 0.9
    beta2: Annotated[float, Range(0, 0.99999), "decay rate of Adam's second moment"] = 0.99
    # Smaller numbers vanish in float32.
    epsilon: Annotated[
        float,
        Range(1e-30, 1),
        "constant added to the square root of Adam's second moment in the denominator",
    ] = 1e-8
    weight_decay: Annotated[
        float, Range(0, 100), "decoupled weight decay for arrays with two or more dimensions"
    ] = 1e-4
    warmup_steps: Annotated[
        int, Range(0, MOST_STEPS), "number of linear warm-up steps, less than `config.steps`"
    ] = 2000
    clip_norm: Annotated[
        float,
        Range(0, 1_000_000),
        "upper limit for the global gradient norm; larger gradients are scaled down to it (0: no "
        "clipping, as released)",
    ] = 0.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Training objective."""

    kind: Annotated[
        str, Choice(LOSS_KINDS), "softmax (CLIP's) or sigmoid (SigLIP's, with a learned bias)"
    ] = "softmax"
    chunk: Annotated[
        int,
        Range(1, 2**31 - 1),
        "contrastive logit columns computed at a time, over all devices (rounded up to a "
        "multiple of the device count); memory per device is local batch x chunk; the result "
        "does not depend on this setting",
    ] = 2048
    max_logit_scale: Annotated[
        float,
        Range(1, 10_000),
        "upper limit for exp(logit_scale), which is clamped between 1 and this value after "
        "every step",
    ] = 100.0
    gram_weight: Annotated[
        float,
        Range(0, 1_000_000),
        "Gram loss weight; this loss keeps patch token similarities in the head close to those "
        "in the backbone (0: not computed)",
    ] = 0.0
    gram_patches: Annotated[
        int,
        Range(0, 1_000_000),
        "number of patch tokens sampled per image for the Gram loss (0: all)",
    ] = 0
    gram_normalize: Annotated[bool, "whether patch tokens are L2-normalised in the Gram loss"] = (
        True
    )
