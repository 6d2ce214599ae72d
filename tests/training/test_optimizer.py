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


def test_the_schedule_equals_the_official_one(golden: dict[str, np.ndarray]) -> None:
    schedule = jax.vmap(learning_rate_schedule(7e-4, 2000, 50_000))
    # The learning rate is 7e-4 and computed in float32: half a unit in the last place of it.
    np.testing.assert_allclose(schedule(golden["steps"]), golden["lr"], rtol=0, atol=1e-10)
    every = np.arange(0, 50_000, 100)
    np.testing.assert_allclose(schedule(every), golden["lr_every100"], rtol=0, atol=1e-10)
    short = jax.vmap(learning_rate_schedule(7e-4, 5, 20))(np.arange(20))
    np.testing.assert_allclose(short, golden["lr20"], rtol=0, atol=1e-10)


def test_adamw_follows_the_official_trajectory(golden: dict[str, np.ndarray]) -> None:
    axes = {"w": ("embed", "mlp"), "b": ("mlp",)}
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
        np.testing.assert_allclose(parameters["w"], golden["adamw_w"][step], rtol=0, atol=2e-6)
        np.testing.assert_allclose(parameters["b"], golden["adamw_b"][step], rtol=0, atol=2e-6)


def test_the_same_arrays_are_decayed_as_in_the_official_code(
    tiny_dinotxt: Path, goldens: Path
) -> None:
    """Compared through the key tables of the conversion, which know both names of an array."""
    groups = json.loads((goldens / "train/weight_decay_groups.json").read_text())
    config = Config(batch_size=8, optimizer=OptimizerConfig(warmup_steps=1), steps=10)
    trainer = make_trainer(config, read_description(tiny_dinotxt), 133, sharding.make_mesh())
    mask = decay_mask(trainer.logical_axes)
    found: dict[str, list[str]] = {"decay": [], "no_decay": ["logit_scale"]}
    for prefix, layout in (("visual_model.head.", VISION_HEAD), ("text_model.", TEXT_ENCODER)):
        for rule in layout.rules:
            decayed = functools.reduce(operator.getitem, rule.place.split("/"), mask)
            for layer in range(3 if prefix == "text_model." else 2) if rule.stacked else (None,):
                found["decay" if decayed else "no_decay"].append(prefix + rule.keys(layer)[0])
    assert not mask["logit_scale"]
    assert {name: sorted(keys) for name, keys in found.items()} == {
        name: sorted(keys) for name, keys in groups.items()
    }
