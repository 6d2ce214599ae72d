"""Builds a training run without arrays: the real step, with argument shapes and shardings."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, check_image_size
from dinotxt_jax.data.packing import planned_rows
from dinotxt_jax.errors import UserError
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.storage.addresses import to_address
from dinotxt_jax.storage.model_directory import ModelDescription, Preprocessing, read_description
from dinotxt_jax.tokenizers import TOKENIZERS
from dinotxt_jax.training.step import Trainer, make_trainer

# Number of simulated captions; standard deviation of their lengths, divided by the mean length.
_CAPTIONS = 2048
_SPREAD = 0.5


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """Everything needed to compile a step.

    Attributes:
        trainer: the same object as in training.
        arguments: the `trainer.train_step` arguments state, frozen and batch, as trees of
            `jax.ShapeDtypeStruct` with shardings.
    """

    trainer: Trainer
    arguments: dict[str, Any]

    @property
    def mesh(self) -> Mesh:
        return self.trainer.mesh

    def bytes_by_part(self) -> dict[str, float]:
        """Returns the bytes per device for each group of arguments, without padding."""
        state = self.arguments["state"]
        parts = {
            "frozen": self.arguments["frozen"],
            "trainable": state.trainable,
            "optimizer": state.optimizer,
            "batch": self.arguments["batch"],
        }
        return {name: device_bytes(tree) for name, tree in parts.items()}


def device_bytes(tree: Any) -> float:
    """Returns the bytes per device that a tree with sharded arrays needs."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def abstract_run(
    config: Config, devices: Sequence[jax.Device], caption_tokens: float
) -> AbstractRun:
    """Builds a config's run on devices that need not exist.

    Args:
        config: the run; backbone, data and CLIP's vocabulary need not exist.
        devices: the devices that would run it.
        caption_tokens: mean caption length; determines the number of packed rows.

    Raises:
        UserError: the settings cannot run on these devices.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    backbone = backbone_description(config.backbone)
    check_image_size(config.data.image_size, backbone.vision.patch_size)
    vocabulary = TOKENIZERS[config.tokenizer.kind].configured_size(config.tokenizer)
    trainer = make_trainer(config, backbone, vocabulary, mesh)
    frozen = {} if config.features else {"backbone": trainer.abstract["backbone"]}
    batch = _abstract_batch(trainer, caption_tokens)
    # Outside `jax.set_mesh`: optax creates small arrays here, which abstract devices cannot store.
    state = trainer.abstract_state()
    return AbstractRun(trainer, {"state": state, "frozen": frozen, "batch": batch})


def backbone_description(backbone: str) -> ModelDescription:
    """Reads a model directory; if it does not exist, uses the preset that the path ends with.

    Raises:
        UserError: the path is neither a model directory nor a preset name.
    """
    path = to_address(backbone)
    if (path / "model.json").exists():
        return read_description(backbone)
    if path.name not in PRESETS:
        raise UserError(
            f"config.backbone={backbone!r} is not a model directory and does not end in a preset's "
            f"name; convert the backbone first, or choose a preset among {', '.join(PRESETS)}."
        )
    return ModelDescription(PRESETS[path.name], Preprocessing(), fingerprint="")


def _abstract_batch(trainer: Trainer, caption_tokens: float) -> dict[str, jax.ShapeDtypeStruct]:
    config, vision = trainer.config, trainer.model.vision
    batch_sharding = sharding.batch_sharding(trainer.mesh)
    size, count = config.data.image_size, config.pairs_per_step

    def array(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding)

    if config.features:
        tokens = 1 + vision.num_registers + (size // vision.patch_size) ** 2
        batch = {"features": array(config.precision.frozen, count, tokens, vision.dim)}
    else:
        batch = {"image": array("uint8", count, size, size, 3)}
    length = config.tokenizer.context_length
    if not config.text.pack:
        return batch | {"tokens": array("int32", count, length)}
    parts = sharding.batch_parts(trainer.mesh) * config.accumulate_steps
    rows = packed_rows(count // parts, parts, length, caption_tokens)
    return batch | {
        **{name: array("int32", parts, rows, length) for name in ("tokens", "segment_ids")},
        "positions": array("int32", parts, rows, length),
        **{name: array("int32", parts, count // parts) for name in ("row", "column")},
    }


def packed_rows(captions: int, parts: int, length: int, mean: float) -> int:
    """Returns the number of rows that training would plan for captions with a given mean length.

    Args:
        captions: captions per device.
        parts: number of devices that share a batch.
        length: tokens per row.
        mean: mean tokens per caption, including start and end.

    Raises:
        UserError: the mean length does not fit a row.
    """
    if not 3 <= mean <= length:
        raise UserError(
            f"--caption_tokens={mean:g} is not a possible mean caption length in rows of {length} "
            f"tokens; give 3 to {length}."
        )
    lengths = assumed_lengths(length, mean)
    return planned_rows([lengths[i : i + 1] for i in range(len(lengths))], captions, parts, length)


def assumed_lengths(longest: int, mean: float) -> Int[np.ndarray, " n"]:
    """Draws lengths from a gamma distribution with std = mean / 2, always with the same seed."""
    shape = _SPREAD**-2
    lengths = np.random.default_rng(0).gamma(shape, mean / shape, _CAPTIONS)
    return np.clip(np.round(lengths), 3, longest).astype(np.int64)
