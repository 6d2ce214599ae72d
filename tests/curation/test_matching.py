"""The rule by which entries match captions, against a direct reading of it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dinotxt_jax import UserError
from dinotxt_jax.curation.matching import (
    EntryMatcher,
    bordered,
    folded,
    is_only_punctuation,
    joined_matches,
)


def found(entries: list[str], *captions: str) -> list[list[str]]:
    matches = EntryMatcher(entries).match(captions)
    return [[entries[entry] for entry in matches.of(row)] for row in range(len(captions))]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a, b", " a ,  b "),
        ("one\ttwo\nthree\rfour", " one two three four "),
        ("new  york", " new  york "),
        ("Is it?!`no`;", " Is it ?  !  ` no `  ;  "),
        ("a-b (c) d's", " a-b (c) d's "),
        ("", "  "),
    ],
)
def test_captions_are_folded_as_in_the_reference(caption: str, expected: str) -> None:
    assert folded(caption) == expected


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("dog", " dog "),
        ("new york", " new york "),
        ("東京", "東京"),
        ("東京 tower", "東京 tower "),
        ("Café 東", " Café 東"),
        ("สุนัข", "สุนัข"),
        ("ခွေး", "ခွေး"),
        ("C++", " C++"),
        ("(c)", "(c)"),
        ("「x", "「x "),
        ("いぬ", " いぬ "),
    ],
)
def test_entries_have_blanks_at_the_borders_of_words(entry: str, expected: str) -> None:
    assert bordered(entry) == expected


def test_words_match_as_a_whole_and_overlap() -> None:
    entries = ["dog", "hot dog", "hot", "dog stand", "New York", "york", "東京", "C++", "do"]
    assert found(
        entries,
        "a hot dog stand, a dog",
        "Dog in New York",
        "new york, New  York",
        "我在東京塔",
        "I like C++, hotdog",
        "hot.dog!stand",
        "New\nYork",
    ) == [
        ["dog", "hot dog", "hot", "dog stand"],
        ["New York"],
        ["york"],
        ["東京"],
        ["C++"],
        ["dog", "hot"],
        ["New York"],
    ]


@given(
    entries=st.lists(st.text("ab, .東", min_size=1, max_size=4), min_size=1, unique=True),
    captions=st.lists(st.text("ab, .\n東", max_size=12)),
)
def test_matches_are_those_of_the_definition(entries: list[str], captions: list[str]) -> None:
    entries = [entry for entry in entries if entry.strip()] or ["a"]
    matches = EntryMatcher(entries).match(captions)
    expected = [
        [number for number, entry in enumerate(entries) if bordered(entry) in folded(caption)]
        for caption in captions
    ]
    assert [matches.of(row) for row in range(len(captions))] == expected
    assert matches.lengths.tolist() == [len(row) for row in expected]


def test_groups_of_captions_are_joined() -> None:
    matcher = EntryMatcher(["a", "b"])
    captions = ["a b", "", "b", "c"]
    whole = matcher.match(captions)
    parts = joined_matches(
        [matcher.match(captions[:1]), matcher.match([]), matcher.match(captions[1:])]
    )
    for field in ("ends", "entries"):
        np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field))


def test_captions_of_any_length_and_broken_unicode_are_matched() -> None:
    rng = random.Random(0)
    enormous = " ".join(rng.choice(["cat", "tree", "sun"]) for _ in range(300_000)) + " dog"
    assert found(["dog", "cow"], enormous, "", "a \ud800 dog") == [["dog"], [], ["dog"]]


@pytest.mark.parametrize("value", [None, b"bytes", 3, ["a"]])
def test_a_caption_that_is_no_text_is_named(value: Any) -> None:
    with pytest.raises(
        UserError, match=rf"caption 2 is of type {type(value).__name__}, expected a"
    ):
        EntryMatcher(["a"]).match(["a", value])


def test_blank_entries_are_refused() -> None:
    with pytest.raises(UserError, match=r"entry 2 of the metadata is ' ', expected a text"):
        EntryMatcher(["a", " "])


def test_punctuation_is_known() -> None:
    assert is_only_punctuation("-- 。")
    assert is_only_punctuation("")
    assert not is_only_punctuation("c++")
