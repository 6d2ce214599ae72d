"""Sentencepiece tokenizers: ids by hand, both file formats, settings, files and refusals."""

from __future__ import annotations

import dataclasses
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from piece_files import CAPTIONS, as_json, trained_model, word_file

from dinotxt_jax.config import TokenizerConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.downloads import sha256_of
from dinotxt_jax.tokenizers import (
    PIECE_FILES,
    PIECE_SETTINGS,
    TOKENIZERS,
    PieceSettings,
    RowFormat,
    SentencePieceTokenizer,
    clean_caption,
    load_tokenizer,
)

STRANGE = [
    *("", " ", "A  red\tCIRCLE ", "naïve café ☕", "日本語のテキスト", "👩‍👩‍👧", "\x00", "a_b, c!"),
    *("\ud800 red", "a </s> b", "<pad>red<unk>", "<|endoftext|>", "<extra_id_0>"),
]
# Ids of the words in `words`: a 3, red 4, circle 5, dont 6.
WORDS = ("a", "red", "circle", "dont")


@pytest.fixture
def words(tmp_path: Path) -> Path:
    file = tmp_path / "tokenizer.json"
    file.write_bytes(word_file(WORDS))
    return file


def settings_of(family: str, **changes: object) -> PieceSettings:
    return dataclasses.replace(PIECE_SETTINGS[family], **{"context_length": 6} | changes)


def test_captions_are_cleaned_by_the_named_rule() -> None:
    text = "  A_Red,  CIRCLE!\t(isn't) #1 Ärger—so "
    assert clean_caption(text, "canonicalize") == "a red circle isnt 1 ärger—so"
    assert clean_caption(text, "lower") == "  a_red,  circle!\t(isn't) #1 ärger—so "
    assert clean_caption(text, "none") == text
    assert clean_caption("A &amp;  cafÃ©", "clip") == "a & café"
    assert clean_caption("x\ud800y", "lower") == "x\ufffdy"
    assert clean_caption("\ud83d\ude00", "none") == "😀"
    with pytest.raises(UserError, match="of type int"):
        clean_caption(3, "lower")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("family", "text", "row", "length"),
    [
        ("siglip", "A_RED, circle!", [3, 4, 5, 1, 1, 1], 6),
        ("siglip", "a red circle a red circle", [3, 4, 5, 3, 4, 1], 6),
        ("siglip", "a red circle a red", [3, 4, 5, 3, 4, 1], 6),
        ("siglip", "", [1] * 6, 6),
        ("siglip", "Don't", [6, 1, 1, 1, 1, 1], 6),
        ("siglip2", "A RED circle", [3, 4, 5, 1, 0, 0], 6),
        ("siglip2", "a red circle a red circle", [3, 4, 5, 3, 4, 1], 6),
        ("siglip2", "a_red", [3, 2, 1, 0, 0, 0], 6),
        ("siglip2", "", [1, 0, 0, 0, 0, 0], 6),
        ("tips", "A RED circle", [3, 4, 5, 0, 0, 0], 3),
        ("tips", "a red circle a red circle", [3, 4, 5, 3, 4, 5], 6),
        ("tips", "", [0] * 6, 1),
    ],
)
def test_rows_of_released_models_by_hand(
    words: Path, family: str, text: str, row: list[int], length: int
) -> None:
    tokenizer = SentencePieceTokenizer(words, settings_of(family))
    rows = tokenizer(["red", text])
    assert rows.dtype == np.int32
    assert rows[1].tolist() == row
    assert tokenizer.lengths(rows)[1] == length


def test_a_cut_text_ends_with_the_end_of_text_only_if_that_is_sticky(words: Path) -> None:
    text, short = "a red circle a", "a red"
    for sticky, row in ((True, [3, 4, 1]), (False, [3, 4, 5])):
        settings = PieceSettings("lower", 1, 0, 3, sticky=sticky)
        tokenizer = SentencePieceTokenizer(words, settings)
        assert tokenizer.encode(text).tolist() == row
        assert tokenizer.encode(short).tolist() == [3, 4, 1]
        assert tokenizer.lengths(tokenizer([text, short, "a"])).tolist() == [3, 3, 2]
        assert tokenizer.decode(tokenizer.encode(short)) == short


