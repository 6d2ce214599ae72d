"""Metadata from captions, wordnets and Wikipedia, and lists that cannot be used."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from small_sets import write_index

from dinotxt_jax import UserError
from dinotxt_jax.config import CurationConfig, DataConfig, check
from dinotxt_jax.config.curation import MetadataConfig
from dinotxt_jax.curation import ngrams
from dinotxt_jax.curation.metadata import cleaned_entries, read_metadata
from dinotxt_jax.curation.metadata_step import write_entries
from dinotxt_jax.curation.ngrams import NgramCounts, best_bigrams, best_unigrams

CAPTIONS = [
    "A red car in New York",
    "a car, New York",
    "New York -- a red car",
    "cafe \ud83d\ude00",
]
NUMBERS = [str(number) for number in range(100)]


def pool(folder: Path, captions: list[str], **changes: object) -> CurationConfig:
    lines = [{"image": f"{n}.png", "captions": [text]} for n, text in enumerate(captions)]
    data = DataConfig(source="jsonl", path=str(write_index(folder, *lines)), threads=0)
    settings = MetadataConfig(**({"min_count": 2} | changes))  # type: ignore[arg-type]
    return CurationConfig(data=data, workers=1, metadata=settings)


def test_unigrams_and_bigrams_of_captions(tmp_path: Path) -> None:
    config = pool(tmp_path, CAPTIONS[:3], bigrams_per_unigram=1.0)
    message = write_entries(config, [], tmp_path / "metadata")
    entries = read_metadata(tmp_path / "metadata").entries
    # "a", "red", ... by frequency, then by text; "car New" is interrupted by punctuation.
    words = ["New", "York", "car", "a", "red"]
    # New and York occur only together; "red car" is next.
    assert list(entries) == [*NUMBERS, *words, "New York", "red car"]
    assert message == f"{tmp_path / 'metadata'}: 107 entries in en.txt."
    recipe = json.loads((tmp_path / "metadata" / "recipe.json").read_text())
    assert recipe["entries"]["en"] == {
        **{"numbers": 100, "wordnet": 0, "unigrams": 5, "bigrams": 2, "titles": 0}
    }
    assert recipe["text"]["captions"]["examples"] == 3
    assert recipe["settings"]["config.metadata.min_count"] == 2


def test_processes_and_order_do_not_change_the_entries(tmp_path: Path) -> None:
    texts = []
    for name, captions in (("a", CAPTIONS[:3]), ("b", CAPTIONS[2::-1])):
        (tmp_path / name).mkdir()
        write_entries(pool(tmp_path / name, captions), [], tmp_path / name / "metadata")
        texts.append((tmp_path / name / "metadata" / "en.txt").read_bytes())
    assert texts[0] == texts[1]


def test_the_ranking_is_that_of_the_definition() -> None:
    counts = NgramCounts(
        Counter({"a": 100, "b": 10, "c": 10, "d": 10}),
        Counter({"a b": 9, "b c": 5, "c d": 8, "a d": 2}),
    )
    # count / (count * count): c d 0.08, b c 0.05, a b 0.009.
    assert best_bigrams(counts, 3, 10) == ["c d", "b c", "a b"]
    assert best_bigrams(counts, 3, 1) == ["c d"]
    assert list(best_unigrams(counts.unigrams, 10, 0.5, 10)) == ["a", "b"]
    assert list(best_unigrams(counts.unigrams, 11, 1.0, 10)) == ["a"]


def test_scripts_without_blanks_are_cut_into_characters() -> None:
    counts = NgramCounts.of(["我愛東京。 東京 tower", "กำลัง"])
    assert counts.unigrams["東"] == 2
    assert counts.unigrams["tower"] == 1
    bigrams = best_bigrams(counts, 1, 100)
    assert {"東京", "京 tower", "我愛"} <= set(bigrams)
    assert "京東" not in bigrams


def test_rare_ngrams_are_forgotten_if_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngrams, "MOST_COUNTED", 3)
    counts = NgramCounts.of(["a a a b b c d e"])
    counts.add(NgramCounts.of(["a b"]))
    assert counts.unigrams == {"a": 4, "b": 3}
    assert len(counts.bigrams) <= 3


def test_entries_are_cleaned_and_limited() -> None:
    candidates = {"first": ["a", " b\n c ", "--", "a", "", "x" * 257], "second": ["b c", "d", "e"]}
    assert cleaned_entries(candidates, 10) == {"first": ["a", "b c"], "second": ["d", "e"]}
    assert cleaned_entries(candidates, 3) == {"first": ["a", "b c"], "second": ["d"]}


def test_languages_have_lists_of_their_own(tmp_path: Path) -> None:
    texts = {
        "en": "the weather is nice and the children are playing in the garden",
        "de": "das Wetter ist schön und die Kinder spielen im Garten",
        "fr": "il fait beau et les enfants jouent dans le jardin",
    }
    config = pool(tmp_path, [*texts.values()] * 2, languages=("en", "de"))
    write_entries(config, [], tmp_path / "metadata")
    metadata = read_metadata(tmp_path / "metadata")
    assert metadata.languages == ("en", "de", "other")
    for word, number in (("weather", 0), ("Wetter", 1), ("jardin", 2)):
        assert [word in entries for entries in metadata.lists] == [n == number for n in range(3)]
    assert metadata.entries[metadata.starts[1]] == "0"


ENTRY = """<LexicalEntry id="e{n}"><Lemma writtenForm="{name}" partOfSpeech="n"/>
<Sense id="s{n}" synset="small-{n}-n"/></LexicalEntry>"""
LEXICON = f"""<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE LexicalResource SYSTEM "http://globalwordnet.github.io/schemas/WN-LMF-1.0.dtd">
<LexicalResource xmlns:dc="http://purl.org/dc/elements/1.1/">
<Lexicon id="small" label="Small" language="en" email="a@b" license="x" version="1">
{ENTRY.format(n=1, name="coffee cup")}{ENTRY.format(n=2, name="espresso")}
<Synset id="small-1-n" ili="" partOfSpeech="n"/><Synset id="small-2-n" ili="" partOfSpeech="n"/>
</Lexicon></LexicalResource>
"""


def test_wordnets_that_are_stored_give_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wn

    monkeypatch.setattr(wn.config, "data_directory", tmp_path / "wn")
    (tmp_path / "small.xml").write_text(LEXICON)
    wn.add(tmp_path / "small.xml", progress_handler=None)
    config = pool(tmp_path, CAPTIONS[:3], wordnet=("small:1",))
    write_entries(config, [], tmp_path / "metadata")
    entries = read_metadata(tmp_path / "metadata").entries
    assert entries[100:102] == ("coffee cup", "espresso")
    german = MetadataConfig(wordnet=("small:1",), languages=("de",))
    with pytest.raises(UserError, match="wordnet names lexicons in en, expected the languages in"):
        write_entries(dataclasses.replace(config, metadata=german), [], tmp_path / "none")
    missing = dataclasses.replace(config, metadata=MetadataConfig(wordnet=("oewn:2024",)))
    with pytest.raises(UserError, match=r"names 'oewn:2024', which is not stored in .* download"):
        write_entries(missing, [], tmp_path / "none")
    assert not (tmp_path / "none").exists()


DUMP = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/">
<page><title>Zebra</title><ns>0</ns><revision><text>The '''zebra''' lives in [[Africa|the savanna]].
{{Infobox|colour=striped}}<ref>hidden source</ref> The '''zebra''' eats.</text></revision></page>
<page><title>Talk:Zebra</title><ns>1</ns><revision><text>talk talk</text></revision></page>
<page><title>Zebras</title><ns>0</ns><redirect title="Zebra"/>
<revision><text>#REDIRECT moved moved</text></revision></page>
</mediawiki>"""


