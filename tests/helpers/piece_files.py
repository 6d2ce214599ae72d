"""Small sentencepiece files for tests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

CAPTIONS = [
    f"a {size} {colour} {shape} {relation} the {other}"
    for size in ("small", "large")
    for colour in ("red", "green", "blue")
    for shape in ("circle", "square", "triangle")
    for relation in ("above", "below", "left of")
    for other in ("star", "ring")
]
MARKS = ["<pad>", "</s>", "<unk>"]


def word_file(words: Sequence[str], further: Sequence[str] = ()) -> bytes:
    """Returns a tokenizer.json in which every word is a piece.

    Ids: 0 padding, 1 end, 2 unknown, then the words, then `further` pieces as they are.
    """
    pieces = [*((mark, 0.0) for mark in MARKS), *((f"\u2581{word}", -1.0) for word in words)]
    pieces += [(piece, -1.0) for piece in further]
    return _json(models.Unigram(pieces, unk_id=2))


def trained_model(kind: str = "unigram", **settings: Any) -> bytes:
    """Returns a .model trained on `CAPTIONS`, with the marks of T5's and Gemma's files."""
    stream = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(CAPTIONS),
        model_writer=stream,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
        **dict(vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1) | settings,
    )
    return stream.getvalue()


def as_json(model: bytes, kind: str) -> bytes:
    """Converts a .model without normalisation into a tokenizer.json."""
    processor = SentencePieceProcessor(model_proto=model)
    pieces = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
    if kind == "unigram":
        scores = [processor.get_score(i) for i in range(len(pieces))]
        return _json(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=2))
    ids = {piece: number for number, piece in enumerate(pieces)}
    halves = {
        piece: [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        for piece in pieces[len(MARKS) :]
    }
    # The file orders merged pieces by rank.
    merges = [(a, b) for pairs in halves.values() for a, b in pairs if a in ids and b in ids]
    return _json(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True))


def _json(model: models.Model) -> bytes:
    tokenizer = Tokenizer(model)
    # As sentencepiece does: single spaces, and none at either end.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(" {2,}"), " "), normalizers.Replace(Regex("^ | $"), "")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(MARKS)
    # As in files of transformers; to be ignored, since the model decides.
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(max_length=4)
    return json.dumps(json.loads(tokenizer.to_str())).encode()
