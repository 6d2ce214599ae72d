"""Drawn captions, and batches of them packed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinotxt_jax.data.packing import Packed, pack, stacked

START, END = 131, 132  # of the reference model's vocabulary of 133


def captions(lengths: Sequence[int], row_length: int = 77, seed: int = 0) -> np.ndarray:
    """A row for each caption, whose first end-of-text is its token number `length`.

    Behind that one stand ids of text and further ends, which must have no effect.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, START, (len(lengths), row_length)).astype(np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[length::3] = END
        row[0] = START
        row[length - 1] = END
    return tokens


def packed(tokens: np.ndarray, parts: int = 1, spare: int = 0) -> Packed:
    """A batch in `parts` parts, with `spare` empty rows more than the fullest part needs."""
    packs = [pack(rows, rows.argmax(1) + 1) for rows in np.split(tokens, parts)]
    return stacked(packs, max(len(part.tokens) for part in packs) + spare)
