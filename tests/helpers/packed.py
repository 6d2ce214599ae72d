"""Random captions, and packed batches that contain them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dinotxt_jax.data.packing import Packed, pack, stacked

START, END = 131, 132  # the reference model's vocabulary size is 133


def captions(lengths: Sequence[int], row_length: int = 77, seed: int = 0) -> np.ndarray:
    """Returns one row per caption, with the first end-of-text token at position `length`.

    After this token the row contains text ids and further end tokens, which must have no effect.
    """
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, START, (len(lengths), row_length)).astype(np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[length::3] = END
        row[0] = START
        row[length - 1] = END
    return tokens


def packed(tokens: np.ndarray, parts: int = 1, spare: int = 0) -> Packed:
    """Packs a batch in `parts` parts, with `spare` empty rows beyond the fullest part."""
    packs = [pack(rows, rows.argmax(1) + 1) for rows in np.split(tokens, parts)]
    return stacked(packs, max(len(part.tokens) for part in packs) + spare)
