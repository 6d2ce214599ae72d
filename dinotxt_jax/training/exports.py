"""The model of a run: usable while it trains, and as model directories."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from dinotxt_jax.config import Config
from dinotxt_jax.inference import Model
from dinotxt_jax.storage.model_directory import ModelDescription, load_stored, write_model_directory
from dinotxt_jax.tokenizers import Tokenizer
from dinotxt_jax.training.step import Trainer, TrainState


@dataclasses.dataclass(frozen=True)
class Exporter:
    """Makes models of a run's states.

    Attributes:
        config: the run.
        backbone: what its model directory says.
        trainer: of the run.
        tokenizer: of the run.
    """

    config: Config
    backbone: ModelDescription
    trainer: Trainer
    tokenizer: Tokenizer

    def description(self) -> ModelDescription:
        """What `model.json` will say."""
        config, data = self.config, self.config.data
        # The view to evaluate with: what was trained on, or the usual margin around a center crop.
        resize = data.resize if data.augmentation == "center_crop" else data.image_size * 8 // 7
        return dataclasses.replace(
            self.backbone,
            preprocessing=dataclasses.replace(
                self.backbone.preprocessing, resize=resize, crop=data.image_size
            ),
            head=self.trainer.model.head,
            text=self.trainer.model.text,
            tokenizer=self.tokenizer.spec(),
            backbone_path=None if config.include_backbone else str(Path(config.backbone).resolve()),
        )

    def model(self, state: TrainState, frozen: dict[str, Any]) -> Model:
        """The model as it is now; without `frozen` it takes cached tokens of the backbone only."""
        arrays = self.trainer.abstract | _trained(state) | frozen
        return Model(
            self.trainer.graphdef,
            arrays,
            self.description(),
            lambda: self.tokenizer,
            self.trainer.mesh,
            cache_texts=False,
        )

    def write(self, state: TrainState, path: Path) -> Path:
        """Writes a model directory, the backbone's arrays as they were converted."""
        arrays = _trained(state)
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


def _trained(state: TrainState) -> dict[str, Any]:
    """The trained arrays that belong to a model (the sigmoid loss's bias does not)."""
    return {name: tree for name, tree in state.trainable.items() if name != "logit_bias"}
