"""A training state that is moved between meshes: a small model and one large array."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from dinotxt_jax import sharding
from dinotxt_jax.config import (
    Config,
    HeadTrainingConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
    TokenizerConfig,
)
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.storage.model_directory import ModelDescription, Preprocessing, fingerprint
from dinotxt_jax.training.checkpoints import restore_state
from dinotxt_jax.training.step import Trainer, TrainState, make_trainer

SHAPES = {
    "1": (1, 1, 1),
    "8x1": (8, 1, 1),
    "2x4": (2, 4, 1),
    "4x2": (4, 2, 1),
    "1x8": (1, 8, 1),
    "1x1x8": (1, 1, 8),
    "2x2x2": (2, 2, 2),
}
VOCABULARY = 96
LARGE_SHAPE = (2048, 4096)  # 32 MiB of float32
_VISION = VisionConfig(patch_size=14, dim=32, depth=1, num_heads=2, mlp_hidden_dim=64)
_CONFIG = Config(
    steps=8,
    batch_size=16,
    head=HeadTrainingConfig(num_blocks=1, drop_path=0.3),
    text=TextTrainingConfig(width=32, depth=1, num_heads=2),
    tokenizer=TokenizerConfig(context_length=12),
    precision=PrecisionConfig(compute="float32", frozen="float32"),
    optimizer=OptimizerConfig(learning_rate=1e-3, warmup_steps=1),
)


@functools.cache
def mesh(name: str) -> Mesh:
    """Returns the mesh `data`x`fsdp`[x`tensor`] over the first devices."""
    shape = SHAPES[name]
    return sharding.make_mesh(*shape, devices=jax.devices()[: math.prod(shape)])


@functools.cache
def trainer(name: str) -> Trainer:
    """Returns a trainer for the small model on a mesh."""
    description = ModelDescription(_VISION, Preprocessing(), fingerprint="0" * 64)
    return make_trainer(_CONFIG, description, VOCABULARY, mesh(name))


def steps(name: str, state: TrainState, count: int) -> tuple[TrainState, list[float]]:
    """Runs training steps on a mesh, each on a batch seeded by the step, and returns the losses."""
    losses = []
    step = _compiled(name)
    with jax.set_mesh(mesh(name)):
        for number in range(int(state.step), int(state.step) + count):
            state, metrics = step(state, {}, _batch(number, mesh(name)))
            losses.append(float(metrics["loss"]))
    return state, losses


@functools.cache
def _compiled(name: str) -> Any:
    return jax.jit(trainer(name).train_step)


def _batch(number: int, on: Mesh) -> dict[str, jax.Array]:
    """Returns a batch of 16, to which each process contributes the rows that it would read."""
    rng = np.random.default_rng(number)
    tokens = rng.integers(1, VOCABULARY - 1, (16, 12)).astype(np.int32)
    tokens[:, -1] = VOCABULARY - 1
    features = rng.normal(size=(16, 5, 32)).astype(np.float32)
    readers = sharding.batch_readers(on).items()
    mine = next(list(parts) for parts, group in readers if jax.process_index() in group)
    rows = np.arange(16).reshape(sharding.batch_parts(on), -1)[mine].ravel()
    return sharding.global_batch({"features": features[rows], "tokens": tokens[rows]}, on)


def restored(folder: Path, name: str) -> tuple[TrainState, dict[str, Any]]:
    """Restores a folder's newest checkpoint on a mesh, with the data positions."""
    checkpoints = Checkpoints(folder, 3)
    newest = checkpoints.latest()
    assert newest is not None
    result = restore_state(checkpoints, newest, trainer(name).abstract_state())
    checkpoints.close()
    return result


def stored_fingerprint(state: TrainState) -> str:
    """Returns the fingerprint of everything that a checkpoint holds."""
    return fingerprint(
        {"step": state.step, "trainable": state.trainable, "optimizer": state.optimizer}
    )


def has_sharding(state: TrainState, name: str) -> bool:
    """Returns whether arrays have the expected sharding, with only local shards on each device."""

    def matches(array: jax.Array, abstract: jax.ShapeDtypeStruct) -> bool:
        part = abstract.sharding.shard_shape(array.shape)
        shards = array.addressable_shards
        ours = abstract.sharding.addressable_devices
        return (
            array.sharding == abstract.sharding
            and {shard.device for shard in shards} == ours
            and all(shard.data.shape == part for shard in shards)
        )

    return all(jax.tree.leaves(jax.tree.map(matches, state, trainer(name).abstract_state())))


def large(name: str) -> jax.ShapeDtypeStruct:
    """Returns shape, dtype and sharding (by columns) for the large array."""
    spec = sharding.partition_spec((None, "embed"), LARGE_SHAPE, mesh(name).shape)
    return jax.ShapeDtypeStruct(LARGE_SHAPE, np.float32, sharding=NamedSharding(mesh(name), spec))
