"""AdamW with the official schedule and weight-decay rule."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from dinotxt_jax.config import OptimizerConfig


def learning_rate_schedule(peak: float, warmup_steps: int, steps: int) -> optax.Schedule:
    """Returns a schedule: linear warm-up from 0, then a cosine that reaches 0 at the last step.

    The official trainer indexes an array of `steps` rates: rate[0] = 0, rate[warmup_steps] = peak,
    rate[steps - 1] = 0 (`CosineScheduler` in facebookresearch/dinov2).
    """

    def schedule(step: Any) -> jax.Array:
        step = jnp.asarray(step, float)  # float32; float64 where 64-bit types are enabled
        warmup = peak * step / max(warmup_steps, 1)
        progress = (step - warmup_steps) / max(steps - 1 - warmup_steps, 1)
        cosine = peak * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0)))
        return jnp.where(step < warmup_steps, warmup, cosine)

    return schedule


def decay_mask(logical_axes: Any) -> Any:
    """Returns a weight decay mask: True for arrays with at least two axes, as in the official code.

    The "layers" axis in stacked blocks does not count. Therefore biases, norms and LayerScale are
    not decayed, while token and position embeddings are.

    Args:
        logical_axes: tree with a tuple of axis names for each array.
    """

    def decayed(axes: tuple[str, ...]) -> bool:
        return len([name for name in axes if name != "layers"]) >= 2

    return jax.tree.map(decayed, logical_axes, is_leaf=lambda leaf: isinstance(leaf, tuple))


def make_optimizer(
    config: OptimizerConfig, steps: int, logical_axes: Any
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns AdamW over the trained arrays, and the learning rate schedule.

    If `config.clip_norm` is set, gradients with a larger global norm are first scaled down to it.

    Args:
        config: rates, betas and the clipping limit.
        steps: number of steps in the run.
        logical_axes: tree with a tuple of axis names for each trained array.
    """
    schedule = learning_rate_schedule(config.learning_rate, config.warmup_steps, steps)
    optimizer = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decay_mask(logical_axes),
    )
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    return optimizer, schedule
