"""Cleans captions before they are tokenized."""

from __future__ import annotations

import html

import ftfy
import regex

from dinotxt_jax.errors import UserError


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
