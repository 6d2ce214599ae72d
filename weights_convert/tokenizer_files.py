"""Finds the tokenizer of a converted model, and the file that it needs next to the checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.tokenizers import (
    CLIP_VOCABULARY_SIZE,
    PIECE_FILES,
    PIECE_SETTINGS,
    SentencePieceTokenizer,
)
from weights_convert.matching import Match

PIECE_FILE_NAMES = ("tokenizer.json", "spiece.model", "sentencepiece.model", "tokenizer.model")
"""Names under which libraries keep a sentencepiece file; the first that exists is taken."""


@dataclasses.dataclass(frozen=True)
class FoundTokenizer:
    """The tokenizer of a model.

    Attributes:
        spec: the entry `tokenizer` of `model.json`; None if texts cannot be encoded.
        file: the loaded sentencepiece file, which belongs into the model directory.
        note: a sentence for the user, if there is none.
    """

    spec: dict[str, Any] | None
    file: SentencePieceTokenizer | None = None
    note: str = ""

    def save(self, folder: Address) -> None:
        """Writes the file into a model directory."""
        if self.file is not None:
            self.file.save(folder)


def find_tokenizer(
    matches: Sequence[Match], text: TextConfig | None, explicit: Path | None = None
) -> FoundTokenizer:
    """Returns the tokenizer that a text transformer was trained with.

    Args:
        matches: the sources.
        text: the text transformer; None for a backbone alone.
        explicit: the sentencepiece file; None looks next to the sources.

    Raises:
        UserError: the file is damaged, gives IDs that the model does not have, or is not needed.
    """
    kind = next((m.layout.pieces for m in matches if "text" in m.layout.components), None)
    if text is None or kind is None:
        if explicit is not None:
            raise UserError(
                f"--tokenizer={explicit} is not used by this model, which has "
                f"{'no text transformer' if text is None else 'no sentencepiece file'}; remove it."
            )
        return FoundTokenizer(_clip_spec(text))
    file = explicit or _file_beside(matches)
    if file is None:
        places = ", ".join(f"for {model} {address}" for model, address in PIECE_FILES.items())
        return FoundTokenizer(
            None,
            note="no sentencepiece file is next to it, so that only token rows can be encoded; put "
            f"tokenizer.json or spiece.model there, or give --tokenizer=FILE ({places})",
        )
    settings = dataclasses.replace(
        PIECE_SETTINGS[kind(text.vocabulary_size)], context_length=text.context_length
    )
    tokenizer = SentencePieceTokenizer(file, settings)
    if tokenizer.vocabulary_size > text.vocabulary_size:
        raise UserError(
            f"{file} gives {tokenizer.vocabulary_size} IDs, but the text transformer has "
            f"{text.vocabulary_size}; give the file of this model with --tokenizer=FILE."
        )
    return FoundTokenizer(tokenizer.spec(), tokenizer)


def _clip_spec(text: TextConfig | None) -> dict[str, Any] | None:
    """Returns CLIP's tokenizer if the vocabulary is as large as CLIP's."""
    if text is None or text.vocabulary_size != CLIP_VOCABULARY_SIZE:
        return None
    return {
        "kind": "clip",
        "context_length": text.context_length,
        "vocabulary_size": text.vocabulary_size,
    }


def _file_beside(matches: Sequence[Match]) -> Path | None:
    folders = [match.source.files[0].parent for match in matches]
    files = [folder / name for folder in folders for name in PIECE_FILE_NAMES]
    return next((file for file in files if file.is_file()), None)