@pytest.mark.parametrize("family", PIECE_SETTINGS)
def test_decoding_leaves_out_end_and_padding(words: Path, family: str) -> None:
    tokenizer = SentencePieceTokenizer(words, settings_of(family))
    assert tokenizer.decode(tokenizer.encode("a red circle")) == "a red circle"
    assert tokenizer.decode(tokenizer.encode("")) == ""
    assert (tokenizer.start_id, tokenizer.vocabulary_size) == (None, 3 + len(WORDS))


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
@pytest.mark.parametrize("family", PIECE_SETTINGS)
def test_both_formats_give_the_same_rows(tmp_path: Path, kind: str, family: str) -> None:
    """Also for text that spells out a mark, which is not that mark."""
    model = trained_model(kind, normalization_rule_name="identity")
    (tmp_path / "a.model").write_bytes(model)
    (tmp_path / "a.json").write_bytes(as_json(model, kind))
    settings = settings_of(family, context_length=40)
    by_model = SentencePieceTokenizer(tmp_path / "a.model", settings)
    by_json = SentencePieceTokenizer(tmp_path / "a.json", settings)
    rows = by_model(CAPTIONS + STRANGE)
    np.testing.assert_array_equal(by_json(CAPTIONS + STRANGE), rows)
    assert by_json.vocabulary_size == by_model.vocabulary_size > rows.max()
    for text in ("</s> red", "<pad> red"):
        ids = by_model.format.text_ids(by_model.encode(text))
        assert len(ids) > 3
        assert {0, 1}.isdisjoint(ids)
    for row in rows[: len(CAPTIONS)]:
        assert by_model.decode(row) == by_json.decode(row) in CAPTIONS


@pytest.mark.parametrize("name", ["tokenizer.json", "sentencepiece.model"])
@pytest.mark.parametrize("family", PIECE_SETTINGS)
def test_a_saved_tokenizer_loads_as_it_was(tmp_path: Path, name: str, family: str) -> None:
    model = trained_model(normalization_rule_name="identity")
    content = as_json(model, "unigram") if name.endswith(".json") else model
    (tmp_path / name).write_bytes(content)
    tokenizer = SentencePieceTokenizer(tmp_path / name, settings_of(family, context_length=16))
    (tmp_path / "model").mkdir()
    tokenizer.save(tmp_path / "model")
    spec = json.loads(json.dumps(tokenizer.spec()))
    again = load_tokenizer(spec, tmp_path / "model")
    assert again.spec() == spec
    assert spec["sha256"] == sha256_of(tmp_path / name)
    unpickled = pickle.loads(pickle.dumps(tokenizer))
    for copy in (again, unpickled):
        np.testing.assert_array_equal(copy(CAPTIONS + STRANGE), tokenizer(CAPTIONS + STRANGE))
        assert copy.format == tokenizer.format
        assert copy.spec() == spec


