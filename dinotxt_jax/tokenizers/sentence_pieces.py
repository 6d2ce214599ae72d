"""Sentencepiece tokenizers, as SigLIP, SigLIP 2 and TIPS use them.

The files are not part of this project: `PIECE_FILES` says where their authors keep them.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any

from dinotxt_jax.config import TokenizerConfig, check, from_dict
from dinotxt_jax.config.data import CLEANINGS
from dinotxt_jax.config.ranges import Choice, Range
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, AddressLike, to_address
from dinotxt_jax.storage.downloads import check_sha256
from dinotxt_jax.tokenizers.base import Tokenizer, check_entries
from dinotxt_jax.tokenizers.cleaning import clean_caption
from dinotxt_jax.tokenizers.piece_files import JSON_FILE, MODEL_FILE, PieceFile, open_piece_file
from dinotxt_jax.tokenizers.row_format import RowFormat

_IDS = Range(0, 10_000_000)
_MARK = re.compile(r"<\w+>")


@dataclasses.dataclass(frozen=True)
class PieceSettings:
    """What a sentencepiece file does not say, but a model was trained with."""

    cleaning: Annotated[str, Choice(CLEANINGS), "how captions are cleaned"]
    end_id: Annotated[int | None, _IDS, "ID after the text, or None"]
    pad_id: Annotated[int, _IDS, "ID that fills a row"]
    context_length: Annotated[int, Range(1, 65_536), "tokens per row"] = 64
    sticky: Annotated[bool, "whether a text that is too long still ends with `end_id`"] = True
    padding_is_input: Annotated[bool, "whether the model reads the padding"] = False

    @property
    def row_format(self) -> RowFormat:
        """The layout of rows, which have no start."""
        values = dataclasses.asdict(self)
        del values["cleaning"]
        return RowFormat(start_id=None, **values)


PIECE_SETTINGS: dict[str, PieceSettings] = {
    "siglip": PieceSettings("canonicalize", end_id=1, pad_id=1, padding_is_input=True),
    "siglip2": PieceSettings("lower", end_id=1, pad_id=0, padding_is_input=True),
    "tips": PieceSettings("lower", end_id=None, pad_id=0),
}
"""The settings of released models (`context_length` is 16 for SigLIP So400m/14 at 224 pixels).

