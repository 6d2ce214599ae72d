"""CLIP's byte-pair encoding, from the official vocabulary file."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import regex
from tokenizers import Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as LibraryTokenizer

from dinotxt_jax.config import TokenizerConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike, to_address
from dinotxt_jax.storage.downloads import cache_folder, check_sha256, download
from dinotxt_jax.tokenizers.base import (
    BYTE_TOKENS,
    END_TOKEN,
    START_TOKEN,
    LibraryEngine,
    Tokenizer,
    check_entries,
)
from dinotxt_jax.tokenizers.row_format import RowFormat

CLIP_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_VOCABULARY_URL = f"https://dl.fbaipublicfiles.com/dinov2/thirdparty/{CLIP_VOCABULARY_FILE}"
CLIP_VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
CLIP_VOCABULARY_SIZE = 49408

_WORD_END = "</w>"
_CLIP_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_WORDS_AND_SPECIALS = regex.compile(
    rf"{regex.escape(START_TOKEN)}|{regex.escape(END_TOKEN)}|{_CLIP_WORDS.removeprefix('(?i)')}",
    regex.IGNORECASE,
)


class ClipTokenizer(Tokenizer):
    """The tokenizer in CLIP and the released dino.txt models (Radford et al. 2021, section 2.4).

    Byte-level BPE with 49,408 ids, with end-of-word marks and without unknown tokens. A literal
    `<|startoftext|>` or `<|endoftext|>` in a caption becomes that id, as in the official code. Only
    characters newer than the engine's Unicode tables (letters in rare scripts) may be split
    differently.

    Args:
        vocabulary: path to `bpe_simple_vocab_16e6.txt.gz`; by default the copy in the cache folder
            (`$DINOTXT_CACHE`, or `~/.cache/dinotxt_jax`), downloaded on first use.
        context_length: ids per row; 77 in all released models.
        pad_id: the id after the end of text: 0 in the official code, 49407 (the end itself) in
            transformers. Causal text transformers give the same features for both.

    Raises:
        UserError: the file is missing, cannot be downloaded, or is not the official one; or there
            is no id `pad_id`.
    """

    kind = "clip"
    file = CLIP_VOCABULARY_FILE

    def __init__(
        self, vocabulary: AddressLike | None = None, context_length: int = 77, pad_id: int = 0
    ) -> None:
        if not 0 <= pad_id < CLIP_VOCABULARY_SIZE:
            raise UserError(
                f"pad_id is {pad_id}, expected an id from 0 to {CLIP_VOCABULARY_SIZE - 1}; give 0, "
                f"or {CLIP_VOCABULARY_SIZE - 1} as in transformers."
            )
        content = (
            _cached_clip_vocabulary() if vocabulary is None else _read_clip_vocabulary(vocabulary)
        )
        start, end = CLIP_VOCABULARY_SIZE - 2, CLIP_VOCABULARY_SIZE - 1
        row_format = RowFormat(context_length, start, end, pad_id)
        super().__init__(_clip_engine(content), content, CLIP_VOCABULARY_SIZE, row_format)

    @classmethod
    def load(cls, spec: Mapping[str, Any], directory: Address) -> ClipTokenizer:
        """Loads the vocabulary in `directory`, or without one from the cache or the network."""
        check_entries({"pad_id": 0, **spec}, directory, context_length=int, pad_id=int)
        path = directory / CLIP_VOCABULARY_FILE
        return cls(path if path.exists() else None, spec["context_length"], spec.get("pad_id", 0))

    @classmethod
    def configured(
        cls, settings: TokenizerConfig, captions: Callable[[], Iterable[str]]
    ) -> ClipTokenizer:
        return cls(settings.vocabulary or None, settings.context_length)

    @classmethod
    def configured_size(cls, settings: TokenizerConfig) -> int:
        return CLIP_VOCABULARY_SIZE

    def spec(self) -> dict[str, Any]:
        return super().spec() | {"pad_id": self.format.pad_id}

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        rows = super()._text_ids(texts)
        for i, text in enumerate(texts):
            if START_TOKEN in text or END_TOKEN in text:
                rows[i] = self._ids_with_specials(text)
        return rows

    def _ids_with_specials(self, text: str) -> list[int]:
        # The official word pattern decides whether a literal counts: in "!<|endoftext|>" the
        # punctuation consumes the literal's beginning. An added engine token would split there.
        specials = {START_TOKEN: CLIP_VOCABULARY_SIZE - 2, END_TOKEN: CLIP_VOCABULARY_SIZE - 1}
        ids: list[int] = []
        for word in _CLIP_WORDS_AND_SPECIALS.findall(text):
            ids += [specials[word]] if word in specials else self._engine.encode([word])[0]
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes one row with a space between words: the ids do not record spaces."""
        return super().decode(ids).replace(_WORD_END, " ").strip()


def _clip_engine(vocabulary: bytes) -> LibraryEngine:
    """Builds CLIP's engine: bytes, bytes that end a word, merges by rank, special tokens."""
    lines = gzip.decompress(vocabulary).decode().split("\n")
    # Line 0 is a version; the file has more merges than CLIP uses.
    count = CLIP_VOCABULARY_SIZE - 2 * len(BYTE_TOKENS) - 2
    merges = [(left, right) for left, right in map(str.split, lines[1 : 1 + count])]
    tokens = [*BYTE_TOKENS, *(byte + _WORD_END for byte in BYTE_TOKENS)]
    tokens += [left + right for left, right in merges] + [START_TOKEN, END_TOKEN]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    engine = LibraryTokenizer(models.BPE(ids, merges, end_of_word_suffix=_WORD_END))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return LibraryEngine(engine)


def _read_clip_vocabulary(path: AddressLike) -> bytes:
    path = to_address(path)
    if not path.is_file():
        raise UserError(
            f"the CLIP vocabulary {path} does not exist; give the path of {CLIP_VOCABULARY_FILE}, "
            "or none to have it downloaded."
        )
    check_sha256(path, CLIP_VOCABULARY_SHA256, f"delete it and fetch {CLIP_VOCABULARY_URL}")
    return path.read_bytes()


def _cached_clip_vocabulary() -> bytes:
    path = cache_folder() / CLIP_VOCABULARY_FILE
    return download(CLIP_VOCABULARY_URL, path, CLIP_VOCABULARY_SHA256).read_bytes()
