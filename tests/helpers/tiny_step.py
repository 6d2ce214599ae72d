"""One training step of a tiny model with any settings; compiled programs are reused.

Settings that do not change the compiled gradients (data, optimizer, seed, ...) share them; the
optimizer and the clamping of the logit scale run operation by operation.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from reference_steps import OPTIMIZED

from dinotxt_jax import sharding
from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    HeadTrainingConfig,
    MeshConfig,
    OptimizerConfig,
    PrecisionConfig,
    TaskConfig,
    TextTrainingConfig,
    TokenizerConfig,
    check,
    check_image_size,
)
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import EvalTransform, decode_image
from dinotxt_jax.evaluation.tasks import KINDS, check_tasks
from dinotxt_jax.inference.dense import DenseTexts
from dinotxt_jax.inference.protocols import PROTOCOLS
from dinotxt_jax.runtime.termination import Termination
from dinotxt_jax.storage.model_directory import ModelDescription, Preprocessing
from dinotxt_jax.training.batches import Batches
from dinotxt_jax.training.health import Health
from dinotxt_jax.training.optimizer import make_optimizer
from dinotxt_jax.training.step import Trainer, TrainState, make_trainer
from dinotxt_jax.training.texts import make_tokenizer

PATCH = 16
VISION = VisionConfig(
    patch_size=PATCH, dim=8, depth=1, num_heads=2, mlp_hidden_dim=16, position_grid=2
)
BACKBONE = ModelDescription(VISION, Preprocessing(), fingerprint="0")
DATA = DataConfig(num_scenes=8, image_size=32, resize=36, threads=2, prefetch=2)
TASK = TaskConfig(
    data=dataclasses.replace(DATA, split="test", augmentation="center_crop"),
    templates="a {}",
)
BASE = Config(
    steps=50,
    batch_size=8,
    backbone="models/tiny",
    data=DATA,
    tokenizer=TokenizerConfig(kind="bpe", vocabulary_size=300, context_length=8),
    head=HeadTrainingConfig(num_blocks=1),
    text=TextTrainingConfig(width=8, depth=1, num_heads=2),
    optimizer=OptimizerConfig(warmup_steps=0),
    precision=PrecisionConfig(compute="float32", frozen="float32"),
    evaluation=EvaluationConfig(
        tasks={
            "scenes": TASK,
            "pixels": dataclasses.replace(TASK, kind="segmentation"),
        },
        batch_size=8,
    ),
)


def run_step(config: Config) -> None:
    """Prepares a batch and the task images as in a run, and runs one step.

    Raises:
        UserError: settings that cannot be used.
        AssertionError: the step gives a number that is not finite.
    """
    check(config, needs=("backbone",))
    # The run uses one device, unless the test is about the mesh.
    devices = jax.devices() if config.mesh != MeshConfig() else jax.devices()[:1]
    mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh), devices=devices)
    sharding.check_batch(config.batch_size, mesh)
    check_image_size(config.data.image_size, PATCH)
    check_tasks(config.evaluation, VISION, mesh, "config.evaluation")
    for task in config.evaluation.tasks.values():
        _prepare_task(task)
    with jax.set_mesh(mesh):
        batch, vocabulary = _batch(config, mesh)
        shared = _shared(_shapes_only(config), mesh, vocabulary)
        trainer = shared.trainer(config)
        optimizer = trainer.optimizer.init(shared.trainable)
        state = TrainState(jax.numpy.int32(0), shared.trainable, optimizer, Health.initial(mesh))
        state, metrics = trainer.train_step(state, shared.frozen, batch)
    numbers = jax.tree.leaves((metrics, state.trainable))
    assert all(np.isfinite(np.asarray(array, np.float32)).all() for array in numbers), metrics


def _prepare_task(task: TaskConfig) -> None:
    source = KINDS[task.kind].open_set("config.evaluation.tasks.a", task)
    image = decode_image(source[0].image)
    if not KINDS[task.kind].encodes_whole_images:
        protocol, texts = PROTOCOLS[task.segmentation.protocol], np.ones((3, 8), np.float32)
        assert protocol.levels(image, task.segmentation, PATCH, DenseTexts(texts, np.arange(3)))
    else:
        assert EvalTransform(task.data)(image).shape == (task.data.image_size,) * 2 + (3,)


def _shapes_only(config: Config) -> Config:
    """Keeps the settings that determine the compiled gradients and takes others from `BASE`."""
    return dataclasses.replace(
        config,
        **{
            name: getattr(BASE, name)
            for name in ("seed", "steps", "backbone", "features", "feature_views", "topology")
        },
        include_backbone=True,
        log_every=1,
        profile="",
        data=dataclasses.replace(DATA, image_size=config.data.image_size),
        tokenizer=dataclasses.replace(
            BASE.tokenizer, context_length=config.tokenizer.context_length
        ),
        head=dataclasses.replace(config.head, layer_scale=BASE.head.layer_scale),
        text=dataclasses.replace(config.text, trim=0, pack=False),
        optimizer=BASE.optimizer,
        loss=dataclasses.replace(
            config.loss if config.loss.gram_weight else BASE.loss,
            kind=config.loss.kind,
            chunk=config.loss.chunk,
            max_logit_scale=BASE.loss.max_logit_scale,
        ),
        checkpoint=CheckpointConfig(),
        evaluation=EvaluationConfig(),
    )


def _batch(config: Config, mesh: Mesh) -> tuple[dict[str, jax.Array], int]:
    """Returns the first batch and the number of token ids."""
    source = open_source(config.data)
    # The vocabulary for the other tokenizer kind would have to be downloaded.
    trained = dataclasses.replace(config.tokenizer, kind="bpe")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(
            dataclasses.replace(config, tokenizer=trained), Path(folder), source
        )
    batches = Batches(config, source, None, tokenizer, mesh, Termination())
    batch = next(batches)
    batches.close()
    return batch.arrays, tokenizer.vocabulary_size


@dataclasses.dataclass
class _Shared:
    """Objects built once for all settings that lead to the same compiled gradients.

    Attributes:
        base: the trainer for the `_shapes_only` settings.
        tokens, gradients: the trainer's compiled methods.
        trainable: the trained arrays.
        frozen: the backbone's arrays.
    """

    base: Trainer
    tokens: Callable[..., Any]
    gradients: Callable[..., Any]
    trainable: dict[str, Any]
    frozen: dict[str, Any]

    def trainer(self, config: Config) -> Trainer:
        """Builds a trainer from these settings by `make_trainer`, with the compiled methods."""
        base, shared = self.base, self
        optimizer, schedule = make_optimizer(config.optimizer, config.steps, base.logical_axes)

        class Sharing(Trainer):
            def backbone_tokens(self, frozen: Any, batch: Any) -> jax.Array:
                return shared.tokens(frozen, {"image": batch["image"]})

            def loss_and_gradients(self, trainable: Any, tokens: Any, batch: Any, key: Any) -> Any:
                texts = {name: array for name, array in batch.items() if name != "image"}
                return shared.gradients(trainable, tokens, texts, key)

        fields = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
        config = dataclasses.replace(config, attention=base.config.attention)
        changed = {"config": config, "optimizer": optimizer, "schedule": schedule}
        return Sharing(**(fields | changed))


_BUILT: dict[str, _Shared] = {}
# Compiled programs hold memory maps, of which Linux allows a process 65,530: XLA crashed after
# hundreds of draws.
_MOST_BUILT = 20


def _drawn(tree: Any) -> Any:
    """Replaces arrays by random numbers drawn on the host, where nothing is compiled."""
    rng = np.random.default_rng(0)

    def numbers(array: jax.ShapeDtypeStruct) -> jax.Array:
        drawn = np.asarray(rng.normal(scale=0.3, size=array.shape))
        return jax.device_put(drawn.astype(array.dtype), array.sharding)

    return jax.tree.map(numbers, tree)


def _shared(config: Config, mesh: Mesh, vocabulary: int) -> _Shared:
    key = repr((config, mesh.shape, vocabulary))
    if key not in _BUILT:
        if len(_BUILT) >= _MOST_BUILT:
            _BUILT.clear()
            jax.clear_caches()
        trainer = make_trainer(config, BACKBONE, vocabulary, mesh)
        # The gradient of a maximum divides by the number of values equal to the maximum. Without
        # optimisation XLA recomputes these with different rounding, so that no value is equal.
        options = OPTIMIZED if config.head.pooling == "max" else None
        _BUILT[key] = _Shared(
            trainer,
            jax.jit(trainer.backbone_tokens),
            jax.jit(trainer.loss_and_gradients, compiler_options=options),
            _drawn(trainer.abstract_state().trainable) | {"logit_scale": jax.numpy.float32(2.0)},
            {"backbone": _drawn(trainer.abstract["backbone"])},
        )
    return _BUILT[key]
