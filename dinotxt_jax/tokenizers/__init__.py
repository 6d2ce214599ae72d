"""Tokenizers: CLIP's byte-pair encoding, and a BPE trained on the user's captions.

Both clean a caption the same way (mojibake and HTML entities repaired, white space collapsed, lower
case) and write a row as `[start, ids..., end, 0, ...]`. The end-of-text id is the largest id, so
that `argmax` finds the first end of text, where the text transformer reads features. Id 0 pads, but
can also be a token (`!` in CLIP): padding is recognised by position, not by id.
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
from dinotxt_jax.tokenizers.loading import load_tokenizer
from dinotxt_jax.tokenizers.trained import TrainedTokenizer

__all__ = [
    "CLIP_VOCABULARY_FILE",
    "CLIP_VOCABULARY_SHA256",
    "CLIP_VOCABULARY_SIZE",
    "CLIP_VOCABULARY_URL",
    "ClipTokenizer",
    "Tokenizer",
    "TrainedTokenizer",
    "clean_caption",
    "load_tokenizer",
    "trimmed_length",
]
