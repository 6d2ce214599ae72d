"""The interface of all tokenizers: captions to rows of ids with a fixed length, and back."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer as Engine
from tokenizers import pre_tokenizers

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import AddressLike, to_address
from dinotxt_jax.tokenizers.cleaning import clean_caption

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
BYTE_TOKENS = sorted(pre_tokenizers.ByteLevel.alphabet())


class Tokenizer:
    """Base class for both tokenizers; picklable for data workers.

    Attributes:
        kind: the subclass's name in `model.json`.
        file: the tokenizer file's name in a model directory.
        context_length: ids per row.
        vocabulary_size: rows in the embedding table; every id is smaller.
        start_id: the first id in every row.
        end_id: the end-of-text id, always `vocabulary_size - 1`.
    """

    kind: ClassVar[str]
    file: ClassVar[str]

    def __init__(
        self, engine: Engine, content: bytes, vocabulary_size: int, context_length: int
    ) -> None:
        if context_length < 3:
            raise UserError(
                f"context_length is {context_length}, but start, end and one token need 3; "
                "give a larger one."
            )
        self._engine = engine
        self._content = content
        self.vocabulary_size = vocabulary_size
        self.context_length = context_length
        self.start_id = vocabulary_size - 2
        self.end_id = vocabulary_size - 1

    def spec(self) -> dict[str, Any]:
        """Returns the description for `load_tokenizer`, as JSON values for `model.json`."""
        return {
            "kind": self.kind,
            "context_length": self.context_length,
            "vocabulary_size": self.vocabulary_size,
            "vocabulary": self.file,
            "sha256": hashlib.sha256(self._content).hexdigest(),
        }

    def save(self, directory: AddressLike) -> None:
        """Writes the tokenizer's file into an existing model directory."""
        (to_address(directory) / self.file).write_bytes(self._content)

    def encode(self, text: str) -> Int[np.ndarray, " l"]:
        """Encodes one caption as `context_length` int32 ids; see `__call__`."""
        return self([text])[0]

    def __call__(self, texts: str | Sequence[str]) -> Int[np.ndarray, "n l"]:
        """Encodes captions as int32 rows `[n, context_length]`, padded with zeros.

        A caption that is too long is truncated, and the row's last id is `end_id`.

        Raises:
            UserError: a caption is not a `str`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        rows = np.zeros((len(texts), self.context_length), np.int32)
        room = self.context_length - 2
        for row, ids in zip(rows, self._text_ids([clean_caption(t) for t in texts]), strict=True):
            used = min(len(ids), room)
            row[0] = self.start_id
            row[1 : 1 + used] = ids[:used]
            row[1 + used] = self.end_id
        return rows

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        """Returns ids for cleaned captions, without start and end."""
        return [encoding.ids for encoding in self._engine.encode_batch_fast(texts)]

    def lengths(self, tokens: Int[np.ndarray, "n l"]) -> Int[np.ndarray, " n"]:
        """Returns each row's length including the first end of text; later ids are unused."""
        return np.argmax(tokens, axis=-1).astype(np.int32) + 1

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes one row to the cleaned text between the start and the first end of text."""
        text_ids = itertools.takewhile(lambda token_id: token_id != self.end_id, map(int, ids))
        return self._engine.decode([i for i in text_ids if i != self.start_id]).strip()


def trimmed_length(longest: int, multiple: int, context_length: int) -> int:
    """Rounds `longest` up to a multiple, at most the context length."""
    return min(-(-longest // multiple) * multiple, context_length)
