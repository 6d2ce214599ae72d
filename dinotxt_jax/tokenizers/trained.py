"""A byte-level BPE trained on the user's captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import Tokenizer as LibraryTokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from dinotxt_jax.config import TokenizerConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.downloads import check_sha256
from dinotxt_jax.tokenizers.base import (
    BYTE_TOKENS,
    END_TOKEN,
    START_TOKEN,
    LibraryEngine,
    Tokenizer,
    check_entries,
)
from dinotxt_jax.tokenizers.cleaning import clean_caption
from dinotxt_jax.tokenizers.row_format import RowFormat

_PADDING = "<|padding|>"


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
        engine = LibraryTokenizer.from_str(description.decode())
        end = engine.token_to_id(END_TOKEN)
        if end is None:
            raise UserError(
                f"the tokenizer has no token {END_TOKEN}, which must be its largest id; use a "
                f"{self.file} that TrainedTokenizer.save wrote."
            )
        row_format = RowFormat(context_length, start_id=end - 1, end_id=end)
        super().__init__(LibraryEngine(engine), description, end + 1, row_format)

    @classmethod
    def load(cls, spec: Mapping[str, Any], directory: Address) -> TrainedTokenizer:
        check_entries(spec, directory, context_length=int, sha256=str)
        path = directory / cls.file
        if not path.exists():
            raise UserError(
                f"{path} is missing; copy the whole model directory, or train it again."
            )
        check_sha256(path, spec["sha256"], "restore the file saved with the model")
        return cls(path.read_bytes(), spec["context_length"])

    @classmethod
    def configured(
        cls, settings: TokenizerConfig, captions: Callable[[], Iterable[str]]
    ) -> TrainedTokenizer:
        return cls.train(captions(), settings.vocabulary_size, settings.context_length)

    @classmethod
    def configured_size(cls, settings: TokenizerConfig) -> int:
        return settings.vocabulary_size

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
        smallest = len(BYTE_TOKENS) + 3 + 1
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
            initial_alphabet=BYTE_TOKENS,
        )
        engine.train_from_iterator(map(clean_caption, captions), trainer)
        merges = [(left, right) for left, right in json.loads(engine.to_str())["model"]["merges"]]
        if not merges:
            raise UserError(
                "the captions contain no pair of characters that occurs twice, so there is no "
                "merge to learn; check the captions of the data source."
            )
        tokens = dict.fromkeys([_PADDING, *BYTE_TOKENS, *(left + right for left, right in merges)])
        vocabulary = {token: token_id for token_id, token in enumerate(tokens)}
        vocabulary |= {START_TOKEN: vocabulary_size - 2, END_TOKEN: vocabulary_size - 1}
        trained = _lossless_engine(models.BPE(vocabulary, merges))
        return cls(trained.to_str(pretty=True).encode(), context_length)


def _lossless_engine(model: models.BPE) -> LibraryTokenizer:
    engine = LibraryTokenizer(model)
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=True)
    engine.decoder = decoders.ByteLevel()
    return engine
