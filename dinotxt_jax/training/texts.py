"""The captions of a batch as the step gets them: token rows, packed, trimmed, or as they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, DataConfig
from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.packing import Packed, pack, planned_rows, row_counts, stacked
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

TokenArrays = dict[str, Int[np.ndarray, "..."]]


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


class PreparedTexts(NamedTuple):
    """The captions of one process in a batch, before all processes agree on a common size.

    Attributes:
        size: packed rows that each part needs, or without packing columns of the longest caption.
        tokens: a caption a row.
        parts: the packed rows of each part of the batch; empty without packing.
    """

    size: int
    tokens: Int[np.ndarray, "b l"]
    parts: Sequence[Packed]


class TokenRows(NamedTuple):
    """The token rows that the text transformer computes in one step.

    Attributes:
        rows: in the global batch.
        length: tokens of a row.
        overflow: whether packing needed more rows than planned.
    """

    rows: int
    length: int
    overflow: bool


class TextRows:
    """Arranges the captions of a batch as token rows: packed, trimmed, or as they are.

    All processes must agree on the size of the rows, hence the two steps: `prepare` says which size
    the captions of this process need, and `arrange` takes the largest size of all processes.

    Args:
        config: of the run.
        tokenizer: of the run.
        source: of the training data; `config.text.pack` reads captions of it.
        mesh: of the run.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, source: Source, mesh: Mesh):
        self._config, self._tokenizer = config, tokenizer
        self._parts = sharding.batch_parts(mesh) * config.accumulate_steps
        self._row_counts: list[int] = []
        self._logged: set[int] = set()
        if config.text.pack:
            captions = config.pairs_per_step // self._parts
            lengths = sampled_lengths(source, tokenizer, config.data)
            planned = planned_rows(lengths, captions, self._parts, tokenizer.context_length)
            self._row_counts = row_counts(planned, captions)
            logging.info("packing %d captions into %d rows on each device", captions, planned)

    def prepare(self, tokens: Int[np.ndarray, "b l"]) -> PreparedTexts:
        """Packs the captions of this process; needs no other process."""
        lengths = self._tokenizer.lengths(tokens)
        if not self._config.text.pack:
            return PreparedTexts(int(lengths.max()), tokens, ())
        captions = self._config.pairs_per_step // self._parts
        parts = [
            pack(tokens[start : start + captions], lengths[start : start + captions])
            for start in range(0, len(tokens), captions)
        ]
        return PreparedTexts(max(len(part.tokens) for part in parts), tokens, parts)

    def arrange(self, texts: PreparedTexts, size: int) -> tuple[TokenArrays, TokenRows]:
        """The text arrays of the batch for the largest `PreparedTexts.size` of all processes."""
        length = texts.tokens.shape[1]
        if not self._config.text.pack:
            trim = self._config.text.trim
            length = trimmed_length(size, trim, length) if trim else length
            computed = TokenRows(self._config.pairs_per_step, length, overflow=False)
            return {"tokens": texts.tokens[:, :length]}, computed
        rows = self._packed_rows(size)
        computed = TokenRows(rows * self._parts, length, overflow=rows > self._row_counts[0])
        return stacked(texts.parts, rows)._asdict(), computed

    def _packed_rows(self, needed: int) -> int:
        """The smallest compiled row count that is large enough."""
        rows = next(count for count in self._row_counts if count >= needed)
        planned = self._row_counts[0]
        if rows > planned and rows not in self._logged and processes.is_first():
            self._logged.add(rows)
            logging.warning(
                "a batch needs %d rows of packed captions on a device and %d were planned: its "
                "step is compiled once more, for %d rows; nothing is left out",
                needed,
                planned,
                rows,
            )
        return rows


class TextMetrics:
    """Measures how much packing and trimming save.

    Args:
        config: of the run.
        model: the text transformer.
        context_length: tokens of a row that is neither packed nor trimmed.
    """

    def __init__(self, config: Config, model: TextConfig, context_length: int):
        self._config, self._model, self._context_length = config, model, context_length
        self._steps: list[TokenRows] = []

    def add(self, rows: TokenRows) -> None:
        """Counts one step."""
        self._steps.append(rows)

    def report(self) -> dict[str, float]:
        """Metrics of the steps since the last report.

        `text_tokens_computed_fraction`: of a row of the context length for each caption.
        `text_flops_saved`: per step, of the text transformer's products on such rows, forward and
        backward. With packing `packing_overflows`: steps that needed more rows than planned.
        """
        steps = len(self._steps)
        untrimmed = steps * self._config.pairs_per_step
        tokens = sum(step.rows * step.length for step in self._steps)
        flops = sum(self._model.flops(step.rows, step.length) for step in self._steps)
        saved = self._model.flops(untrimmed, self._context_length) - flops
        values = {
            "text_tokens_computed_fraction": tokens / (untrimmed * self._context_length),
            "text_flops_saved": _FORWARD_AND_BACKWARD * saved / steps,
        }
        if self._config.text.pack:
            values["packing_overflows"] = sum(step.overflow for step in self._steps)
        self._steps.clear()
        return values


def sampled_lengths(
    source: Source, tokenizer: Tokenizer, data: DataConfig
) -> list[Int[np.ndarray, " c"]]:
    """Tokens of the captions of examples spread over a source, for each of them."""
    count = min(len(source), _SAMPLED)
    indices = [number * len(source) // count for number in range(count)]

    def lengths(index: int) -> Int[np.ndarray, " c"]:
        return tokenizer.lengths(tokenizer(source.captions(index)))

    return list(in_threads(indices, lengths, data.threads, data.prefetch))
