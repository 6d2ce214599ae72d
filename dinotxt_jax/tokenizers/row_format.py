"""The layout of token rows: start, text, end and padding."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int

from dinotxt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RowFormat:
    """How the ids of a text become a row of fixed length: `[start, ids..., end, pad, ...]`.

    Padding is recognised by position, not by id: the id that pads may also be a token, as `!` is in
    CLIP, or the end itself.

    Attributes:
        context_length: ids per row.
        start_id: the first id in every row; None for rows that begin with the text.
        end_id: the id after the text; None for rows that end with the text.
        pad_id: the id that fills the rest of a row.
        sticky: whether a text that is too long still ends with `end_id`; otherwise the end is cut
            off with the text.
        padding_is_input: whether the model reads the padding, so that rows keep their full length.
    """

    context_length: int
    start_id: int | None
    end_id: int | None
    pad_id: int = 0
    sticky: bool = True
    padding_is_input: bool = False

    def __post_init__(self) -> None:
        marks = [name for name in ("start", "end") if getattr(self, f"{name}_id") is not None]
        needed = len(marks) + 1
        if self.context_length < needed:
            parts = " and ".join(filter(None, [", ".join(marks), "one token"]))
            raise UserError(
                f"context_length is {self.context_length}, but {parts} need {needed}; give a "
                "larger one."
            )

    def rows(self, texts: Sequence[Sequence[int]]) -> Int[np.ndarray, "n l"]:
        """Returns one int32 row per text; a text that is too long is cut."""
        start = [] if self.start_id is None else [self.start_id]
        end = [] if self.end_id is None else [self.end_id]
        room = self.context_length - len(start) - (len(end) if self.sticky else 0)
        rows = np.full((len(texts), self.context_length), self.pad_id, np.int32)
        for row, ids in zip(rows, texts, strict=True):
            used = [*start, *ids[:room], *end][: self.context_length]
            row[: len(used)] = used
        return rows

    def lengths(self, tokens: Int[np.ndarray, "n l"]) -> Int[np.ndarray, " n"]:
        """Returns how many ids in each row the model needs, at least 1.

        These are the ids up to and including the first end of text; without an end of text, up to
        the last id that is not padding; and if the model reads the padding, all ids.
        """
        count = tokens.shape[1]
        if self.padding_is_input:
            return np.full(len(tokens), count, np.int32)
        if self.end_id is None:
            last = np.max(np.arange(1, count + 1) * (tokens != self.pad_id), axis=1, initial=1)
            return last.astype(np.int32)
        is_end = tokens == self.end_id
        # A row without an end is a text that was cut.
        return np.where(is_end.any(1), is_end.argmax(1) + 1, count).astype(np.int32)

    def text_ids(self, row: Iterable[int]) -> list[int]:
        """Returns the ids of the text in a row, without start, end and padding."""
        ids = [int(token_id) for token_id in row]
        if self.end_id is None:
            while ids and ids[-1] == self.pad_id:
                ids.pop()
        else:
            ids = list(itertools.takewhile(lambda token_id: token_id != self.end_id, ids))
        return [token_id for token_id in ids if token_id != self.start_id]
