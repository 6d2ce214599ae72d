"""AdamW, schedule and decay rule against the official code."""

from __future__ import annotations

import functools
import json
import operator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import EXACT, ROUNDING, SCHEDULE_ROUNDINGS, assert_exact

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, OptimizerConfig
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.training.optimizer import decay_mask, learning_rate_schedule, make_optimizer
from dinotxt_jax.training.step import make_trainer
from weights_convert.layouts.dinotxt_v2 import TEXT_ENCODER, VISION_HEAD


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    folder = Path(__file__).parent.parent / "goldens/losses"
    return dict(np.load(folder / "schedule_adamw.npz"))


@pytest.mark.parametrize("float64", [True, False])
def test_the_schedule_equals_the_official_one(golden: dict[str, np.ndarray], float64: bool) -> None:
    peak = 7e-4
    bound = EXACT * peak if float64 else SCHEDULE_ROUNDINGS * ROUNDING * peak
    with jax.enable_x64(float64):
        schedule = jax.vmap(learning_rate_schedule(peak, 2000, 50_000))
        every = schedule(np.arange(0, 50_000, 100))
        short = jax.vmap(learning_rate_schedule(peak, 5, 20))(np.arange(20))
        rates = schedule(golden["steps"])
    assert rates.dtype == ("float64" if float64 else "float32")
    np.testing.assert_allclose(rates, golden["lr"], rtol=0, atol=bound)
    np.testing.assert_allclose(every, golden["lr_every100"], rtol=0, atol=bound)
    np.testing.assert_allclose(short, golden["lr20"], rtol=0, atol=bound)


def test_adamw_follows_the_official_trajectory(golden: dict[str, np.ndarray]) -> None:
    axes = {"w": ("embed", "mlp"), "b": ("mlp",)}
    with jax.enable_x64(True):
        optimizer, _ = make_optimizer(OptimizerConfig(warmup_steps=5), 20, axes)
        parameters = {"w": jnp.asarray(golden["adamw_w0"]), "b": jnp.asarray(golden["adamw_b0"])}
        state = optimizer.init(parameters)
        for step in range(20):
            gradients = {
                "w": jnp.asarray(golden["adamw_grad_w"][step]),
                "b": jnp.asarray(golden["adamw_grad_b"][step]),
            }
            updates, state = optimizer.update(gradients, state, parameters)
            parameters = optax.apply_updates(parameters, updates)
            for name in ("w", "b"):
                assert_exact(parameters[name], golden[f"adamw_{name}"][step], f"{name} {step}")


def test_the_same_arrays_are_decayed_as_in_the_official_code(
    tiny_dinotxt: Path, goldens: Path
) -> None:
    """Compares through the conversion key tables, which contain both names for each array."""
    groups = json.loads((goldens / "train/weight_decay_groups.json").read_text())
    config = Config(batch_size=8, optimizer=OptimizerConfig(warmup_steps=1), steps=10)
    trainer = make_trainer(config, read_description(tiny_dinotxt), 133, sharding.make_mesh())
    mask = decay_mask(trainer.logical_axes)
    result: dict[str, list[str]] = {"decay": [], "no_decay": ["logit_scale"]}
    for prefix, layout in (("visual_model.head.", VISION_HEAD), ("text_model.", TEXT_ENCODER)):
        for rule in layout.rules:
            decayed = functools.reduce(operator.getitem, rule.place.split("/"), mask)
            for layer in range(3 if prefix == "text_model." else 2) if rule.stacked else (None,):
                result["decay" if decayed else "no_decay"].append(prefix + rule.keys(layer)[0])
    assert not mask["logit_scale"]
    assert {name: sorted(keys) for name, keys in result.items()} == {
        name: sorted(keys) for name, keys in groups.items()
    }
