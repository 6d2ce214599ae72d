"""Caption packing: several captions share a token row, without changing any feature.

A caption ends at the first end-of-text token, and attention is causal: later tokens have no effect,
so other captions can use the space after it. Each token has a segment ID, which identifies the
caption (attention is masked to the segment), and a position within the caption. Each device's part
of a batch is packed into separate rows; see `dinotxt_jax.models.text.Packing`.

Captions are placed by first-fit decreasing: longest first, each into the first row with room. The
number of rows must be known when a step is compiled: `planned_rows` rows are enough for almost
every batch. For all other batches, `row_counts` lists larger numbers, up to a row per caption, so
that every caption fits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

# Number of sample batches for estimating the needed rows, and the fraction of steps that may need
# more rows.
_DRAWN = 64
_BEYOND = 1e-3


class Packed(NamedTuple):
    """Packed rows for a part of a batch; arrays for p parts have a leading dimension p.

    Attributes:
        tokens: int32[r l], the tokens; 0 is padding.
        segment_ids: int32[r l], 1 plus the column where the token's caption starts; 0 is padding.
        positions: int32[r l], the token position within the caption.
        row, column: int32[c], the end-of-text location for each caption, in batch order.
    """

    tokens: np.ndarray
    segment_ids: np.ndarray
    positions: np.ndarray
    row: np.ndarray
    column: np.ndarray


def first_fit_decreasing(
    lengths: Int[np.ndarray, " c"], row_length: int
) -> tuple[Int[np.ndarray, " c"], Int[np.ndarray, " c"]]:
    """Returns row and first column for each caption; captions with equal lengths keep their order.

    Args:
        lengths: number of tokens in each caption, 1 to `row_length`.
        row_length: number of tokens in a row.
    """
    captions = len(lengths)
    row, first = np.zeros(captions, np.int32), np.zeros(captions, np.int32)
    used = np.zeros(captions, np.int64)  # [c], tokens used in each row; at most c rows
    # First-fit puts captions with equal lengths into the first row until it is full, then into the
    # next row. All captions with the same length are therefore placed at once: the loop runs over
    # lengths, not over captions.
    for length in np.unique(lengths)[::-1]:
        (same,) = np.nonzero(lengths == length)  # captions with this length
        room = (row_length - used) // length  # [c], how many such captions fit into each row
        before = np.cumsum(room) - room  # [c], how many fit into all earlier rows
        placed = np.clip(len(same) - before, 0, room)  # [c], how many each row receives
        row[same] = np.repeat(np.arange(captions), placed)
        number = np.arange(len(same)) - before[row[same]]  # 0, 1, ... within each row
        first[same] = used[row[same]] + number * length
        used += placed * length
    return row, first


def rows_needed(lengths: Int[np.ndarray, " c"], row_length: int) -> int:
    """Returns the number of rows that first-fit decreasing fills."""
    return int(first_fit_decreasing(lengths, row_length)[0].max()) + 1


def pack(tokens: Int[np.ndarray, "c l"], lengths: Int[np.ndarray, " c"]) -> Packed:
    """Packs a part's captions into as few rows as first-fit decreasing needs.

    Args:
        tokens: a caption per row.
        lengths: number of tokens in each caption, up to and including the first end-of-text; later
            tokens are dropped.
    """
    row_length = tokens.shape[1]
    row, first = first_fit_decreasing(lengths, row_length)
    packed = np.zeros((3, int(row.max()) + 1, row_length), np.int32)  # tokens, segments, positions
    # Caption and position for every text token, [tokens] each, to copy all tokens at once.
    caption, position = np.nonzero(np.arange(row_length) < lengths[:, None])
    values = tokens[caption, position], first[caption] + 1, position
    packed[:, row[caption], first[caption] + position] = values
    column = (first + lengths - 1).astype(np.int32)
    return Packed(packed[0], packed[1], packed[2], row, column)


def stacked(parts: Sequence[Packed], rows: int) -> Packed:
    """Pads each part with empty rows to `rows` rows, and stacks the parts: [p r l] and [p c]."""

    def filled(arrays: Sequence[np.ndarray]) -> np.ndarray:
        return np.stack([np.pad(array, ((0, rows - len(array)), (0, 0))) for array in arrays])

    tokens, segment_ids, positions, row, column = zip(*parts, strict=True)
    return Packed(
        filled(tokens), filled(segment_ids), filled(positions), np.stack(row), np.stack(column)
    )


def planned_rows(
    lengths: Sequence[Int[np.ndarray, " _"]], captions: int, parts: int, row_length: int
) -> int:
    """Returns the number of rows per part that is enough for 99.9 % of steps.

    Random batches are drawn from a sample, always with the same seed. The mean and standard
    deviation over their row counts define a normal distribution; the result is the bound that all
    parts in a step jointly satisfy.

    Args:
        lengths: the caption lengths for each example in the sample.
        captions: number of captions in a part.
        parts: number of parts in a batch.
        row_length: number of tokens in a row.
    """
    rng = np.random.default_rng(0)
    counts = np.asarray([len(example_lengths) for example_lengths in lengths])
    flat, starts = np.concatenate(lengths), np.cumsum(counts) - counts
    needs = []
    for _ in range(_DRAWN):
        example = rng.integers(len(lengths), size=captions)
        batch_lengths = flat[starts[example] + rng.integers(counts[example].astype(np.int64))]
        needs.append(rows_needed(batch_lengths, row_length))
    # The square root accounts for the random error in the sample mean.
    spread = np.std(needs, ddof=1) * math.sqrt(1 + captions / len(lengths))
    bound = np.mean(needs) + NormalDist().inv_cdf(1 - _BEYOND / parts) * spread
    # Continuity correction: needing more than r rows corresponds to normal values above r + 1/2.
    return min(math.ceil(bound - 0.5), captions)


def row_counts(planned: int, captions: int) -> list[int]:
    """Returns the planned rows per part, followed by fallbacks that each add an eighth.

    The last number is a row per caption, which is enough for every batch.
    """
    counts = [planned]
    while counts[-1] < captions:
        counts.append(min(counts[-1] + math.ceil(counts[-1] / 8), captions))
    return counts
