"""Tokenizers: CLIP's byte-pair encoding, and a BPE trained on the user's captions.

Both clean a caption the same way (mojibake and HTML entities repaired, white space collapsed, lower
case) and write a row as `[start, ids..., end, 0, ...]`. The end-of-text id is the largest id, so
case) and write a row as `[start, ids..., end, 0, ...]`. The end-of-text id is the largest id, so
can also be a token (`!` in CLIP): padding is recognised by position, not by id.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import ftfy
import numpy as np
import regex
from jaxtyping import Int
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import AddressLike, to_address
from dinotxt_jax.storage.downloads import cache_folder, check_sha256, download

CLIP_VOCABULARY_FILE = "bpe_simple_vocab_16e6.txt.gz"
CLIP_VOCABULARY_URL = f"https://dl.fbaipublicfiles.com/dinov2/thirdparty/{CLIP_VOCABULARY_FILE}"
CLIP_VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"

_START, _END, _PADDING = "<|startoftext|>", "<|endoftext|>", "<|padding|>"
_WORD_END = "</w>"
CLIP_VOCABULARY_SIZE = 49408
_CLIP_WORDS = r"(?i)'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_CLIP_WORDS_AND_SPECIALS = regex.compile(
    rf"{regex.escape(_START)}|{regex.escape(_END)}|{_CLIP_WORDS.removeprefix('(?i)')}",
    regex.IGNORECASE,
)
_BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def clean_caption(text: str) -> str:
    """Cleans a caption: ftfy, HTML unescaped twice, single spaces between words, lower case.

    Raises:
        UserError: `text` is not a `str`.
    """
    if not isinstance(text, str):
        raise UserError(
            f"a caption is {text!r:.60} of type {type(text).__name__}, but captions are text; "
            "correct or remove that record."
        )
    # Printable ASCII without entities needs no repair, and ftfy costs more than the BPE.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip().lower()


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

    Raises:
        UserError: the file is missing, cannot be downloaded, or is not the official one.
    """

    kind = "clip"
    file = CLIP_VOCABULARY_FILE

    def __init__(self, vocabulary: AddressLike | None = None, context_length: int = 77) -> None:
        content = (
            _cached_clip_vocabulary() if vocabulary is None else _read_clip_vocabulary(vocabulary)
        )
        super().__init__(_clip_engine(content), content, CLIP_VOCABULARY_SIZE, context_length)

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        rows = super()._text_ids(texts)
        for i, text in enumerate(texts):
            if _START in text or _END in text:
                rows[i] = self._ids_with_specials(text)
        return rows

    def _ids_with_specials(self, text: str) -> list[int]:
        # The official word pattern decides whether a literal counts: in "!<|endoftext|>" the
        # punctuation consumes the literal's beginning. An added engine token would split there.
        specials = {_START: [self.start_id], _END: [self.end_id]}
        words = _CLIP_WORDS_AND_SPECIALS.findall(text)
        return [i for word in words for i in specials.get(word) or self._engine.encode(word).ids]

    def decode(self, ids: Iterable[int]) -> str:
        """Decodes one row with a space between words: the ids do not record spaces."""
        return super().decode(ids).replace(_WORD_END, " ").strip()


