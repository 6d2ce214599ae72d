"""Cleans captions before they are tokenized, by the rule that a tokenizer names."""

from __future__ import annotations

import html
import string
from collections.abc import Callable

import ftfy
import regex

from dinotxt_jax.errors import UserError

_NO_PUNCTUATION = str.maketrans("_", " ", string.punctuation.replace("_", ""))


def clean_caption(text: str, rule: str = "clip") -> str:
    """Cleans a caption.

    Args:
        text: the caption.
        rule: a name in `CLEANING_RULES`.

    Raises:
        UserError: `text` is not a `str`.
    """
    if not isinstance(text, str):
        raise UserError(
            f"a caption is {text!r:.60} of type {type(text).__name__}, but captions are text; "
            "correct or remove that record."
        )
    return CLEANING_RULES[rule](text)


def _repaired(text: str) -> str:
    # Printable ASCII without entities needs no repair, and ftfy costs more than the BPE.
    if not (text.isascii() and text.isprintable() and "&" not in text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return regex.sub(r"\s+", " ", text).strip().lower()


def _canonical(text: str) -> str:
    return " ".join(_lowered(text.translate(_NO_PUNCTUATION)).split())


def _lowered(text: str) -> str:
    return _unchanged(text).lower()


def _unchanged(text: str) -> str:
    """Returns text that UTF-8 can represent: halves of surrogate pairs become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


CLEANING_RULES: dict[str, Callable[[str], str]] = {
    "canonicalize": _canonical,
    "lower": _lowered,
    "none": _unchanged,
    "clip": _repaired,
}
"""The rules, by the name that `model.json` and `config.tokenizer.cleaning` use.

canonicalize    underscores become spaces, ASCII punctuation is removed, lower case, single spaces
                between words (big_vision's zero-shot evaluation, SigLIP)
lower           lower case (SigLIP 2, TIPS)
none            the text as it is
clip            ftfy, HTML unescaped twice, single spaces between words, lower case
"""
