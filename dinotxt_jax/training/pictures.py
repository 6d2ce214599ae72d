"""Draws pictures for a run: the first examples, and the training curves."""

from __future__ import annotations

import math

from absl import logging

from dinotxt_jax.config import Config
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address, is_remote
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.tokenizers import Tokenizer
from dinotxt_jax.training.batches import Batch
from dinotxt_jax.training.metrics import METRICS_FILE, read_metrics
from dinotxt_jax.visualize import samples_sheet, training_curves


class RunPictures:
    """Draws a run's pictures, in the first process only.

    Args:
        config: the run's config.
        workdir: receives the pictures.
        tokenizer: the run's tokenizer.

    Attributes:
        title: the last two path components of the work directory.
    """

    def __init__(self, config: Config, workdir: Address, tokenizer: Tokenizer):
        self._config, self._workdir, self._tokenizer = config, workdir, tokenizer
        absolute = workdir if is_remote(workdir) else workdir.resolve()
        self.title = "/".join(str(absolute).split("/")[-2:])

    def draw_samples(self, batch: Batch) -> None:
        """Writes samples.png: the first images and captions, as passed to the model.

        Draws nothing if backbone tokens are cached, since there are no images.
        """
        pixels, tokens = batch.samples
        if pixels is None or not processes.is_first():
            return
        captions = [self._tokenizer.decode(row) for row in tokens]
        title = f"{self.title}: the first images and captions as they enter the model"
        with new_file(self._workdir / "samples.png") as partial:
            samples_sheet(list(pixels), captions, title).save(partial)

    def draw_curves(self) -> None:
        """Writes curves.png; without matplotlib, logs a warning instead of ending the run."""
        loss = self._config.loss
        plain = loss.kind == "softmax" and not loss.gram_weight
        try:
            with new_file(self._workdir / "curves.png") as partial:
                training_curves(
                    read_metrics(self._workdir / METRICS_FILE),
                    partial,
                    title=self.title,
                    chance_loss=math.log(self._config.pairs_per_step) if plain else None,
                )
        except UserError as error:
            logging.warning("no curves.png: %s", error)