def test_the_description_has_every_setting(words: Path) -> None:
    spec = SentencePieceTokenizer(words, PIECE_SETTINGS["siglip"]).spec()
    assert spec == {
        "kind": "sentencepiece",
        "context_length": 64,
        "vocabulary_size": 7,
        "vocabulary": "tokenizer.json",
        "sha256": sha256_of(words),
        "cleaning": "canonicalize",
        "end_id": 1,
        "pad_id": 1,
        "sticky": True,
        "padding_is_input": True,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cleaning": "upper"}, "tokenizer.cleaning is 'upper', expected canonicalize, lower"),
        ({"end_id": "1"}, "tokenizer.end_id is '1', expected a whole number"),
        ({"end_id": -1}, "tokenizer.end_id is -1, expected a number from 0"),
        ({"padding_is_input": 1}, "tokenizer.padding_is_input is 1, expected True or False"),
        ({"pad_id": None}, "tokenizer.pad_id is None"),
        ({"cleaning": None}, "tokenizer.cleaning is None"),
        ({"context_length": "64"}, "lacks context_length; restore"),
        ({"sha256": None}, "lacks sha256; restore"),
        ({"sha256": "0" * 64}, r"sha256 \w+, but 0{64} is expected; restore the file"),
        ({"vocabulary": "../tokenizer.json"}, "vocabulary is '../tokenizer.json', expected"),
        ({"vocabulary": "tokenizer.model"}, r"tokenizer\.model is missing; copy the whole"),
        ({"vocabulary_size": 9}, "has vocabulary_size 9, but its file gives 7; restore both"),
        ({"start_id": 2}, "has start_id 2, but its file gives None"),
    ],
)
def test_a_wrong_description_is_a_sentence(
    words: Path, change: dict[str, object], message: str
) -> None:
    spec = SentencePieceTokenizer(words, PIECE_SETTINGS["siglip"]).spec()
    with pytest.raises(UserError, match=message):
        load_tokenizer(spec | change, words.parent)


def test_a_description_without_cleaning_is_refused(words: Path) -> None:
    spec = SentencePieceTokenizer(words, PIECE_SETTINGS["tips"]).spec()
    del spec["cleaning"]
    with pytest.raises(UserError, match="tokenizer lacks cleaning"):
        load_tokenizer(spec, words.parent)


