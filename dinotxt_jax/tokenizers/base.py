"""The interface of all tokenizers: captions to rows of ids with a fixed length, and back."""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from jaxtyping import Int
from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import pre_tokenizers

from dinotxt_jax.config import TokenizerConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike, to_address
from dinotxt_jax.tokenizers.cleaning import clean_caption
from dinotxt_jax.tokenizers.row_format import RowFormat

START_TOKEN, END_TOKEN = "<|startoftext|>", "<|endoftext|>"
BYTE_TOKENS = sorted(pre_tokenizers.ByteLevel.alphabet())


class Engine(Protocol):
    """Splits cleaned texts into ids, without start and end, and joins ids into text."""

    def encode(self, texts: list[str]) -> list[list[int]]: ...

    def decode(self, ids: list[int]) -> str: ...


class LibraryEngine:
    """An `Engine` of the library Hugging Face `tokenizers`."""

    def __init__(self, tokenizer: LibraryTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode(self, texts: list[str]) -> list[list[int]]:
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids)


class Tokenizer(abc.ABC):
    """Base class for all tokenizers; picklable for data workers.

    Attributes:
        kind: the subclass's name in `model.json`.
        file: the tokenizer file's name in a model directory.
        vocabulary_size: every id is smaller.
        format: the layout of rows.
        cleaning: the rule that cleans captions, a name in `CLEANING_RULES`.
    """

    kind: ClassVar[str]
    file: str

    def __init__(
        self,
        engine: Engine,
        content: bytes,
        vocabulary_size: int,
        row_format: RowFormat,
        cleaning: str = "clip",
    ) -> None:
        self._engine = engine
        self._content = content
        self.vocabulary_size = vocabulary_size
        self.format = row_format
        self.cleaning = cleaning

    @classmethod
    @abc.abstractmethod
    def load(cls, spec: Mapping[str, Any], directory: Address) -> Tokenizer:
        """Loads the tokenizer that `spec()` described and `save(directory)` wrote.

        Raises:
            UserError: a file is missing or differs from the spec, or the spec is incomplete.
        """

    @classmethod
    @abc.abstractmethod
    def configured(
        cls, settings: TokenizerConfig, captions: Callable[[], Iterable[str]]
    ) -> Tokenizer:
        """Makes the tokenizer of a training run; `captions` returns all training captions.

        Raises:
            UserError: the vocabulary is not available.
        """

    @classmethod
    @abc.abstractmethod
    def configured_size(cls, settings: TokenizerConfig) -> int:
        """Returns the vocabulary size of `configured`, without captions.

        Raises:
            UserError: the vocabulary is not available.
        """

    @property
    def context_length(self) -> int:
        """Ids per row."""
        return self.format.context_length

    @property
    def start_id(self) -> int | None:
        """The first id in every row, if there is one."""
        return self.format.start_id

    @property
    def end_id(self) -> int | None:
        """The id after a text, if there is one."""
        return self.format.end_id

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
        """Encodes captions as int32 rows `[n, context_length]` in the layout of `format`.

        Raises:
            UserError: a caption is not a `str`.
        """
        texts = [texts] if isinstance(texts, str) else texts
        cleaned = [clean_caption(text, self.cleaning) for text in texts]
        return self.format.rows(self._text_ids(cleaned))

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        """Returns ids for cleaned captions, without start and end."""
        return self._engine.encode(texts)

    def lengths(self, tokens: Int[np.ndarray, "n l"]) -> Int[np.ndarray, " n"]:
        """Returns each row's length; later ids change no feature (`RowFormat.lengths`)."""
        return self.format.lengths(tokens)

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes one row to the cleaned text between the start and the first end of text."""
        return self._engine.decode(self.format.text_ids(ids)).strip()


def check_entries(spec: Mapping[str, Any], directory: Address, **types: type) -> None:
    """Raises `UserError` unless the description of a tokenizer has entries of these types."""
    if missing := [name for name, kind in types.items() if type(spec.get(name)) is not kind]:
        raise UserError(
            f"the description of the tokenizer in {directory} lacks {' and '.join(missing)}; "
            "restore the file, or train or convert the model again."
        )


def trimmed_length(longest: int, multiple: int, context_length: int) -> int:
    """Rounds `longest` up to a multiple, at most the context length."""
    return min(-(-longest // multiple) * multiple, context_length)
