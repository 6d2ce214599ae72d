"""Packing: first-fit decreasing, nothing lost, and row counts that are known in advance."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import captions

from dinotxt_jax.data.packing import (
    first_fit_decreasing,
    pack,
    planned_rows,
    row_counts,
    rows_needed,
    stacked,
)
from dinotxt_jax.tokenizers import ClipTokenizer

drawn_lengths = st.lists(st.integers(2, 20), min_size=1, max_size=40).map(np.asarray)


def one_by_one(lengths: np.ndarray, row_length: int) -> list[tuple[int, int]]:
    """Implements first-fit decreasing as in textbooks."""
    used: list[int] = []
    places = [(0, 0)] * len(lengths)
    for caption in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [r for r in range(len(used)) if used[r] + lengths[caption] <= row_length]
        if not fitting:
            used.append(0)
        row = fitting[0] if fitting else len(used) - 1
        places[caption] = row, used[row]
        used[row] += int(lengths[caption])
    return places


@given(drawn_lengths)
def test_captions_are_placed_by_first_fit_decreasing(lengths: np.ndarray) -> None:
    row, first = first_fit_decreasing(lengths, 20)
    assert list(zip(row.tolist(), first.tolist(), strict=True)) == one_by_one(lengths, 20)


@given(drawn_lengths)
def test_every_caption_is_there_once_and_nothing_else(lengths: np.ndarray) -> None:
    tokens = captions(lengths, row_length=20)
    packed = pack(tokens, lengths)
    assert len(packed.tokens) == rows_needed(lengths, 20)
    for array in packed:
        assert array.dtype == np.int32
    rest = packed.segment_ids.copy()
    for caption, length, row, column in zip(
        tokens, lengths, packed.row, packed.column, strict=True
    ):
        place = row, slice(column + 1 - length, column + 1)
        np.testing.assert_array_equal(packed.tokens[place], caption[:length])
        np.testing.assert_array_equal(packed.positions[place], np.arange(length))
        assert len(set(packed.segment_ids[place])) == 1
        assert packed.segment_ids[place][0] > 0
        # A segment contains only this caption.
        assert (packed.segment_ids[row] == packed.segment_ids[row, column]).sum() == length
        rest[place] = 0
    assert not rest.any()
    for array in (packed.tokens, packed.positions):
        assert not array[packed.segment_ids == 0].any()


def test_a_caption_may_fill_the_remaining_tokens_exactly() -> None:
    packed = pack(captions([20, 2, 18, 3, 9, 8], row_length=20), np.array([20, 2, 18, 3, 9, 8]))
    assert packed.row.tolist() == [0, 1, 1, 2, 2, 2]
    assert packed.column.tolist() == [19, 19, 17, 19, 8, 16]
    assert packed.segment_ids.all()


def test_parts_are_filled_up_to_the_same_number_of_rows() -> None:
    parts = [
        pack(captions([20, 20]), np.array([20, 20])),
        pack(captions([77, 2]), np.array([77, 2])),
    ]
    result = stacked(parts, 3)
    assert [array.shape for array in result] == [(2, 3, 77)] * 3 + [(2, 2)] * 2
    np.testing.assert_array_equal(result.tokens[1, :2], parts[1].tokens)
    assert not result.segment_ids[0, 1:].any()
    assert not result.segment_ids[1, 2:].any()
    assert result.row.tolist() == [[0, 0], [0, 1]]


def sample(rng: np.random.Generator, examples: int) -> list[np.ndarray]:
    """Draws caption lengths, one to five captions per example."""
    return [rng.poisson(11, rng.integers(1, 6)).clip(0, 70) + 3 for _ in range(examples)]


@pytest.mark.parametrize("size", [16, 128])
def test_the_planned_rows_do_for_almost_every_batch_and_are_few(size: int) -> None:
    rng = np.random.default_rng(1)
    lengths = sample(rng, 2048)
    planned = planned_rows(lengths, size, 1, 77)
    assert planned == planned_rows(lengths, size, 1, 77)
    flat = np.concatenate(lengths)
    needs = np.array([rows_needed(rng.choice(flat, size), 77) for _ in range(2000)])
    assert (needs > planned).mean() < 0.01
    assert planned <= needs.max() + 1


def test_many_parts_have_more_chances_to_need_more_rows() -> None:
    lengths = sample(np.random.default_rng(2), 500)
    assert planned_rows(lengths, 256, 64, 77) > planned_rows(lengths, 256, 1, 77)


def test_no_more_rows_than_captions_are_planned() -> None:
    lengths = [np.array([77]), np.array([77, 76])]
    assert planned_rows(lengths, 5, 8, 77) == 5
    assert planned_rows(lengths, 1, 8, 77) == 1


@given(st.integers(1, 60), st.integers(0, 300))
def test_row_counts_go_up_to_a_row_a_caption(planned: int, more: int) -> None:
    counts = row_counts(planned, planned + more)
    assert counts[0] == planned
    assert counts[-1] == planned + more
    assert counts == sorted(set(counts))
    assert all(high - low <= low / 8 + 1 for low, high in itertools.pairwise(counts))


def test_photo_captions_need_a_fifth_of_the_tokens(shared_data: Path) -> None:
    tokenizer = ClipTokenizer(shared_data / "clip_bpe/bpe_simple_vocab_16e6.txt.gz")
    lines = (shared_data / "flickr8k/captions.jsonl").read_text().splitlines()
    lengths = [tokenizer.lengths(tokenizer(json.loads(line)["captions"])) for line in lines[:2000]]
    assert 4096 / planned_rows(lengths, 4096, 1, 77) > 5
    real = np.concatenate(lengths)[:4096]
    assert 4096 / rows_needed(real, 77) > 5.2