def test_a_missing_file_says_where_to_get_it(words: Path, tmp_path: Path) -> None:
    spec = SentencePieceTokenizer(words, PIECE_SETTINGS["siglip"]).spec()
    words.unlink()
    for make in (
        lambda: SentencePieceTokenizer(words, PIECE_SETTINGS["siglip"]),
        lambda: load_tokenizer(spec, tmp_path),
    ):
        with pytest.raises(UserError) as refusal:
            make()
        for address in PIECE_FILES.values():
            assert address in str(refusal.value)
    assert "t5-data/vocabs/cc_en.32000/sentencepiece.model" in PIECE_FILES["SigLIP"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocabulary.txt", b"a", "ends in neither .json nor .model"),
        ("a.json", b"", "is no tokenizer.json of Hugging Face tokenizers"),
        ("a.json", b"[1]", "is no tokenizer.json of Hugging Face tokenizers"),
        ("a.json", b'{"model": {"vocab": {}}, "added_tokens": []}', "is no tokenizer.json"),
        ("a.json", b"\xff\xfe", "is no tokenizer.json"),
        ("a.model", b"", r"is no sentencepiece model \(it holds no pieces\)"),
        ("a.model", b"<html>not found</html>", "is no sentencepiece model"),
        ("a.model", trained_model()[:-40], "is no sentencepiece model"),
    ],
)
def test_another_file_is_a_sentence(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        SentencePieceTokenizer(tmp_path / name, PIECE_SETTINGS["tips"])


def test_a_model_file_needs_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.model").write_bytes(trained_model())
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(UserError, match=r"sentencepiece, which is not installed; run pip install"):
        SentencePieceTokenizer(tmp_path / "a.model", PIECE_SETTINGS["tips"])


@pytest.mark.parametrize("name", ["a.json", "a.model"])
def test_settings_of_another_file_are_refused(tmp_path: Path, name: str) -> None:
    """Texts that contain the end or the padding would have wrong lengths."""
    model = trained_model(normalization_rule_name="identity")
    content = as_json(model, "unigram") if name.endswith(".json") else model
    (tmp_path / name).write_bytes(content)
    for settings, key in (
        (PieceSettings("lower", end_id=3, pad_id=0), "end_id is 3"),
        (PieceSettings("lower", end_id=None, pad_id=3), "pad_id is 3"),
    ):
        with pytest.raises(UserError, match=rf"tokenizer.{key}, which is the piece .* of text in"):
            SentencePieceTokenizer(tmp_path / name, settings)
    # With an end, what comes after it is padding, whatever its id.
    assert SentencePieceTokenizer(tmp_path / name, PieceSettings("lower", 1, 3)).encode("")[1] == 3
    with pytest.raises(UserError, match="context_length is 1, but end and one token need 2"):
        SentencePieceTokenizer(tmp_path / name, PieceSettings("lower", 1, 0, context_length=1))


def test_a_byte_is_a_piece_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.model").write_bytes(trained_model("bpe", byte_fallback=True, vocab_size=330))
    with pytest.raises(UserError, match="end_id is 3, which is a byte of text"):
        SentencePieceTokenizer(tmp_path / "a.model", PieceSettings("lower", 3, 0))
    tokenizer = SentencePieceTokenizer(tmp_path / "a.model", settings_of("tips", context_length=40))
    for text in ("日本語", "naïve ☕", *CAPTIONS[:5]):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_marks_behind_the_vocabulary_need_no_rows_where_text_cannot_give_them(
    tmp_path: Path,
) -> None:
    """As in the file of the multilingual SigLIP."""
    extra = [f"<extra_id_{number}>" for number in range(4)]
    model = trained_model(vocab_size=40, user_defined_symbols=extra)
    (tmp_path / "a.model").write_bytes(model)
    (tmp_path / "a.json").write_bytes(word_file(WORDS, extra))
    assert SentencePieceTokenizer(tmp_path / "a.json", settings_of("siglip")).vocabulary_size == 7
    assert SentencePieceTokenizer(tmp_path / "a.json", settings_of("siglip2")).vocabulary_size == 11
    lower = SentencePieceTokenizer(tmp_path / "a.json", settings_of("siglip2"))
    assert 7 in lower.encode("<extra_id_0>")
    clean = SentencePieceTokenizer(tmp_path / "a.json", settings_of("siglip"))
    assert clean.encode("<extra_id_0>").max() < 7


def test_an_id_beyond_the_vocabulary_is_never_given_in_silence(tmp_path: Path) -> None:
    """The file's own normalisation may make punctuation out of letters that look like it."""
    words = json.loads(word_file(WORDS, ["<mark>"]))
    words["normalizer"] = {"type": "NFKC"}
    (tmp_path / "a.json").write_text(json.dumps(words))
    tokenizer = SentencePieceTokenizer(tmp_path / "a.json", settings_of("siglip"))
    assert tokenizer.vocabulary_size == 7
    with pytest.raises(UserError, match="gives the id 7, expected less than 7"):
        tokenizer("＜mark＞")


def test_a_new_end_is_the_largest_id(words: Path) -> None:
    """As the causal text transformer needs it, which reads features at `argmax`."""
    tokenizer = SentencePieceTokenizer.with_new_end(words, "lower", 6)
    rows = tokenizer(["A red circle", "", "a " * 9])
    assert rows.tolist() == [[3, 4, 5, 7, 7, 7], [7] * 6, [3, 3, 3, 3, 3, 7]]
    assert tokenizer.end_id == tokenizer.vocabulary_size - 1 == 7
    np.testing.assert_array_equal(tokenizer.lengths(rows), rows.argmax(1) + 1)


def test_the_size_of_a_run_s_vocabulary_is_known_without_captions(words: Path) -> None:
    for kind, settings, size in (
        ("clip", {}, 49_408),
        ("bpe", {"vocabulary_size": 300}, 300),
        ("sentencepiece", {"vocabulary": str(words)}, 8),
    ):
        config = TokenizerConfig(kind=kind, **settings)  # type: ignore[arg-type]
        assert TOKENIZERS[kind].configured_size(config) == size


def test_lengths_of_rows_without_an_end_reach_to_the_last_text() -> None:
    rows = np.array([[5, 0, 6, 0], [0, 0, 0, 0], [1, 2, 3, 4]], np.int32)
    assert RowFormat(4, None, None).lengths(rows).tolist() == [3, 1, 4]
    assert RowFormat(4, None, 6).lengths(rows).tolist() == [3, 4, 4]
    assert RowFormat(4, None, 6, padding_is_input=True).lengths(rows).tolist() == [4, 4, 4]
    assert RowFormat(4, None, None).lengths(rows[:0]).tolist() == []
