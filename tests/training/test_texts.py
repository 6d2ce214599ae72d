"""Arranging the captions of a batch: what is packed, trimmed, counted and logged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl import logging
from small_runs import config

from dinotxt_jax import sharding
from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.tokenizers import Tokenizer
from dinotxt_jax.training.texts import TextRows, make_tokenizer

DEVICES = 2
MODEL = TextConfig(width=32, depth=2, num_heads=2, mlp_hidden_dim=128)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    run = config(Path())
    return make_tokenizer(run, Path("nowhere"), open_source(run.data))


def arranged(tokenizer: Tokenizer, texts: list[str], **text: Any) -> tuple[TextRows, dict]:
    """Half of `texts` on each of two devices."""
    import jax

    run = config(Path(), batch_size=len(texts))
    run = dataclasses.replace(run, text=dataclasses.replace(run.text, **text))
    mesh = sharding.make_mesh(devices=jax.devices()[:DEVICES])
    rows = TextRows(run, MODEL, tokenizer, open_source(run.data), mesh)
    needed, arrange = rows.prepare(tokenizer(texts))
    return rows, arrange(needed)


def scenes(count: int) -> list[str]:
    source = open_source(config(Path()).data)
    return [source.captions(index % len(source))[index % 5] for index in range(count)]


def test_each_device_has_rows_for_its_own_part(tokenizer: Tokenizer) -> None:
    texts = scenes(64)
    rows, arrays = arranged(tokenizer, texts, pack=True)
    planned = arrays["tokens"].shape[1]
    assert arrays["tokens"].shape == (DEVICES, planned, 64)
    assert arrays["row"].shape == (DEVICES, 32)
    for number, whole in enumerate(tokenizer(texts)):
        part, caption = divmod(number, 32)
        row, end = arrays["row"][part, caption], arrays["column"][part, caption]
        length = int(whole.argmax()) + 1
        found = arrays["tokens"][part, row, end + 1 - length : end + 1]
        np.testing.assert_array_equal(found, whole[:length])
    assert rows.report() == {
        "text_tokens_computed_fraction": planned / 32,
        "text_flops_saved": 3 * MODEL.flops(64 - 2 * planned, 64),
        "packing_overflows": 0,
    }


def test_the_rows_that_all_processes_need_are_taken(tokenizer: Tokenizer) -> None:
    rows, arrays = arranged(tokenizer, scenes(64), pack=True)
    needed, arrange = rows.prepare(tokenizer(scenes(64)))
    more = arrays["tokens"].shape[1] + 1
    assert needed < more
    found = arrange(more)
    assert found["tokens"].shape[1] >= more
    assert not found["segment_ids"][:, needed:].any()


def test_a_batch_of_long_captions_is_not_cut_but_counted_and_logged(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: lines.append(text % values))
    long = ["a b c d e f g h i j k l m n o p q r s t u v w x y z " * 3] * 64
    rows, arrays = arranged(tokenizer, long, pack=True)
    assert arrays["tokens"].shape == (DEVICES, 32, 64)
    np.testing.assert_array_equal(arrays["tokens"].reshape(64, 64), tokenizer(long))
    for _ in range(2):
        needed, arrange = rows.prepare(tokenizer(long))
        arrange(needed)
    (line,) = lines  # of three such batches
    assert line.startswith("a batch needs 32 rows of packed captions on a device and ")
    report = rows.report()
    assert report["packing_overflows"] == 3
    assert report["text_tokens_computed_fraction"] == 1.0
    assert report["text_flops_saved"] == 0.0


def test_trimmed_rows_count_what_they_save(tokenizer: Tokenizer) -> None:
    rows, arrays = arranged(tokenizer, ["a red circle"] * 64, trim=16)
    assert arrays["tokens"].shape == (64, 16)
    saved = MODEL.flops(64, 64) - MODEL.flops(64, 16)
    assert rows.report() == {"text_tokens_computed_fraction": 0.25, "text_flops_saved": 3 * saved}


def test_the_flops_of_the_released_text_transformer() -> None:
    """220 G a caption of 77 tokens, forward and backward, as derived in docs/recipes.md."""
    assert 3 * TextConfig().flops(1, 77) == pytest.approx(220e9, rel=0.01)
