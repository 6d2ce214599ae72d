"""Training steps for the reference model (`goldens/train`) on any mesh, in float32 or float64."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from packed import packed

from dinotxt_jax import sharding
from dinotxt_jax.config import (
    Config,
    HeadTrainingConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
)
from dinotxt_jax.storage.model_arrays import load_parts
from dinotxt_jax.storage.model_directory import Preprocessing, read_description
from dinotxt_jax.training.health import Health
from dinotxt_jax.training.step import Trainer, TrainState, make_trainer

OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
"""Compiler options as in real runs, where most tests compile without optimisation."""

CONFIG = Config(
    steps=20,
    batch_size=16,
    head=HeadTrainingConfig(drop_path=0.0, num_heads=4),
    text=TextTrainingConfig(width=64, depth=3, num_heads=4),
    precision=PrecisionConfig(compute="float32", frozen="float32"),
    optimizer=OptimizerConfig(warmup_steps=5),
)
_FLOAT64 = PrecisionConfig(
    parameters="float64", compute="float64", normalization="float64", frozen="float64"
)
# The reference images are already normalised.
_IDENTITY = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def in_float64(config: Config) -> Config:
    """Returns a config that computes in float64 throughout."""
    return dataclasses.replace(config, precision=_FLOAT64)


@functools.cache
def golden() -> dict[str, np.ndarray]:
    """Returns the batch and the 20 steps recorded from the official loop."""
    return dict(np.load(Path(__file__).parent.parent / "goldens/train/train.npz"))


class Run(NamedTuple):
    """The results of a training run.

    Attributes:
        trainable: arrays after the last step.
        gradients: first-step gradients, recovered from Adam's first moment after that step.
        metrics: {name: values [steps]}.
    """

    trainable: dict[str, Any]
    gradients: dict[str, Any]
    metrics: dict[str, np.ndarray]


class Setting:
    """The reference model and recipe on a mesh; `setting` caches the instances."""

    def __init__(
        self, model: Path, config: Config, data: int, fsdp: int, tensor: int, optimized: bool
    ):
        self.model = model
        self.mesh = sharding.make_mesh(
            data, fsdp, tensor, devices=jax.devices()[: data * fsdp * tensor]
        )
        self.is_float64 = config.precision == _FLOAT64
        with self.context():
            description = dataclasses.replace(read_description(model), preprocessing=_IDENTITY)
            self.trainer: Trainer = make_trainer(config, description, 133, self.mesh)
            self._step = self.trainer.compiled_step()
            if optimized:
                self._step = jax.jit(
                    self.trainer.train_step, donate_argnums=0, compiler_options=OPTIMIZED
                )
            self._abstract = self.trainer.abstract_state()

    @contextlib.contextmanager
    def context(self) -> Any:
        """Returns the context in which this setting creates arrays and computes with them."""
        with jax.enable_x64(self.is_float64), jax.set_mesh(self.mesh):
            yield

    @functools.cached_property
    def parts(self) -> dict[str, Any]:
        """Returns the model's stored arrays, placed on the mesh."""
        with self.context():
            parts = load_parts(self.model, self.trainer.abstract)
            if not self.is_float64:
                return parts
            # Orbax reads in separate threads, where 64-bit types are off.
            return jax.tree.map(
                lambda array, abstract: jax.device_put(
                    np.asarray(array, abstract.dtype), abstract.sharding
                ),
                parts,
                self.trainer.abstract,
            )

    def backbone_tokens(self, images: np.ndarray | None = None) -> np.ndarray:
        """Computes backbone tokens for normalised images [b h w 3], by default the reference."""
        if images is None:
            images = np.moveaxis(golden()["images"], 1, -1)
        with self.context():
            backbone = {"backbone": self.parts["backbone"]}
            encode = jax.jit(lambda arrays, x: self.trainer.merge(arrays).backbone.tokens(x))
            return np.asarray(encode(backbone, images))

    def initial_state(self) -> TrainState:
        """Returns the state before the first step, with the reference values for trained arrays."""
        stored = _host_parts(self.model)
        arrays = {name: stored.get(name) for name in self._abstract.trainable}
        if "logit_bias" in arrays:  # the reference has none
            arrays |= {"logit_bias": np.float32(-10.0)}
        trainable = jax.tree.map(
            lambda array, abstract: np.asarray(array, abstract.dtype),
            arrays,
            self._abstract.trainable,
        )
        places = jax.tree.map(lambda leaf: leaf.sharding, self._abstract)

        health = Health.initial(self.mesh)

        def state(trainable: Any) -> TrainState:
            optimizer = self.trainer.optimizer.init(trainable)
            return TrainState(jnp.zeros((), "int32"), trainable, optimizer, health)

        return jax.jit(state, out_shardings=places)(trainable)

    def run(
        self,
        steps: int,
        *,
        tokens: np.ndarray | None = None,
        pack: bool = False,
        repeats: int = 1,
    ) -> Run:
        """Trains on the reference batch from the reference weights, or on other `tokens`.

        Args:
            steps: number of updates.
            tokens: int[16 77], replaces the reference tokens.
            pack: several captions share a row.
            repeats: number of times that the 16 pairs are repeated in the batch.
        """
        tokens = golden()["tokens"] if tokens is None else tokens
        features = _reference_features(self.model, self.is_float64)
        tokens, features = (np.concatenate([x] * repeats) for x in (tokens, features))
        parts = sharding.batch_parts(self.mesh) * self.trainer.config.accumulate_steps
        text = packed(tokens, parts)._asdict() if pack else {"tokens": tokens}
        history, gradients = [], None
        # After one step, Adam's first moment is this fraction of the gradient.
        share = 1 - self.trainer.config.optimizer.beta1
        with self.context():
            state = self.initial_state()
            placed = sharding.global_batch({"features": features} | text, self.mesh)
            for _ in range(steps):
                state, metrics = self._step(state, {}, placed)
                history.append(jax.device_get(metrics))
                if gradients is None:
                    moment = jax.device_get(state.optimizer[0].mu)
                    gradients = jax.tree.map(lambda array: array / share, moment)
            trainable = jax.device_get(state.trainable)
        metrics = {name: np.asarray([row[name] for row in history]) for name in history[0]}
        assert gradients is not None
        return Run(trainable, gradients, metrics)


_SETTINGS: dict[str, Setting] = {}


def setting(
    model: Path,
    config: Config,
    data: int = 8,
    fsdp: int = 1,
    tensor: int = 1,
    *,
    optimized: bool = False,
) -> Setting:
    """Returns the cached setting for a run on a mesh, `optimized` for more than a few steps."""
    arguments = (model, config, data, fsdp, tensor, optimized)
    key = repr(arguments)  # a config holds dicts, which have no hash
    if key not in _SETTINGS:
        _SETTINGS[key] = Setting(*arguments)
    return _SETTINGS[key]


@functools.cache
def float64_run(model: Path, steps: int = CONFIG.steps) -> Run:
    """Runs float64 steps on one device, the reference for all other runs."""
    return setting(model, in_float64(CONFIG), 1, optimized=True).run(steps)


@functools.cache
def _host_parts(model: Path) -> dict[str, Any]:
    return jax.device_get(setting(model, CONFIG, 1).parts)


@functools.cache
def _reference_features(model: Path, is_float64: bool) -> np.ndarray:
    return setting(model, in_float64(CONFIG) if is_float64 else CONFIG, 1).backbone_tokens()
