"""Exports the model of a run: for use during training, and as model directories."""

from __future__ import annotations

import dataclasses
from typing import Any

from dinotxt_jax.config import Config
from dinotxt_jax.data.transforms import is_random
from dinotxt_jax.inference import Model
from dinotxt_jax.storage.addresses import Address, is_remote, to_address
from dinotxt_jax.storage.model_arrays import load_stored
from dinotxt_jax.storage.model_directory import ModelDescription, write_model_directory
from dinotxt_jax.tokenizers import Tokenizer
from dinotxt_jax.training.step import Trainer, TrainState


@dataclasses.dataclass(frozen=True)
class Exporter:
    """Makes models from training states.

    Attributes:
        config: the run's config.
        backbone: the description in the backbone's model directory.
        trainer: the run's trainer.
        tokenizer: the run's tokenizer.
    """

    config: Config
    backbone: ModelDescription
    trainer: Trainer
    tokenizer: Tokenizer

    def description(self) -> ModelDescription:
        """Returns the contents of `model.json`."""
        config, data = self.config, self.config.data
        # View for evaluation: same as in training, or the usual margin around a center crop.
        resize = data.image_size * 8 // 7 if is_random(data) else data.resize
        return dataclasses.replace(
            self.backbone,
            preprocessing=dataclasses.replace(
                self.backbone.preprocessing,
                resize=resize,
                crop=data.image_size,
                rule=data.view_rule,
            ),
            head=self.trainer.model.head,
            text=self.trainer.model.text,
            logit_bias=self.trainer.model.logit_bias,
            tokenizer=self.tokenizer.spec(),
            backbone_path=None if config.include_backbone else self._backbone_path(),
        )

    def _backbone_path(self) -> str:
        address = to_address(self.config.backbone)
        return str(address if is_remote(address) else address.resolve())

    def model(self, state: TrainState, frozen: dict[str, Any]) -> Model:
        """Returns the current model; without `frozen` it accepts only cached backbone tokens."""
        arrays = self.trainer.abstract | state.trainable | frozen
        return Model(
            self.trainer.graphdef,
            arrays,
            self.description(),
            lambda: self.tokenizer,
            self.trainer.mesh,
            cache_texts=False,
        )

    def write(self, state: TrainState, path: Address) -> Address:
        """Writes a model directory, with the backbone arrays exactly as converted."""
        arrays = dict(state.trainable)
        if self.config.include_backbone:
            arrays |= load_stored(self.config.backbone, "backbone", self.trainer.abstract)
        write_model_directory(
            path,
            self.description(),
            arrays,
            overwrite=True,
            write_tokenizer=self.tokenizer.save,
        )
        return path
