"""Packing: the token rows of several captions in one, which changes no feature.

A caption ends at its first end-of-text, and attention is causal: what stands behind has no effect,
so that its place can be given to other captions. Tokens then name their caption (the segment, which
attention does not look beyond) and their position in it. Each part of a batch, which is what one
device holds, has rows of its own; see `dinotxt_jax.models.text.Packing`.

Captions are placed by first-fit decreasing: longest first, each into the first row with room. The
number of rows must be known when a step is compiled: `planned_rows` is what almost every batch can
do with, `row_counts` has more for the others, up to a row a caption, so that nothing is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Batches drawn to learn how many rows they need, and the share of steps that may need more.
_DRAWN = 64
_BEYOND = 1e-3


class Packed(NamedTuple):
    """Packed rows of one part of a batch; with a leading dimension p, of p parts.

    Attributes:
        tokens: int32[r l], 0 where no caption is.
        segment_ids: int32[r l], the first column of a token's caption plus 1; 0 is padding.
        positions: int32[r l], of a token in its caption.
        row, column: int32[c], where the end-of-text of each caption is, in the order of the batch.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray


def first_fit_decreasing(
    lengths: Int[np.ndarray, " c"], row_length: int
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"]]:
    """The row of each caption, and its first column there; equal lengths keep their order.

    Args:
        lengths: tokens of each caption, 1 to `row_length`.
        row_length: tokens of a row.
    """
    captions = len(lengths)
    row, first = np.zeros(captions, np.int32), np.zeros(captions, np.int32)
    used = np.zeros(captions, np.int64)  # tokens used of each row; there are at most c rows
    # First fit puts captions of equal length into the first row until it is full, then into the
    # next, so a whole length is placed at once: a loop over lengths instead of captions.
    for length in np.unique(lengths)[::-1]:
        (same,) = np.nonzero(lengths == length)  # the captions of this length
        room = (row_length - used) // length  # [c], how many of them fit into each row
        before = np.cumsum(room) - room  # [c], how many fit into all earlier rows
        placed = np.clip(len(same) - before, 0, room)  # [c], how many each row receives
        row[same] = np.repeat(np.arange(captions), placed)
        number = np.arange(len(same)) - before[row[same]]  # 0, 1, ... within each row
        first[same] = used[row[same]] + number * length
        used += placed * length
    return row, first


def rows_needed(lengths: Int[np.ndarray, " c"], row_length: int) -> int:
    """How many rows first-fit decreasing fills."""
    return int(first_fit_decreasing(lengths, row_length)[0].max()) + 1


def pack(tokens: Int[np.ndarray, "c l"], lengths: Int[np.ndarray, " c"]) -> Packed:
    """The captions of one part in as few rows as first-fit decreasing needs.

    Args:
        tokens: a caption a row.
        lengths: tokens of each up to and with its first end-of-text; what follows is left out.
    """
    row_length = tokens.shape[1]
    row, first = first_fit_decreasing(lengths, row_length)
    packed = np.zeros((3, int(row.max()) + 1, row_length), np.int32)  # tokens, segments, positions
    # Caption and position of every token of text, [tokens] each; all are copied at once.
    caption, position = np.nonzero(np.arange(row_length) < lengths[:, None])
    values = tokens[caption, position], first[caption] + 1, position
    packed[:, row[caption], first[caption] + position] = values
    column = (first + lengths - 1).astype(np.int32)
    return Packed(packed[0], packed[1], packed[2], row, column)


def stacked(parts: Sequence[Packed], rows: int) -> Packed:
    """Parts, each filled up with empty rows to `rows` of them, along a new first dimension."""

    def filled(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(array, ((0, rows - len(array)), (0, 0))) for array in arrays])

    tokens, segment_ids, positions, row, column = zip(*parts, strict=True)
    return Packed(
        filled(tokens), filled(segment_ids), filled(positions), np.stack(row), np.stack(column)
    )


def planned_rows(
    lengths: Sequence[Int[np.ndarray, " _"]], captions: int, parts: int, row_length: int
) -> int:
    """Rows of a part that all but one in a thousand steps can do with.

    Batches are drawn from a sample, always in the same way; what they need, on average and as a
    spread, gives the bound of a normal distribution that all parts of a step stay below together.

    Args:
        lengths: of the captions of each example of the sample.
        captions: of a part. parts: of a batch.
        row_length: tokens of a row.
    """
    rng = np.random.default_rng(0)
    counts = np.asarray([len(of_example) for of_example in lengths])
    flat, starts = np.concatenate(lengths), np.cumsum(counts) - counts
    needs = []
    for _ in range(_DRAWN):
        example = rng.integers(len(lengths), size=captions)
        drawn = flat[starts[example] + rng.integers(counts[example].astype(np.int64))]
        needs.append(rows_needed(drawn, row_length))
    # The second root: the average of the sample is itself off by chance.
    spread = np.std(needs, ddof=1) * math.sqrt(1 + captions / len(lengths))
    bound = np.mean(needs) + NormalDist().inv_cdf(1 - _BEYOND / parts) * spread
    # Needing more than r rows is what the bell curve has beyond r + 1/2.
    return min(math.ceil(bound - 0.5), captions)


def row_counts(planned: int, captions: int) -> list[int]:
    """The planned rows of a part and those to go on with, an eighth more each time.

    The last is a row a caption, which every batch can do with.
    """
    counts = [planned]
    while counts[-1] < captions:
        counts.append(min(counts[-1] + math.ceil(counts[-1] / 8), captions))
    return counts
