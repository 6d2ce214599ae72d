"""Converts batch captions to token rows for the train step: packed, trimmed, or unchanged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, DataConfig
from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.data.examples import Source, readable_captions
from dinotxt_jax.data.mixture import part_number, shares_of, source_parts
from dinotxt_jax.data.order import Draw, Turns
from dinotxt_jax.data.packing import Packed, pack, planned_rows, row_counts, stacked
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.data.selection import FilteredError
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.downloads import check_sha256
from dinotxt_jax.storage.files import read_json, write_text
from dinotxt_jax.tokenizers import TOKENIZERS, Tokenizer, load_tokenizer, trimmed_length
from dinotxt_jax.training.start import starting_point

# Number of examples to sample for estimating caption lengths.
_SAMPLED = 2048
# A backward pass costs twice as much as a forward pass.
_FORWARD_AND_BACKWARD = 3

TokenArrays = dict[str, Int[np.ndarray, "..."]]


def make_tokenizer(config: Config, workdir: Address, source: Source) -> Tokenizer:
    """Returns the run's tokenizer: loaded from `workdir` if stored there, otherwise a new one.

    A stored tokenizer does not need the vocabulary file or the captions again.

    Raises:
        UserError: the vocabulary is not available, or differs from the tokenizer in `workdir`.
    """
    start = starting_point(config)
    if start is not None and start.has_text:
        return start.tokenizer()
    settings = config.tokenizer
    folder = workdir / "tokenizer"
    if not (folder / "spec.json").exists():
        indices = range(len(source))
        return TOKENIZERS[settings.kind].configured(
            settings, lambda: (text for i in indices for text in readable_captions(source, i))
        )
    cure = f"restore it, or remove {folder}: the same settings give the same tokenizer again"
    spec = read_json(folder / "spec.json", "the description of a tokenizer", cure)
    tokenizer = load_tokenizer(spec, folder)
    if (tokenizer.kind, tokenizer.context_length) != (settings.kind, settings.context_length):
        raise UserError(
            f"{folder} holds a tokenizer of kind {tokenizer.kind} with rows of "
            f"{tokenizer.context_length}, expected {settings.kind} with {settings.context_length}; "
            "remove it, or take another --workdir."
        )
    if settings.vocabulary and to_address(settings.vocabulary).is_file():
        cure = "name the file that the run in --workdir began with, or take another --workdir"
        check_sha256(settings.vocabulary, tokenizer.spec()["sha256"], cure)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Address) -> None:
    """Saves the tokenizer; writes spec.json last, so that an interrupted save is detected."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder)
    write_text(folder / "spec.json", json.dumps(tokenizer.spec(), indent=2) + "\n")


class PreparedTexts(NamedTuple):
    """This process's captions in a batch, before all processes agree on a common size.

    Attributes:
        size: with packing, the largest number of packed rows in any part; otherwise the longest
            caption in tokens.
        tokens: a caption per row.
        parts: packed rows for each batch part; empty without packing.
    """

    size: int
    tokens: Int[np.ndarray, "b l"]
    parts: Sequence[Packed]


class TokenRows(NamedTuple):
    """The token rows that the text transformer computes in a step.

    Attributes:
        rows: number of rows in the global batch.
        length: tokens per row.
        overflow: whether packing needed more rows than planned.
    """

    rows: int
    length: int
    overflow: bool


class TextRows:
    """Arranges batch captions as token rows: packed, trimmed, or unchanged.

    Arranging takes two calls, because all processes must agree on the row size: `prepare` returns
    the size that this process's captions need; `arrange` takes the largest size over all processes.

    Args:
        config: the run's config.
        tokenizer: the run's tokenizer.
        source: the training data; `config.text.pack` reads captions from it.
        mesh: the run's mesh.

    Raises:
        UserError: `config.text.pack` is set, and packing would change the features of texts.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, source: Source, mesh: Mesh):
        if config.text.pack:
            check_packable(tokenizer)
        self._config, self._tokenizer = config, tokenizer
        self._parts = sharding.batch_parts(mesh) * config.accumulate_steps
        self._row_counts: list[int] = []
        self._logged: set[int] = set()
        if config.text.pack:
            captions = config.pairs_per_step // self._parts
            lengths = sampled_lengths(source, tokenizer, config.data, config.seed)
            planned = planned_rows(lengths, captions, self._parts, tokenizer.context_length)
            self._row_counts = row_counts(planned, captions)
            logging.info("packing %d captions into %d rows on each device", captions, planned)

    def prepare(self, tokens: Int[np.ndarray, "b l"]) -> PreparedTexts:
        """Packs this process's captions; needs no communication with other processes."""
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
        """Returns the text arrays for the batch.

        `size` is the largest `PreparedTexts.size` over all processes.
        """
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
        """Returns the smallest compiled row count that is large enough."""
        rows = next(count for count in self._row_counts if count >= needed)
        planned = self._row_counts[0]
        if rows > planned and rows not in self._logged and processes.is_first():
            self._logged.add(rows)
            # Expected about once in 1,000 steps (`planned_rows`), so that it is no warning.
            logging.info(
                "a batch needs %d rows of packed captions per device, but %d were planned: "
                "compiling the step again for %d rows; no caption is dropped",
                needed,
                planned,
                rows,
            )
        return rows


def check_packable(tokenizer: Tokenizer) -> None:
    """Raises `UserError` unless texts can share a row without changing any feature."""
    reason = ""
    if tokenizer.format.padding_is_input:
        reason = "is read by the text transformer together with the padding of its row"
    elif tokenizer.end_id is None:
        reason = "has no end of text, at which a packed text is read"
    if reason:
        raise UserError(
            f"config.text.pack is True, but a text of this tokenizer {reason}, so that texts "
            "cannot share a row; set config.text.pack=False."
        )


class TextMetrics:
    """Measures how much packing and trimming save.

    Args:
        config: the run's config.
        model: the text transformer's architecture.
        context_length: tokens per row without packing and trimming.
    """

    def __init__(self, config: Config, model: TextConfig, context_length: int):
        self._config, self._model, self._context_length = config, model, context_length
        self._steps: list[TokenRows] = []

    def add(self, rows: TokenRows) -> None:
        """Counts a step."""
        self._steps.append(rows)

    def report(self) -> dict[str, float]:
        """Returns metrics over the steps since the last report.

        The baseline for `text_tokens_computed_fraction` and `text_flops_saved` is a full-length row
        per caption. `text_flops_saved` counts FLOPs per step in the text transformer's matrix
        products, forward and backward. With packing, `packing_overflows` counts the steps that
        needed more rows than planned.
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
    source: Source, tokenizer: Tokenizer, data: DataConfig, seed: int
) -> list[Int[np.ndarray, " c"]]:
    """Returns caption lengths in tokens for sampled examples, int[c] for an example's c captions.

    The samples are evenly spaced over the first epoch's draws. Only captions that training may use
    are counted; examples without such captions are left out.
    """
    count = min(len(source), _SAMPLED)
    parts = source_parts(source, data)
    turns = Turns(shares_of(source), 1, seed, True, (0,), 1, first_step=0)
    draws = [turns.draw(number * len(source) // count) for number in range(count)]

    def lengths(draw: Draw) -> Int[np.ndarray, " c"]:
        selection = parts[part_number(parts, draw.index)].selection
        try:
            captions = selection.candidates(draw, readable_captions(source, draw.index))
        except FilteredError:
            captions = ()
        return tokenizer.lengths(tokenizer(captions))

    sampled = in_threads(draws, lengths, data.threads, data.prefetch)
    return [per_caption for per_caption in sampled if len(per_caption)]
