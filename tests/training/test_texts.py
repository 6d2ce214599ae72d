"""Arranging the captions in a batch: packing, trimming, counting and logging."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from absl import logging
from piece_files import CAPTIONS, word_file
from small_runs import config

from dinotxt_jax import UserError, sharding
from dinotxt_jax.config import Config, TokenizerConfig
from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.tokenizers import PIECE_SETTINGS, SentencePieceTokenizer, Tokenizer
from dinotxt_jax.training.texts import (
    TextMetrics,
    TextRows,
    TokenRows,
    make_tokenizer,
    save_tokenizer,
)

DEVICES = 2
MODEL = TextConfig(width=32, depth=2, num_heads=2, mlp_hidden_dim=128)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    run = config(Path())
    return make_tokenizer(run, Path("nowhere"), open_source(run.data))


def text_rows(tokenizer: Tokenizer, run: Config) -> TextRows:
    """Returns token rows for batches shared by two devices."""
    mesh = sharding.make_mesh(devices=jax.devices()[:DEVICES])
    return TextRows(run, tokenizer, open_source(run.data), mesh)


def settings(captions: int, **text: Any) -> Config:
    """Returns a config for batches of `captions` pairs."""
    run = config(Path(), batch_size=captions)
    return dataclasses.replace(run, text=dataclasses.replace(run.text, **text))


def arranged(rows: TextRows, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], TokenRows]:
    """Returns the arrays of a batch arranged in a single process."""
    prepared = rows.prepare(tokens)
    return rows.arrange(prepared, prepared.size)


def report(run: Config, *steps: TokenRows) -> dict[str, float]:
    """Returns the text metrics for some steps."""
    metrics = TextMetrics(run, MODEL, context_length=64)
    for rows in steps:
        metrics.add(rows)
    return metrics.report()


def scenes(count: int) -> list[str]:
    source = open_source(config(Path()).data)
    return [source.captions(index % len(source))[index % 5] for index in range(count)]


def test_each_device_holds_the_rows_for_its_part(tokenizer: Tokenizer) -> None:
    texts, run = scenes(64), settings(64, pack=True)
    arrays, token_rows = arranged(text_rows(tokenizer, run), tokenizer(texts))
    planned = arrays["tokens"].shape[1]
    assert arrays["tokens"].shape == (DEVICES, planned, 64)
    assert arrays["row"].shape == (DEVICES, 32)
    for number, whole in enumerate(tokenizer(texts)):
        part, caption = divmod(number, 32)
        row, end = arrays["row"][part, caption], arrays["column"][part, caption]
        length = int(whole.argmax()) + 1
        result = arrays["tokens"][part, row, end + 1 - length : end + 1]
        np.testing.assert_array_equal(result, whole[:length])
    assert token_rows == (DEVICES * planned, 64, False)
    assert report(run, token_rows) == {
        "text_tokens_computed_fraction": planned / 32,
        "text_flops_saved": 3 * MODEL.flops(64 - 2 * planned, 64),
        "packing_overflows": 0,
    }


def test_the_rows_that_all_processes_need_are_taken(tokenizer: Tokenizer) -> None:
    rows, tokens = text_rows(tokenizer, settings(64, pack=True)), tokenizer(scenes(64))
    arrays, _ = arranged(rows, tokens)
    prepared = rows.prepare(tokens)
    more = arrays["tokens"].shape[1] + 1
    assert prepared.size < more
    arrays, token_rows = rows.arrange(prepared, more)
    assert arrays["tokens"].shape[1] >= more
    assert token_rows.rows == DEVICES * arrays["tokens"].shape[1]
    assert not arrays["segment_ids"][:, prepared.size :].any()


def test_a_batch_of_long_captions_is_not_cut_but_counted_and_logged(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(logging, "info", lambda text, *values: lines.append(text % values))
    long = ["a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3] * 64
    run = settings(64, pack=True)
    rows, tokens = text_rows(tokenizer, run), tokenizer(long)
    (arrays, first), (_, second), (_, third) = (arranged(rows, tokens) for _ in range(3))
    assert arrays["tokens"].shape == (DEVICES, 32, 64)
    np.testing.assert_array_equal(arrays["tokens"].reshape(64, 64), tokens)
    planned, line = lines  # over three such batches
    assert planned.startswith("packing 32 captions into ")
    assert line.startswith("a batch needs 32 rows of packed captions per device, but ")
    assert report(run, first, second, third) == {
        "text_tokens_computed_fraction": 1.0,
        "text_flops_saved": 0.0,
        "packing_overflows": 3,
    }


def test_trimmed_rows_count_saved_flops(tokenizer: Tokenizer) -> None:
    run = settings(64, trim=16)
    tokens = tokenizer(["a red circle"] * 64)
    arrays, token_rows = arranged(text_rows(tokenizer, run), tokens)
    assert arrays["tokens"].shape == (64, 16)
    saved = MODEL.flops(64, 64) - MODEL.flops(64, 16)
    assert report(run, token_rows) == {
        "text_tokens_computed_fraction": 0.25,
        "text_flops_saved": 3 * saved,
    }


WORDS = sorted({word for caption in CAPTIONS for word in caption.split()})


@pytest.fixture
def pieces(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(word_file(WORDS))
    return file


def with_pieces(pieces: Path, **changes: Any) -> Config:
    settings = dict(kind="sentencepiece", vocabulary=str(pieces), context_length=16)
    return config(Path(), tokenizer=TokenizerConfig(**settings | changes))


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("siglip", "is read by the text transformer together with the padding of its row"),
        ("siglip2", "is read by the text transformer together with the padding of its row"),
        ("tips", "has no end of text, at which a packed text is read"),
    ],
)
def test_texts_that_cannot_share_a_row_are_not_packed(
    pieces: Path, family: str, reason: str
) -> None:
    tokenizer = SentencePieceTokenizer(pieces, PIECE_SETTINGS[family])
    with pytest.raises(UserError, match=rf"text.pack is True, .* {reason}, .*text.pack=False"):
        text_rows(tokenizer, settings(64, pack=True))
    trimmed = text_rows(tokenizer, settings(64, trim=8)).prepare(tokenizer(CAPTIONS[:64])).size
    # The longest is "a small red circle left of the star"; without an end, it has 8 tokens.
    assert trimmed == (64 if family.startswith("siglip") else 8)


def test_a_run_may_use_the_pieces_of_a_file(pieces: Path) -> None:
    run = with_pieces(pieces)
    tokenizer = make_tokenizer(run, Path("nowhere"), open_source(run.data))
    tokens = tokenizer(CAPTIONS[:64])
    assert tokenizer.end_id == tokenizer.vocabulary_size - 1 == len(WORDS) + 3
    arrays, _ = arranged(text_rows(tokenizer, settings(64, pack=True)), tokens)
    column = arrays["column"].reshape(-1)
    row = arrays["row"] + np.arange(DEVICES)[:, None] * arrays["tokens"].shape[1]
    ends = arrays["tokens"].reshape(-1, 16)[row.reshape(-1), column]
    assert (ends == tokenizer.end_id).all()


def test_a_run_continues_without_the_file_but_not_with_another(
    pieces: Path, tmp_path: Path
) -> None:
    run, workdir = with_pieces(pieces), tmp_path / "run"
    source = open_source(run.data)
    tokenizer = make_tokenizer(run, workdir, source)
    save_tokenizer(tokenizer, workdir / "tokenizer")
    assert make_tokenizer(run, workdir, source).spec() == tokenizer.spec()
    with pytest.raises(UserError, match="kind sentencepiece with rows of 16, expected sent.* 12;"):
        make_tokenizer(with_pieces(pieces, context_length=12), workdir, source)
    pieces.write_bytes(word_file(WORDS[1:]))
    with pytest.raises(UserError, match=r"sha256 .* name the file that the run in --workdir began"):
        make_tokenizer(run, workdir, source)
    pieces.unlink()
    again = make_tokenizer(run, workdir, source)
    np.testing.assert_array_equal(again(CAPTIONS), tokenizer(CAPTIONS))


def test_the_flops_of_the_released_text_transformer() -> None:
    """220 GFLOPs per caption of 77 tokens, forward and backward, as derived in docs/recipes.md."""
    assert 3 * TextConfig().flops(1, 77) == pytest.approx(220e9, rel=0.01)