SigLIP's text transformers read all places, and pool the last one: padding is part of the input.
TIPS masks the padding.
"""

_STORE = "https://storage.googleapis.com"
PIECE_FILES: dict[str, str] = {
    "SigLIP": f"{_STORE}/t5-data/vocabs/cc_en.32000/sentencepiece.model",
    "multilingual SigLIP": f"{_STORE}/t5-data/vocabs/mc4.250000.100extra/sentencepiece.model",
    "SigLIP 2": f"{_STORE}/big_vision/gemma_tokenizer.model",
    "TIPS": f"{_STORE}/tips_data/v1_0/checkpoints/tokenizer.model",
}
"""Where the authors of a model keep the sentencepiece file that it was trained with."""


class SentencePieceTokenizer(Tokenizer):
    """A tokenizer from a sentencepiece file.

    The ids are those of the file; `end_id` and `pad_id` may lie behind them. Text that spells out a
    mark such as `</s>` stays text.

    Args:
        file: path to a `tokenizer.json`, or to a `.model`, for which `sentencepiece` is needed.
        settings: what the file does not say; `PIECE_SETTINGS` has those of released models.

    Raises:
        UserError: the file is missing or damaged, `sentencepiece` is not installed, or the settings
            do not fit the file.
    """

    kind = "sentencepiece"

    def __init__(self, file: AddressLike, settings: PieceSettings) -> None:
        check(settings, "tokenizer")
        content, pieces = _read(file)
        _check_marks(pieces, settings, str(file))
        size = _vocabulary_size(pieces, settings)
        super().__init__(pieces, content, size, settings.row_format, settings.cleaning)
        self.file = JSON_FILE if str(file).endswith(".json") else MODEL_FILE
        self._settings = settings

    @classmethod
    def with_new_end(
        cls, file: AddressLike, cleaning: str, context_length: int
    ) -> SentencePieceTokenizer:
        """Adds an end of text behind the file's ids, for a text transformer to be trained.

        The transformer reads features at the largest id in a row. The file's own end of text is
        usually one of the smallest.
        """
        end = _read(file)[1].size
        return cls(file, PieceSettings(cleaning, end, end, context_length))

    @classmethod
    def load(cls, spec: Mapping[str, Any], directory: Address) -> SentencePieceTokenizer:
        check_entries(spec, directory, context_length=int, sha256=str, vocabulary=str)
        names = {field.name for field in dataclasses.fields(PieceSettings)}
        key = f"{directory}: tokenizer"
        values = {name: value for name, value in spec.items() if name in names}
        settings = from_dict(PieceSettings, values, key)
        check(settings, key)
        if spec["vocabulary"] not in (JSON_FILE, MODEL_FILE):
            raise UserError(
                f"{key}.vocabulary is {spec['vocabulary']!r}, expected {JSON_FILE} or "
                f"{MODEL_FILE}; restore the file, or train or convert the model again."
            )
        path = directory / spec["vocabulary"]
        if not path.is_file():
            raise UserError(
                f"{path} is missing; copy the whole model directory, or restore it: "
                f"{_where_to_get()}."
            )
        check_sha256(path, spec["sha256"], "restore the file saved with the model")
        return cls(path, settings)

    @classmethod
    def configured(
        cls, settings: TokenizerConfig, captions: Callable[[], Iterable[str]]
    ) -> SentencePieceTokenizer:
        return cls.with_new_end(settings.vocabulary, settings.cleaning, settings.context_length)

    @classmethod
    def configured_size(cls, settings: TokenizerConfig) -> int:
        return cls.configured(settings, lambda: ()).vocabulary_size

    def spec(self) -> dict[str, Any]:
        return super().spec() | dataclasses.asdict(self._settings)

    def _text_ids(self, texts: list[str]) -> list[list[int]]:
        rows = super()._text_ids(texts)
        for text, ids in zip(texts, rows, strict=True):
            if max(ids, default=0) >= self.vocabulary_size:
                raise UserError(
                    f"the text {text!r:.60} gives the id {max(ids)}, expected less than "
                    f"{self.vocabulary_size}, since cleaned text should not give the last pieces "
                    f"of {self.file}; change the text."
                )
        return rows


def _read(file: AddressLike) -> tuple[bytes, PieceFile]:
    """Returns the content of a sentencepiece file, and its pieces."""
    path = to_address(file)
    if path.suffix not in (".json", ".model"):
        raise UserError(
            f"{path} ends in neither .json nor .model, expected a tokenizer.json or a "
            "sentencepiece .model; rename it, or give another file."
        )
    if not path.is_file():
        raise UserError(f"the sentencepiece file {path} does not exist; {_where_to_get()}.")
    content = path.read_bytes()
    return content, open_piece_file(content, str(path))


def _where_to_get() -> str:
    places = ", ".join(f"for {model} {address}" for model, address in PIECE_FILES.items())
    return f"take tokenizer.json or the .model from the model's folder, or fetch it: {places}"


def _check_marks(pieces: PieceFile, settings: PieceSettings, name: str) -> None:
    """Raises `UserError` if a text could give the id that ends it or, without an end, the padding.

    Lengths would then be wrong.
    """
    key = "pad_id" if settings.end_id is None else "end_id"
    mark = getattr(settings, key)
    surface = pieces.surface(mark)
    if surface is not None:
        meaning = f"the piece {surface!r}" if surface else "a byte"
        raise UserError(
            f"tokenizer.{key} is {mark}, which is {meaning} of text in {name}, expected an id that "
            "text never gives; correct it, or take the file that the model was trained with."
        )


def _vocabulary_size(pieces: PieceFile, settings: PieceSettings) -> int:
    """Returns one more than the largest id that a row can hold.

    Files may end with marks that text without punctuation never gives, such as `<extra_id_0>`: that
    of the multilingual SigLIP has a hundred of them, for which its embedding table has no rows.
    """
    has_marks = bool(clean_caption("<>", settings.cleaning))
    ids = [0, settings.pad_id]
    ids += [token_id for token_id in (pieces.unknown_id, settings.end_id) if token_id is not None]
    for token_id in reversed(range(max(ids), pieces.size)):
        surface = pieces.surface(token_id)
        if surface is not None and (has_marks or not _MARK.fullmatch(surface.strip())):
            return token_id + 1
    return max(ids) + 1
