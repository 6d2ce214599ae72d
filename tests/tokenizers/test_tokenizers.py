"""CLIP's and trained tokenizers: official ids, lossless ids, files, downloads and refusals."""

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from piece_files import CAPTIONS
from tokenizers import Tokenizer as Engine
from tokenizers import models

from dinotxt_jax import tokenizers
from dinotxt_jax.errors import UserError
from dinotxt_jax.tokenizers import ClipTokenizer, Tokenizer, TrainedTokenizer, load_tokenizer

ROOT = Path(__file__).parents[2]
CLIP_URL = "dinotxt_jax.tokenizers.clip.CLIP_VOCABULARY_URL"
GOLDENS = ROOT / "tests" / "goldens" / "tokenizer" / "clip_tokens.json"
STRANGE = [
    "",
    " ",
    "naïve café ☕",
    "日本語のテキスト",
    "👩‍👩‍👧 🏳️‍🌈",
    "\ud800",
    "a<|endoftext|>b",
    "\x00",
    "ﷺ",
]


@pytest.fixture(scope="session")
def trained() -> TrainedTokenizer:
    return TrainedTokenizer.train(CAPTIONS, vocabulary_size=400, context_length=24)


@pytest.fixture(params=["clip", "trained"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def test_the_200_golden_strings_get_the_official_ids(clip):
    cases = json.loads(GOLDENS.read_text())["cases"]
    assert len(cases) == 200
    rows = clip([case["text"] for case in cases])
    assert rows.dtype == np.int32
    assert rows.shape == (200, 77)
    for case, row in zip(cases, rows, strict=True):
        expected = case["ids"] + [0] * (77 - len(case["ids"]))
        assert row.tolist() == expected, case["text"]
        np.testing.assert_array_equal(clip.encode(case["text"]), row)


def test_a_literal_special_token_counts_where_the_official_pattern_sees_one(clip):
    def text_ids(text):
        return clip.encode(text)[1 : clip.encode(text).tolist().index(0) - 1].tolist()

    dog, cat = text_ids("dog")[0], text_ids("cat")[0]
    assert text_ids("dog <|endoftext|> cat") == [dog, clip.end_id, cat]
    assert text_ids("dog<|STARTOFTEXT|>cat") == [dog, clip.start_id, cat]
    # Punctuation forms one word: it includes the "<|", and no special token remains.
    assert clip.end_id not in text_ids("dog !<|endoftext|>")
    assert clip.lengths(clip("dog <|endoftext|> cat")).tolist() == [3]


def test_a_long_caption_keeps_its_beginning_and_ends_with_end_of_text(tokenizer):
    words = "red circle " * 200
    row = tokenizer.encode(words)
    assert row[-1] == tokenizer.end_id
    assert (row[:-1] != tokenizer.end_id).all()
    assert tokenizer.lengths(row[None]) == [tokenizer.context_length]
    np.testing.assert_array_equal(row[:8], tokenizer.encode("red circle " * 20)[:8])


def test_rows_end_with_the_largest_id_and_zeros(tokenizer):
    rows = tokenizer(["", "a red circle", *STRANGE])
    assert tokenizer.end_id == tokenizer.vocabulary_size - 1
    assert rows.max() == tokenizer.end_id
    assert rows.min() == 0
    assert (rows[:, 0] == tokenizer.start_id).all()
    assert rows[0].tolist()[:3] == [tokenizer.start_id, tokenizer.end_id, 0]
    assert tokenizer.lengths(rows)[0] == 2
    first_end = rows.argmax(axis=1)
    assert (rows[np.arange(len(rows)), first_end] == tokenizer.end_id).all()
    np.testing.assert_array_equal(tokenizer.lengths(rows), first_end + 1)


def test_captions_are_cleaned_alike(tokenizer):
    plain = tokenizer.encode("the café & a dog")
    for text in (
        "  The  CAFÉ\n&amp;amp; a\tdog ",
        "the cafÃ© &amp; a dog",
        "the cafe\u0301 & a dog",
    ):
        np.testing.assert_array_equal(tokenizer.encode(text), plain)


def test_one_caption_makes_one_row(tokenizer):
    assert tokenizer("a red circle").shape == (1, tokenizer.context_length)
    assert tokenizer([]).shape == (0, tokenizer.context_length)


def test_decode_gives_the_cleaned_caption(tokenizer):
    assert tokenizer.decode(tokenizer.encode("A  Small red CIRCLE")) == "a small red circle"
    assert tokenizer.decode(tokenizer.encode("")) == ""


@pytest.mark.parametrize("caption", [None, 3, b"bytes", ["a", "list"]])
def test_a_caption_that_is_not_text_is_refused(tokenizer, caption):
    with pytest.raises(UserError, match=type(caption).__name__):
        tokenizer(["a red circle", caption])


def test_tokenizers_pickle(tokenizer):
    again = pickle.loads(pickle.dumps(tokenizer))
    np.testing.assert_array_equal(again(CAPTIONS), tokenizer(CAPTIONS))
    assert again.spec() == tokenizer.spec()


def test_a_saved_tokenizer_loads_as_it_was(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(CLIP_URL, "http://127.0.0.1:9/unreachable")
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    tokenizer.save(tmp_path)
    again = load_tokenizer(json.loads(json.dumps(tokenizer.spec())), tmp_path)
    assert type(again) is type(tokenizer)
    assert again.spec() == tokenizer.spec()
    assert again.context_length == tokenizer.context_length
    np.testing.assert_array_equal(again(CAPTIONS + STRANGE), tokenizer(CAPTIONS + STRANGE))


def test_any_text_is_encoded_without_loss():
    tokenizer = TrainedTokenizer.train(CAPTIONS, vocabulary_size=300, context_length=400)
    rng = random.Random(0)
    limits = (0x80, 0x3000, 0x20000)
    texts = STRANGE + [
        "".join(chr(rng.randrange(32, rng.choice(limits))) for _ in range(20)) for _ in range(500)
    ]
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == tokenizers.clean_caption(text)


def test_own_captions_need_few_ids(trained):
    # Frequent words are one id each; bytes alone would need about thirty.
    assert trained.lengths(trained(CAPTIONS)).mean() < 10


def test_ids_of_text_stay_clear_of_the_reserved_ones(trained):
    for row, length in zip(rows := trained(CAPTIONS), trained.lengths(rows), strict=True):
        text = row[1 : length - 1]
        assert text.min() > 0
        assert text.max() < trained.start_id


def test_the_vocabulary_has_the_requested_size():
    tokenizer = TrainedTokenizer.train(["aa aa"], vocabulary_size=5000, context_length=8)
    assert tokenizer.vocabulary_size == 5000
    assert tokenizer.end_id == 4999


def test_training_depends_on_the_captions_only(trained):
    shuffled = random.Random(1).sample(CAPTIONS, len(CAPTIONS))
    again = TrainedTokenizer.train(iter(shuffled), vocabulary_size=400, context_length=24)
    assert again.spec() == trained.spec()
    program = (
        "import json, sys; from dinotxt_jax.tokenizers import TrainedTokenizer;"
        "print(TrainedTokenizer.train(json.load(sys.stdin), 400, 24).spec()['sha256'])"
    )
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(CAPTIONS),
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert process.stdout.strip() == trained.spec()["sha256"]


@pytest.mark.parametrize("captions", [[], ["", "  "], ["a red circle", 3]])
def test_captions_to_train_on_must_hold_text(captions):
    with pytest.raises(UserError):
        TrainedTokenizer.train(captions, vocabulary_size=300)


def test_sizes_that_cannot_work_are_refused():
    with pytest.raises(UserError, match="260"):
        TrainedTokenizer.train(CAPTIONS, vocabulary_size=259)
    with pytest.raises(UserError, match="context_length"):
        TrainedTokenizer.train(CAPTIONS, vocabulary_size=300, context_length=2)


def test_a_foreign_or_missing_file_is_refused(trained, tmp_path):
    with pytest.raises(UserError, match=r"tokenizer\.json is missing"):
        load_tokenizer(trained.spec(), tmp_path)
    TrainedTokenizer.train(CAPTIONS, vocabulary_size=300).save(tmp_path)
    with pytest.raises(UserError, match="sha256"):
        load_tokenizer(trained.spec(), tmp_path)
    with pytest.raises(UserError, match="endoftext"):
        TrainedTokenizer(Engine(models.BPE()).to_str().encode())
    with pytest.raises(UserError, match=r"kind 'words' is unknown; .* clip, bpe, sentencepiece"):
        load_tokenizer({"kind": "words"}, tmp_path)


def test_a_description_that_differs_from_the_file_is_refused(trained, tmp_path):
    trained.save(tmp_path)
    with pytest.raises(UserError, match=r"has vocabulary_size 500, but its file gives 400"):
        load_tokenizer(trained.spec() | {"vocabulary_size": 500}, tmp_path)


def test_clip_rows_may_be_padded_with_the_end_as_in_transformers(clip, vocabulary, tmp_path):
    padded = ClipTokenizer(vocabulary, pad_id=clip.end_id)
    texts = ["", "a red circle", "red circle " * 200, "a <|endoftext|> b"]
    rows = padded(texts)
    lengths = clip.lengths(clip(texts))
    np.testing.assert_array_equal(padded.lengths(rows), lengths)
    for row, zeros, length in zip(rows, clip(texts), lengths, strict=True):
        np.testing.assert_array_equal(row[:length], zeros[:length])
        after = np.asarray([token for token in zeros[length:]])
        np.testing.assert_array_equal(row[length:], np.where(after == 0, clip.end_id, after))
        assert padded.decode(row) == clip.decode(zeros)
    padded.save(tmp_path)
    assert load_tokenizer(padded.spec(), tmp_path).spec()["pad_id"] == 49_407
    # Descriptions from before the setting mean zeros.
    old = {key: value for key, value in clip.spec().items() if key != "pad_id"}
    np.testing.assert_array_equal(load_tokenizer(old, tmp_path)(texts), clip(texts))
    with pytest.raises(UserError, match="pad_id is 49408, expected an id from 0 to 49407"):
        ClipTokenizer(vocabulary, pad_id=49_408)


def test_a_wrong_vocabulary_file_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        ClipTokenizer(tmp_path / "nowhere.gz")
    wrong = tmp_path / tokenizers.CLIP_VOCABULARY_FILE
    wrong.write_bytes(b"not the vocabulary")
    with pytest.raises(UserError, match=hashlib.sha256(b"not the vocabulary").hexdigest()):
        ClipTokenizer(wrong)


@pytest.fixture
def served(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a folder served locally under the official URL, and an empty cache next to it."""
    monkeypatch.setattr(CLIP_URL, web.url(tokenizers.CLIP_VOCABULARY_FILE))
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    return web.folder


def test_the_vocabulary_is_downloaded_once(served, vocabulary, clip):
    source = served / tokenizers.CLIP_VOCABULARY_FILE
    source.write_bytes(vocabulary.read_bytes())
    np.testing.assert_array_equal(ClipTokenizer()(CAPTIONS), clip(CAPTIONS))
    assert kept(served.parent / "cache") == [tokenizers.CLIP_VOCABULARY_FILE]
    source.unlink()
    np.testing.assert_array_equal(ClipTokenizer()(CAPTIONS), clip(CAPTIONS))
    # A model directory without a vocabulary copy falls back to the cache.
    assert load_tokenizer(clip.spec(), served).spec() == clip.spec()


@pytest.mark.parametrize("sent", [b"something else", None])
def test_a_download_that_fails_leaves_nothing_in_the_cache(served, sent):
    if sent is not None:
        (served / tokenizers.CLIP_VOCABULARY_FILE).write_bytes(sent)
    with pytest.raises(UserError, match="127.0.0.1"):
        ClipTokenizer()
    assert kept(served.parent / "cache") == []


def kept(cache: Path) -> list[str]:
    """Returns the files in a cache, except locks."""
    return sorted(path.name for path in cache.glob("*") if path.suffix != ".lock")