def test_wikipedia_gives_words_and_titles(tmp_path: Path) -> None:
    (tmp_path / "enwiki-1-pages-articles.xml.bz2").write_bytes(bz2.compress(DUMP.encode()))
    views = (
        "en Zebra 60 0\nen.m Zebra 55 0\nen Rare_thing 49 0\nde Hund 500 0\nen Talk:Zebra 99 0\n"
    )
    for hour in ("pageviews-1.gz", "pageviews-2.gz"):
        (tmp_path / hour).write_bytes(gzip.compress(f"{views}en Two_words 50 0\n".encode()))
    config = pool(
        tmp_path,
        CAPTIONS,
        wikipedia=str(tmp_path / "*.bz2"),
        page_views=str(tmp_path / "pageviews-*"),
        min_count=1,
        bigrams_per_unigram=2.0,
    )
    write_entries(config, [], tmp_path / "metadata")
    entries = read_metadata(tmp_path / "metadata").entries
    assert {"The", "zebra", "savanna", "zebra lives"} <= set(entries)
    assert not {"Africa", "striped", "hidden", "talk", "moved"} & set(entries)
    assert entries[-2:] == ("Zebra", "Two words")


def test_missing_dumps_are_named(tmp_path: Path) -> None:
    config = pool(tmp_path, CAPTIONS, wikipedia=str(tmp_path / "no*.bz2"))
    with pytest.raises(
        UserError, match=r"no Wikipedia dump file was .*config.metadata.wikipedia\.$"
    ):
        write_entries(config, [], tmp_path / "metadata")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("enwiki-1.xml.bz2", bz2.compress(DUMP.encode())[:-20], r"cannot be read to its end"),
        ("enwiki-1.xml", DUMP[:-30].encode(), r"cannot be read to its end .* download it again"),
        ("articles.xml", DUMP.encode(), r"does not say its language, expected a name such as"),
        ("dewiki-1.xml", DUMP.encode(), r"has no dump in the languages en, expected one for each"),
    ],
)
def test_dumps_that_cannot_be_used_end_in_a_sentence(
    name: str, content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    config = pool(tmp_path, CAPTIONS, wikipedia=str(tmp_path / name))
    with pytest.raises(UserError, match=message):
        write_entries(config, [], tmp_path / "metadata")
    assert not (tmp_path / "metadata").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no entry, expected one per line; add entries"),
        (b"a\n\n \n!?\n", r"line 4 is '!\?', expected more than punctuation"),
        (b"a\nb\na\n", "line 3 repeats the entry 'a' of line 1; remove one"),
        (b"\xff\xfe", "is not UTF-8 text .* save it as UTF-8"),
    ],
)
def test_lists_that_cannot_be_used_end_in_a_sentence(
    content: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_metadata(tmp_path / "list.txt")


def test_unfinished_or_changed_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no metadata in .*expected a text file"):
        read_metadata(tmp_path)
    write_entries(pool(tmp_path, CAPTIONS), [], tmp_path / "metadata")
    with (tmp_path / "metadata" / "en.txt").open("a") as file:
        file.write("added\n")
    with pytest.raises(UserError, match=r"en.txt has 108 entries, expected 107 as in recipe.json"):
        read_metadata(tmp_path / "metadata")
    assert read_metadata(tmp_path / "metadata" / "en.txt").lists[0][-1] == "added"


def test_captions_without_frequent_words_end_in_a_sentence(tmp_path: Path) -> None:
    config = pool(tmp_path, ["all words differ"], min_count=2)
    with pytest.raises(UserError, match=r"no entry was found, expected words that occur at least"):
        write_entries(config, [], tmp_path / "metadata")
    assert not (tmp_path / "metadata").exists()


@pytest.mark.parametrize("languages", [(), ("en", "en"), ("en", "")])
def test_languages_must_differ(languages: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match=r"config.metadata.languages is .*expected different lang"):
        check(CurationConfig(metadata=MetadataConfig(languages=languages)))


def test_a_language_code_is_checked() -> None:
    with pytest.raises(
        UserError, match=r"config.metadata.languages\[0\] is 'English', expected a l"
    ):
        check(CurationConfig(metadata=MetadataConfig(languages=("English",))))