class TrainedTokenizer(Tokenizer):
    """A lossless byte-level BPE learned from captions; encodes any text without unknown tokens.

    Ids: 0 padding (never text), then the 256 bytes, then merges by frequency, `vocabulary_size - 2`
    start, `vocabulary_size - 1` end. If the captions support fewer merges than requested, the ids
    between are unused: the embedding table's size is known before any caption is read.
    A word includes its leading space, so `decode` reproduces the cleaned caption exactly.

    Args:
        description: the content of a `tokenizer.json` written by `save`; `train` makes a new one.
        context_length: ids per row.

    Raises:
        UserError: the description belongs to another kind of tokenizer.
    """

    kind = "bpe"
    file = "tokenizer.json"

    def __init__(self, description: bytes, context_length: int = 77) -> None:
        engine = Engine.from_str(description.decode())
        end = engine.token_to_id(_END)
        if end is None:
            raise UserError(
                f"the tokenizer has no token {_END}, which must be its largest id; use a "
                f"{self.file} that TrainedTokenizer.save wrote."
            )
        super().__init__(engine, description, end + 1, context_length)

    @classmethod
    def train(
        cls, captions: Iterable[str], vocabulary_size: int, context_length: int = 77
    ) -> TrainedTokenizer:
        """Learns the merges; the result depends on the captions only, not on order or threads.

        Args:
            captions: all training captions, consumed once, never all in memory.
            vocabulary_size: number of ids, including the 256 bytes and 3 reserved ids.
            context_length: ids per row.

        Raises:
            UserError: no merge can be learned, a caption is not a `str`, or the vocabulary is too
                small.
        """
        smallest = len(_BYTES) + 3 + 1
        if vocabulary_size < smallest:
            raise UserError(
                f"vocabulary_size is {vocabulary_size}, but the 256 bytes, 3 reserved ids and one "
                f"merge need {smallest}; give a larger one."
            )
        engine = _lossless_engine(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary_size - 3,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=_BYTES,
        )
        engine.train_from_iterator(map(clean_caption, captions), trainer)
        merges = [(left, right) for left, right in json.loads(engine.to_str())["model"]["merges"]]
        if not merges:
            raise UserError(
                "the captions contain no pair of characters that occurs twice, so there is no "
                "merge to learn; check the captions of the data source."
            )
        tokens = dict.fromkeys([_PADDING, *_BYTES, *(left + right for left, right in merges)])
        vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
        vocabulary |= {_START: vocabulary_size - 2, _END: vocabulary_size - 1}
        trained = _lossless_engine(models.BPE(vocabulary, merges))
        return cls(trained.to_str(pretty=True).encode(), context_length)


def trimmed_length(longest: int, multiple: int, context_length: int) -> int:
    """Rounds `longest` up to a multiple, at most the context length."""
    return min(-(-longest // multiple) * multiple, context_length)


def load_tokenizer(spec: Mapping[str, Any], directory: AddressLike) -> Tokenizer:
    """Loads the tokenizer that `spec()` described and `save(directory)` wrote.

    If the directory has no CLIP vocabulary, it comes from the cache or the network.

    Raises:
        UserError: unknown kind, or a file that is missing or differs from the spec.
    """
    kind = spec.get("kind")
    needed = {"clip": ("context_length",), "bpe": ("context_length", "sha256")}.get(kind or "", ())
    types = {"context_length": int, "sha256": str}
    if missing := [name for name in needed if type(spec.get(name)) is not types[name]]:
        raise UserError(
            f"the description of the tokenizer in {directory} lacks {' and '.join(missing)}; "
            "restore the file, or train or convert the model again."
        )
    if kind == "clip":
        path = to_address(directory) / CLIP_VOCABULARY_FILE
        return ClipTokenizer(path if path.exists() else None, spec["context_length"])
    if kind != "bpe":
        raise UserError(f"tokenizer kind {kind!r} is unknown; model.json must say 'clip' or 'bpe'.")
    path = to_address(directory) / TrainedTokenizer.file
    if not path.exists():
        raise UserError(f"{path} is missing; copy the whole model directory, or train it again.")
    check_sha256(path, spec["sha256"], "restore the file saved with the model")
    return TrainedTokenizer(path.read_bytes(), spec["context_length"])


def _lossless_engine(model: models.BPE) -> Engine:
    engine = Engine(model)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    return engine


def _clip_engine(vocabulary: bytes) -> Engine:
    """Builds CLIP's engine: bytes, bytes that end a word, merges by rank, special tokens."""
    lines = gzip.decompress(vocabulary).decode().split("\n")
    # Line 0 is a version; the file has more merges than CLIP uses.
    count = CLIP_VOCABULARY_SIZE - 2 * len(_BYTES) - 2
    merges = [(left, right) for left, right in map(str.split, lines[1 : 1 + count])]
    tokens = [*_BYTES, *(byte + _WORD_END for byte in _BYTES)]
    tokens += [left + right for left, right in merges] + [_START, _END]
    ids = {token: token_id for token_id, token in enumerate(tokens)}
    engine = Engine(models.BPE(ids, merges, end_of_word_suffix=_WORD_END))
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return engine


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
