"""A training run without its arrays: the true step, and the shapes and places of its arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
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
from dinotxt_jax.storage.model_directory import ModelDescription, Preprocessing, read_description
from dinotxt_jax.tokenizers import CLIP_VOCABULARY_SIZE
from dinotxt_jax.training.step import Trainer, make_trainer

# Captions drawn to stand for those of the data, and their spread as a part of their mean.
_CAPTIONS = 2048
_SPREAD = 0.5


@dataclasses.dataclass(frozen=True)
class AbstractRun:
    """What a step is compiled from.

    Attributes:
        trainer: as in training.
        arguments: of `trainer.train_step`, `jax.ShapeDtypeStruct` with shardings in place of
            arrays, by name: state, frozen, batch.
    """

    trainer: Trainer
    arguments: dict[str, Any]

    @property
    def mesh(self) -> Mesh:
        return self.trainer.mesh

    def bytes_by_part(self) -> dict[str, float]:
        """Bytes of a device that arguments take, without padding."""
        state = self.arguments["state"]
        parts = {
            "frozen": self.arguments["frozen"],
            "trainable": state.trainable,
            "optimizer": state.optimizer,
            "batch": self.arguments["batch"],
        }
        return {name: device_bytes(tree) for name, tree in parts.items()}


def device_bytes(tree: Any) -> float:
    """Bytes that one device holds of a tree of arrays with shardings."""
    return float(
        sum(
            np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def abstract_run(
    config: Config, devices: Sequence[jax.Device], caption_tokens: float
) -> AbstractRun:
    """The run of a config on devices that need not exist.

    Args:
        config: the run; neither its backbone nor its data nor its vocabulary have to be there.
        devices: to lie on.
        caption_tokens: mean length of captions, which says how many rows packed ones fill.

    Raises:
        UserError: settings that cannot be run.
    """
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    backbone = backbone_description(config.backbone)
    check_image_size(config.data.image_size, backbone.vision.patch_size)
    tokenizer = config.tokenizer
    vocabulary = CLIP_VOCABULARY_SIZE if tokenizer.kind == "clip" else tokenizer.vocabulary_size
    trainer = make_trainer(config, backbone, vocabulary, mesh)
    frozen = {} if config.features else {"backbone": trainer.abstract["backbone"]}
    batch = _abstract_batch(trainer, caption_tokens)
    # Outside of `jax.set_mesh`, which these devices do not survive: optax makes small arrays here.
    state = trainer.abstract_state()
    return AbstractRun(trainer, {"state": state, "frozen": frozen, "batch": batch})


def backbone_description(backbone: str) -> ModelDescription:
    """Of the model directory; if it is not there, of the architecture that its name ends in.

    Raises:
        UserError: neither a model directory nor the name of an architecture.
    """
    path = Path(backbone)
    if (path / "model.json").exists():
        return read_description(backbone)
    if path.name not in PRESETS:
        raise UserError(
            f"config.backbone={backbone!r} is neither a model directory nor does it end in the "
            f"name of an architecture; convert the backbone first, or set it to one of "
            f"{', '.join(PRESETS)}."
        )
    return ModelDescription(PRESETS[path.name], Preprocessing(), fingerprint="")


def _abstract_batch(trainer: Trainer, caption_tokens: float) -> dict[str, jax.ShapeDtypeStruct]:
    config, vision = trainer.config, trainer.model.vision
    place = sharding.batch_sharding(trainer.mesh)
    size, count = config.data.image_size, config.pairs_per_step

    def array(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

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
    """Rows that training would plan for captions of that mean length.

    Args:
        captions: of a device. parts: number of devices that share a batch.
        length: tokens of a row.
        mean: tokens of a caption, start and end included.

    Raises:
        UserError: captions that fit no row.
    """
    if not 3 <= mean <= length:
        raise UserError(
            f"--caption_tokens={mean:g} is no mean length of captions in rows of {length} tokens; "
            f"give 3 to {length}."
        )
    lengths = assumed_lengths(length, mean)
    return planned_rows([lengths[i : i + 1] for i in range(len(lengths))], captions, parts, length)


def assumed_lengths(longest: int, mean: float) -> Int[np.ndarray, " n"]:
    """Lengths drawn, always the same, from a gamma distribution half as wide as its mean."""
    shape = _SPREAD**-2
    drawn = np.random.default_rng(0).gamma(shape, mean / shape, _CAPTIONS)
    return np.clip(np.round(drawn), 3, longest).astype(np.int64)
