"""The captions of a batch as the step gets them: token rows, packed, trimmed, or as they are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, DataConfig
from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.packing import pack, planned_rows, row_counts, stacked
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.runtime import processes
from dinotxt_jax.tokenizers import (
    ClipTokenizer,
    Tokenizer,
    TrainedTokenizer,
    load_tokenizer,
    trimmed_length,
)

# Examples whose captions are read to learn how long captions are.
_SAMPLED = 2048
# A backward pass costs twice the forward one.
_FORWARD_AND_BACKWARD = 3

Arrays = dict[str, np.ndarray]


def make_tokenizer(config: Config, workdir: Path, source: Source) -> Tokenizer:
    """The tokenizer of a run; one of its own is trained once and then kept in `workdir`.

    Raises:
        UserError: a vocabulary that cannot be had.
    """
    settings = config.tokenizer
    if settings.kind == "clip":
        return ClipTokenizer(settings.vocabulary or None, settings.context_length)
    folder = workdir / "tokenizer"
    if (folder / "spec.json").exists():
        return load_tokenizer(json.loads((folder / "spec.json").read_text()), folder)
    captions = (text for index in range(len(source)) for text in source.captions(index))
    return TrainedTokenizer.train(captions, settings.vocabulary_size, settings.context_length)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Keeps a run's tokenizer, its description last, so that an interrupted write is noticed."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    (folder / "spec.json").write_text(json.dumps(tokenizer.spec(), indent=2) + "\n")


class TextRows:
    """Arranges token rows, and counts what the text transformer computes and is spared.

    How many rows or columns a batch needs is agreed upon by all processes, hence the two steps of
    `prepare`.

    Args:
        config: of the run.
        model: the text transformer.
        tokenizer: of the run.
        source: of the training data; `config.text.pack` reads captions of it.
        mesh: of the run.
    """

    def __init__(
        self, config: Config, model: TextConfig, tokenizer: Tokenizer, source: Source, mesh: Mesh
    ):
        self._config, self._model, self._tokenizer = config, model, tokenizer
        self._parts = sharding.batch_parts(mesh) * config.accumulate_steps
        self._row_counts: list[int] = []
        self._logged: set[int] = set()
        if config.text.pack:
            captions = config.pairs_per_step // self._parts
            lengths = sampled_lengths(source, tokenizer, config.data)
            planned = planned_rows(lengths, captions, self._parts, tokenizer.context_length)
            self._row_counts = row_counts(planned, captions)
            logging.info("packing %d captions into %d rows on each device", captions, planned)
        self._restart()

    def prepare(self, tokens: Int[np.ndarray, "b l"]) -> tuple[int, Callable[[int], Arrays]]:
        """What this process's rows need, and the function that arranges them.

        Returns:
            A number; and a function of the largest such number of all processes, which gives the
            arrays of the batch, to be called once.
        """
        lengths = self._tokenizer.lengths(tokens)
        if not self._config.text.pack:
            return int(lengths.max()), lambda longest: self._trimmed(tokens, longest)
        captions = self._config.pairs_per_step // self._parts
        parts = [
            pack(tokens[start : start + captions], lengths[start : start + captions])
            for start in range(0, len(tokens), captions)
        ]

        def arrange(needed: int) -> Arrays:
            rows = self._rows(needed)
            self._count(rows * self._parts, tokens.shape[1])
            return stacked(parts, rows)._asdict()

        return max(len(part.tokens) for part in parts), arrange

    def report(self) -> dict[str, float]:
        """Text metrics since the last report.

        `text_tokens_computed_fraction`: of a row of the context length for each caption.
        `text_flops_saved`: per step, of the text transformer's products on such rows, forward and
        backward. With packing `packing_overflows`: steps that needed more rows than planned.
        """
        context = self._tokenizer.context_length
        whole = self._steps * self._config.pairs_per_step
        spared = self._model.flops(whole, context) - self._flops
        values = {
            "text_tokens_computed_fraction": self._tokens / (whole * context),
            "text_flops_saved": _FORWARD_AND_BACKWARD * spared / self._steps,
        }
        if self._config.text.pack:
            values["packing_overflows"] = self._overflows
        self._restart()
        return values

    def _restart(self) -> None:
        self._steps = self._tokens = self._overflows = 0
        self._flops = 0.0

    def _count(self, rows: int, length: int) -> None:
        self._steps += 1
        self._tokens += rows * length
        self._flops += self._model.flops(rows, length)

    def _trimmed(self, tokens: Int[np.ndarray, "b l"], longest: int) -> Arrays:
        trim, length = self._config.text.trim, tokens.shape[1]
        if trim:
            length = trimmed_length(longest, trim, length)
        self._count(self._config.pairs_per_step, length)
        return {"tokens": tokens[:, :length]}

    def _rows(self, needed: int) -> int:
        """The smallest of the row counts that does."""
        rows = next(count for count in self._row_counts if count >= needed)
        planned = self._row_counts[0]
        if rows > planned:
            self._overflows += 1
            if rows not in self._logged and processes.is_first():
                self._logged.add(rows)
                logging.warning(
                    "a batch needs %d rows of packed captions on a device and %d were planned: its "
                    "step is compiled once more, for %d rows; nothing is left out",
                    needed,
                    planned,
                    rows,
                )
        return rows


def sampled_lengths(source: Source, tokenizer: Tokenizer, data: DataConfig) -> list[np.ndarray]:
    """Tokens of the captions of examples spread over a source, for each of them."""
    count = min(len(source), _SAMPLED)
    indices = [number * len(source) // count for number in range(count)]

    def lengths(index: int) -> np.ndarray:
        return tokenizer.lengths(tokenizer(source.captions(index)))

    return list(in_threads(indices, lengths, data.threads, data.prefetch))
