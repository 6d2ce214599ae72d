"""Tokenizers: CLIP's byte-pair encoding, a BPE trained on the user's captions, and sentencepiece.

A tokenizer cleans captions by a named rule (`cleaning.CLEANING_RULES`) and writes each as a row of
fixed length (`row_format.RowFormat`). For CLIP, and for everything that is trained here, the end of
text is the largest id, so that `argmax` finds its first place, where the causal text transformer
reads features.
"""

from dinotxt_jax.tokenizers.base import Tokenizer, trimmed_length
from dinotxt_jax.tokenizers.cleaning import clean_caption
from dinotxt_jax.tokenizers.clip import (
    CLIP_VOCABULARY_FILE,
    CLIP_VOCABULARY_SHA256,
    CLIP_VOCABULARY_SIZE,
    CLIP_VOCABULARY_URL,
    ClipTokenizer,
)
from dinotxt_jax.tokenizers.loading import TOKENIZERS, load_tokenizer
from dinotxt_jax.tokenizers.row_format import RowFormat
from dinotxt_jax.tokenizers.sentence_pieces import (
    PIECE_FILES,
    PIECE_SETTINGS,
    PieceSettings,
    SentencePieceTokenizer,
)
from dinotxt_jax.tokenizers.trained import TrainedTokenizer

__all__ = [
    "CLIP_VOCABULARY_FILE",
    "CLIP_VOCABULARY_SHA256",
    "CLIP_VOCABULARY_SIZE",
    "CLIP_VOCABULARY_URL",
    "PIECE_FILES",
    "PIECE_SETTINGS",
    "TOKENIZERS",
    "ClipTokenizer",
    "PieceSettings",
    "RowFormat",
    "SentencePieceTokenizer",
    "Tokenizer",
    "TrainedTokenizer",
    "clean_caption",
    "load_tokenizer",
    "trimmed_length",
]
