"""The train step: a plain function (state, frozen, batch), differentiated for trained arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, Shaped, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.config import Config
from dinotxt_jax.config.architecture import DinoTxtConfig
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.losses import (
    gram_losses,
    sigmoid_contrastive_loss,
    softmax_contrastive_loss,
)
from dinotxt_jax.models.dinotxt import DinoTxt, ImageFeatures, normalized
from dinotxt_jax.models.drop_path import DropPath, drop_path_group
from dinotxt_jax.models.initialization import Constant, initial_array
from dinotxt_jax.models.layers import abstract_arrays, initial_arrays, logical_axes
from dinotxt_jax.models.text import Packing
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.compiler_options import compiler_options
from dinotxt_jax.storage.model_directory import ModelDescription, Preprocessing
from dinotxt_jax.training.accumulation import map_parts, vjp_of_parts
from dinotxt_jax.training.health import Health, applied
from dinotxt_jax.training.models import (
    chosen_attention,
    create_model,
    model_config,
    trained_dtypes,
    warn_of_whole_heads,
)
from dinotxt_jax.training.optimizer import make_optimizer
from dinotxt_jax.training.start import StartingPoint, starting_point

Arrays = dict[str, Any]
BatchArrays = Mapping[str, Shaped[Array, "..."]]
Metrics = dict[str, Float[Array, ""]]
# SigLIP's starting point: nearly all pairs are negatives (arXiv 2303.15343, section 3.2).
# The bias begins as declared in `DinoTxt`.
SIGMOID_LOGIT_SCALE = math.log(10.0)
# Trained scalars that all examples share.
_SCALARS = ("logit_scale", "logit_bias")


class TrainState(NamedTuple):
    """Everything that training changes.

    Attributes:
        step: number of completed steps, int32.
        trainable: {"head", "text", "logit_scale"} (and "logit_bias" with the sigmoid loss).
        optimizer: the optax state.
        health: whether every step so far was finite.
    """

    step: Int[Array, ""]
    trainable: Arrays
    optimizer: Any
    health: Health


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The constant parts in a training run; `make_trainer` builds it.

    Attributes:
        config: the run's config.
        model: architecture.
        graphdef: `DinoTxt` without arrays.
        abstract: the `DinoTxt` array shapes, dtypes and shardings, as a nested dict.
        logical_axes: dimension names for the trained arrays.
        optimizer, schedule: AdamW and the learning rate schedule.
        preprocessing: the preprocessing of the backbone.
        mesh: the mesh that holds all arrays.
        start: the model whose parts begin the run; None begins anew.
    """

    config: Config
    model: DinoTxtConfig
    graphdef: Any
    abstract: Arrays
    logical_axes: Arrays
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    preprocessing: Preprocessing
    mesh: Mesh
    start: StartingPoint | None = None

    def create_state(self) -> TrainState:
        """Returns the state before the first step, already sharded.

        Initial values depend on `config.seed` (`models.initialization`); no array is first built
        unsharded on one device.
        """
        abstract, seed = self.abstract_state(), self.config.seed
        declared = create_model(self.model, self.config)
        parts = {name: tree for name, tree in abstract.trainable.items() if name in self.abstract}
        trainable = initial_arrays(declared, parts, seed)
        if self.config.loss.kind == "sigmoid":
            scale, initial = abstract.trainable["logit_scale"], Constant(SIGMOID_LOGIT_SCALE)
            trainable["logit_scale"] = initial_array(
                initial, scale, seed, "logit_scale", stacked=False
            )
        if self.start is not None:
            dtypes = trained_dtypes(self.config)
            trainable = self.start.filled(trainable, self.model, dtypes, self.mesh)
        placed = jax.tree.map(lambda leaf: leaf.sharding, abstract.optimizer)
        optimizer = jax.jit(self.optimizer.init, out_shardings=placed)(trainable)
        step = processes.placed(np.zeros((), abstract.step.dtype), abstract.step.sharding)
        return TrainState(step, trainable, optimizer, Health.initial(self.mesh))

    def abstract_state(self) -> TrainState:
        """Returns the shapes, dtypes and shardings of the state."""
        whole = sharding.replicated(self.mesh)
        trainable = trained_part(self.abstract)
        optimizer = jax.eval_shape(self.optimizer.init, trainable)
        placed = jax.tree.map(lambda leaf: leaf.sharding, trainable)
        # Moments are sharded like the parameters; the rest of the state is replicated counters.
        moments = optax.tree_utils.tree_map_params(
            self.optimizer,
            lambda _, place: place,
            optimizer,
            placed,
            transform_non_params=lambda _: whole,
        )
        step: Any = jax.ShapeDtypeStruct((), "int32", sharding=whole)
        trainable, optimizer = jax.tree.map(
            lambda array, place: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place),
            (trainable, optimizer),
            (placed, moments),
        )
        return TrainState(step, trainable, optimizer, Health.abstract(self.mesh))

    def merge(self, arrays: Arrays) -> DinoTxt:
        """Returns the model with these arrays; missing parts have only shapes and cannot run."""
        stored = {name: tree for name, tree in arrays.items() if name in self.abstract}
        return nnx.merge(self.graphdef, self.abstract | stored)

    def train_step(
        self, state: TrainState, frozen: Arrays, batch: BatchArrays
    ) -> tuple[TrainState, Metrics]:
        """Makes one update, unless the loss or the gradient norm is not finite.

        Such a step leaves parameters and optimizer state unchanged, and `state.health` records it.
        After `config.nonfinite_limit` such steps in a row, no later step changes them either.

        Args:
            state: the state before the step.
            frozen: {"backbone": arrays}; empty if the batch contains the backbone tokens.
            batch: "tokens" int[b l] (or packed, int[p r l], with the fields of `Packing`), and
                "image" uint8[b h w 3] or "features" float[b t d].

        Returns:
            The next state, and scalars: loss, loss terms, logit_scale (before the step),
            learning_rate, grad_norm (before clipping), nonfinite_steps (so far).
        """
        key = jax.random.fold_in(jax.random.key(self.config.seed), state.step)
        (loss, parts), gradients = self.loss_and_gradients(
            state.trainable, self.backbone_tokens(frozen, batch), batch, key
        )
        updates, optimizer = self.optimizer.update(gradients, state.optimizer, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        ceiling = math.log(self.config.loss.max_logit_scale)
        trainable |= {"logit_scale": jnp.clip(trainable["logit_scale"], 0.0, ceiling)}
        grad_norm = optax.global_norm(gradients)
        step = state.step + 1
        health = state.health.after(step, loss, grad_norm, self.config.nonfinite_limit)
        trainable, optimizer = applied(
            health, (trainable, optimizer), (state.trainable, state.optimizer)
        )
        metrics = {
            "loss": loss,
            **parts,
            "logit_scale": state.trainable["logit_scale"],
            # The schedule counts applied updates.
            "learning_rate": self.schedule(state.step - state.health.nonfinite_steps),
            "grad_norm": grad_norm,
            "nonfinite_steps": health.nonfinite_steps.astype(loss.dtype),
        }
        return TrainState(step, trainable, optimizer, health), metrics

    def compiled_step(self) -> Callable[..., tuple[TrainState, Metrics]]:
        """Returns `train_step`, compiled on the first call; the input state is donated."""
        precision = self.config.precision
        options = compiler_options((precision.compute, precision.frozen))
        return jax.jit(self.train_step, donate_argnums=0, compiler_options=options)

    def backbone_tokens(self, frozen: Arrays, batch: BatchArrays) -> Float[Array, "b t d"]:
        """Returns backbone tokens [class, registers, patches], [b t d]: cached, or computed."""
        if "features" in batch:
            return batch["features"]

        def encode(pixels: UInt8[Array, "m h w 3"]) -> Float[Array, "m t d"]:
            images = normalize(pixels, self.preprocessing.mean, self.preprocessing.std)
            images = sharding.constrain(images, "batch", None, None, None)
            return self.merge(frozen).backbone.tokens(images)

        tokens = map_parts(encode, batch["image"], self.config.accumulate_steps)
        return jax.lax.stop_gradient(tokens)

    def loss_and_gradients(
        self,
        trainable: Arrays,
        tokens: Float[Array, "b t d"],
        batch: BatchArrays,
        key: Key[Array, ""],
    ) -> tuple[tuple[Float[Array, ""], Metrics], Arrays]:
        """Returns the loss of all pairs in a step, the loss terms by name, and the gradients.

        Args:
            trainable: the arrays to differentiate for.
            tokens: the backbone tokens.
            batch: "tokens", and with packed captions the fields of `Packing`.
            key: the step's random key.
        """
        groups = len(tokens) // drop_path_group(self.config.batch_size)
        rows = {
            "image_tokens": tokens,
            "drop_groups": jnp.arange(groups),
            "tokens": batch["tokens"],
            "packing": packing_of(batch),
        }
        # The chain rule in two stages: parameters to features, computed part by part, then features
        # to the loss over all pairs, which is cheap and computed at once.
        encode = functools.partial(self._encode, key, groups)
        features, pull_back = vjp_of_parts(encode, trainable, rows, self.config.accumulate_steps)
        scalars = {name: trainable[name] for name in _SCALARS if name in trainable}
        (loss, parts), (feature_gradients, scalar_gradients) = jax.value_and_grad(
            self._objective, argnums=(0, 1), has_aux=True
        )(features, scalars)
        gradients = pull_back(feature_gradients)
        return (loss, parts), gradients | scalar_gradients

    def _encode(
        self, key: Key[Array, ""], groups: int, trainable: Arrays, rows: Arrays
    ) -> dict[str, Float[Array, "m ..."]]:
        """Encodes m pairs, one part of a batch.

        Returns:
            "image" and "text": normalised features [m D]; with a nonzero `gram_weight`, "gram": the
            Gram loss for each image [m].
        """
        drop_key, patch_key, gram_key = jax.random.split(key, 3)
        model = self.merge(trainable)
        tokens = self._drawn_patches(rows["image_tokens"], self.config.head.patch_tokens, patch_key)
        drop = DropPath(drop_key, rows["drop_groups"], groups)
        features = model.encode_tokens(tokens, drop)
        text = model.encode_text(rows["tokens"], normalize=True, packing=rows["packing"])
        encoded = {"image": normalized(model.descriptor(features)), "text": text}
        if self.config.loss.gram_weight:
            encoded["gram"] = self._gram_losses(features, tokens, gram_key)
        return encoded

    def _objective(
        self, features: dict[str, Float[Array, "b ..."]], scalars: dict[str, Float[Array, ""]]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Returns the loss of all pairs in a step from the features, and the loss terms by name."""
        config = self.config.loss
        image, text, scale = features["image"], features["text"], jnp.exp(scalars["logit_scale"])
        if config.kind == "sigmoid":
            bias = scalars["logit_bias"]
            loss = sigmoid_contrastive_loss(image, text, scale, bias, chunk=config.chunk)
        else:
            loss = softmax_contrastive_loss(image, text, scale, chunk=config.chunk)
        if not config.gram_weight:
            return loss, {}
        gram = jnp.mean(features["gram"])
        return loss + config.gram_weight * gram, {"contrastive_loss": loss, "gram_loss": gram}

    def _drawn_patches(
        self, tokens: Float[Array, "m t d"], count: int, key: Key[Array, ""]
    ) -> Float[Array, "m s d"]:
        """Returns [class, registers, patches] with `count` patches, the same for all images."""
        first = 1 + self.model.vision.num_registers
        if count == 0 or count >= tokens.shape[1] - first:
            return tokens
        positions = jax.random.permutation(key, tokens.shape[1] - first)[:count]
        return tokens[:, jnp.concatenate([jnp.arange(first), first + positions])]

    def _gram_losses(
        self, features: ImageFeatures, tokens: Float[Array, "m t d"], key: Key[Array, ""]
    ) -> Float[Array, " m"]:
        config = self.config.loss
        head = features.patch_tokens  # [m n d]
        backbone = tokens[:, 1 + self.model.vision.num_registers :]  # [m n d]
        if config.gram_patches:
            positions = jax.random.permutation(key, head.shape[1])[: config.gram_patches]
            head, backbone = head[:, positions], backbone[:, positions]
        return gram_losses(head, backbone, normalize=config.gram_normalize)


def packing_of(batch: BatchArrays) -> Packing | None:
    """Returns the caption positions in packed rows; None if each row holds one caption."""
    if "segment_ids" not in batch:
        return None
    return Packing(**{name: batch[name] for name in Packing._fields})


def trained_part(arrays: Arrays) -> Arrays:
    """Returns everything except the backbone."""
    return {name: tree for name, tree in arrays.items() if name != "backbone"}


def make_trainer(
    config: Config, backbone: ModelDescription, vocabulary_size: int, mesh: Mesh
) -> Trainer:
    """Builds the trainer, before any array exists.

    Args:
        config: the run's config.
        backbone: the description in the backbone's model directory.
        vocabulary_size: the tokenizer's vocabulary size.
        mesh: the mesh that the run will use.

    Raises:
        UserError: the settings cannot be run.
    """
    sharding.check_batch(config.batch_size, mesh)
    start = starting_point(config)
    model = model_config(config, backbone, vocabulary_size, start)
    warn_of_whole_heads(model, mesh)
    config = dataclasses.replace(config, attention=chosen_attention(config, model, mesh))
    declared = create_model(model, config)
    axes = trained_part(logical_axes(declared))
    optimizer, schedule = make_optimizer(config.optimizer, config.steps, axes)
    return Trainer(
        config=config,
        model=model,
        graphdef=nnx.graphdef(declared),
        abstract=abstract_arrays(lambda: declared, mesh),
        logical_axes=axes,
        optimizer=optimizer,
        schedule=schedule,
        preprocessing=backbone.preprocessing,
        mesh=mesh,
        start=start,
    )
