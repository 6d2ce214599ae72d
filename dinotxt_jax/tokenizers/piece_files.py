"""Readers of sentencepiece files: `tokenizer.json` (Hugging Face `tokenizers`) and `.model`.

Both give the same ids for the same pieces. In particular, marks such as `<pad>` or `</s>` that are
written out in a text are text: the libraries differ in this (transformers reads them as marks).
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

from tokenizers import Tokenizer as LibraryTokenizer

from dinotxt_jax.errors import UserError
from dinotxt_jax.tokenizers.base import Engine, LibraryEngine

JSON_FILE, MODEL_FILE = "tokenizer.json", "tokenizer.model"
# Begins pieces that no text may give; a noncharacter, which Unicode excludes from texts.
_NEVER = "\ufdd0"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


class PieceFile(Engine, Protocol):
    """An `Engine` that knows its pieces.

    Attributes:
        size: number of ids in the file.
        unknown_id: the id of what no piece covers, or None.
    """

    size: int
    unknown_id: int | None

    def surface(self, token_id: int) -> str | None:
        """Returns the text that becomes this id; None for marks and ids that text never gives.

        For an id that stands for a byte, this is the empty text.
        """


def open_piece_file(content: bytes, name: str) -> PieceFile:
    """Opens a sentencepiece file.

    Args:
        content: the file.
        name: the file's path, for messages; `.json` selects the reader.

    Raises:
        UserError: the file is damaged, or `sentencepiece` is needed and not installed.
    """
    return _JsonPieces(content, name) if name.endswith(".json") else _ModelPieces(content, name)


def _as_text(piece: str) -> str:
    """Returns the text of a piece, in which a bar stands for a space."""
    return piece.replace("\u2581", " ")


class _JsonPieces(LibraryEngine):
    """Pieces of a `tokenizer.json`, whose padding, truncation and templates are not used."""

    def __init__(self, content: bytes, name: str) -> None:
        self._arguments = (content, name)
        try:
            values = json.loads(content)
            added = values["added_tokens"]
            marks: set[int | None] = {token["id"] for token in added if token["special"]}
            self.unknown_id = _unknown_id(values["model"])
            super().__init__(LibraryTokenizer.from_str(json.dumps(_plain(values, marks))))
        except Exception as error:  # the library raises Exception itself
            raise UserError(
                f"{name} is no tokenizer.json of Hugging Face tokenizers ({error}); fetch it again."
            ) from error
        self._tokenizer.encode_special_tokens = True  # as text
        vocabulary = self._tokenizer.get_vocab()
        marks |= {self.unknown_id}
        self._pieces = {i: piece for piece, i in vocabulary.items() if i not in marks}
        self.size = max(vocabulary.values(), default=-1) + 1

    def __reduce__(self) -> Any:
        return type(self), self._arguments

    def surface(self, token_id: int) -> str | None:
        piece = self._pieces.get(token_id)
        if piece is None:
            return None
        return "" if _BYTE.fullmatch(piece) else _as_text(piece)


def _unknown_id(model: dict[str, Any]) -> int | None:
    if "unk_id" in model:
        return model["unk_id"]
    return model["vocab"].get(model.get("unk_token"))


def _plain(values: dict[str, Any], marks: set[int | None]) -> dict[str, Any]:
    """Returns a description that adds nothing to a text, and finds no special id `marks` in it."""
    model, added = dict(values["model"]), values["added_tokens"]
    if isinstance(model["vocab"], list):
        # A unigram model finds any of its pieces in a text. The place in the list is the id.
        model["vocab"] = [
            [_NEVER + piece if token_id in marks else piece, score]
            for token_id, (piece, score) in enumerate(model["vocab"])
        ]
        added = [
            token | {"content": _NEVER + token["content"]} if token["id"] in marks else token
            for token in added
        ]
    unused = dict.fromkeys(("post_processor", "padding", "truncation"))
    return values | unused | {"model": model, "added_tokens": added}


class _ModelPieces:
    """Pieces of a `.model`, read by the library `sentencepiece`."""

    def __init__(self, content: bytes, name: str) -> None:
        self._arguments = (content, name)
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise UserError(
                f"reading {name} needs sentencepiece, which is not installed; run pip install "
                "sentencepiece, or give a tokenizer.json."
            ) from error
        try:
            self._processor = SentencePieceProcessor(model_proto=content)
            self.size = self._processor.get_piece_size() if content else 0
        except Exception as error:
            self.size = 0
            reason = str(error)
        else:
            reason = "it holds no pieces"
        if not self.size:
            raise UserError(f"{name} is no sentencepiece model ({reason}); fetch it again.")
        unknown = self._processor.unk_id()
        self.unknown_id = unknown if unknown >= 0 else None

    def __reduce__(self) -> Any:
        return type(self), self._arguments

    def encode(self, texts: list[str]) -> list[list[int]]:
        return self._processor.encode(texts, out_type=int)

    def decode(self, ids: list[int]) -> str:
        return self._processor.decode(ids)

    def surface(self, token_id: int) -> str | None:
        processor = self._processor
        marks = (processor.is_control, processor.is_unknown, processor.is_unused)
        if not 0 <= token_id < self.size or any(is_mark(token_id) for is_mark in marks):
            return None
        return "" if processor.is_byte(token_id) else _as_text(processor.id_to_piece(token_id))
