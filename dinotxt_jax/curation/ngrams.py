"""Unigrams by frequency and bigrams by pointwise mutual information, counted in any text.

Tokens are separated by blanks and keep their case. Scripts without blanks between words have one
token per character (with combining marks), so that their bigrams are pairs of adjacent characters.
Only tokens that an entry could match next to each other form a bigram: with exactly one blank, or
none in such a script, between them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import regex

from dinotxt_jax.curation.matching import folded, is_only_punctuation, is_unspaced

# Above this number of unigrams or bigrams, rare ones are forgotten: about 2 GB each.
MOST_COUNTED = 20_000_000
# Stands between the tokens of a bigram that have no blank between them.
_TOGETHER = "\0"


class NgramCounts(NamedTuple):
    """Occurrences of tokens and of pairs of adjacent tokens.

    Attributes:
        unigrams: occurrences by token.
        bigrams: occurrences of both tokens with a blank between them, or `_TOGETHER`.
    """

    unigrams: Counter[str]
    bigrams: Counter[str]

    @classmethod
    def of(cls, texts: Iterable[str]) -> NgramCounts:
        """Counts in texts."""
        counts = cls(Counter(), Counter())
        for text in texts:
            tokens = list(_tokens(text.replace(_TOGETHER, " ")))
            counts.unigrams.update(token for token in tokens if token.strip())
            counts.bigrams.update(_pairs(tokens))
        return counts

    def add(self, other: NgramCounts) -> None:
        """Adds counts of other texts; forgets the rarest ngrams if there are too many.

        A forgotten ngram loses the occurrences so far, so only those that are rare in a large text
        are affected.
        """
        for counts, more in zip(self, other, strict=True):
            counts.update(more)
            least = 1
            while len(counts) > MOST_COUNTED:
                for text in [text for text, count in counts.items() if count <= least]:
                    del counts[text]
                least += 1


_UNSPACED = regex.compile(r"\X")


def _tokens(text: str) -> Iterator[str]:
    """Yields tokens; "" separates tokens that cannot be matched together, " " is one blank."""
    previous = ""
    for word in folded(text).strip(" ").split(" "):
        if not word or is_only_punctuation(word):
            previous = ""
            yield ""
            continue
        if previous:
            yield " "
        yield from _parts(word) if any(map(is_unspaced, word)) else (word,)
        previous = word


def _parts(word: str) -> Iterator[str]:
    """Cuts the parts of a word in scripts without blanks into characters."""
    spaced = ""
    for character in _UNSPACED.findall(word):
        if is_unspaced(character[0]) or is_only_punctuation(character):
            if spaced:
                yield spaced
            yield "" if is_only_punctuation(character) else character
            spaced = ""
        else:
            spaced += character
    if spaced:
        yield spaced


def _pairs(tokens: list[str]) -> Iterator[str]:
    """Yields bigrams as text."""
    before, between = "", _TOGETHER
    for token in tokens:
        if token == " ":
            between = " "
            continue
        if token and before:
            yield f"{before}{between}{token}"
        before, between = token, _TOGETHER


def best_unigrams(
    counts: Mapping[str, int], min_count: int, share: float, most: int
) -> dict[str, int]:
    """Returns the most frequent unigrams, in this order; equally frequent ones by text.

    Args:
        counts: occurrences.
        min_count: the least occurrences.
        share: share of the unigrams with at least `min_count` occurrences that is returned.
        most: maximum number.
    """
    frequent = [(text, count) for text, count in counts.items() if count >= min_count]
    frequent.sort(key=lambda pair: (-pair[1], pair[0]))
    return dict(frequent[: min(math.ceil(share * len(frequent)), most)])


def best_bigrams(counts: NgramCounts, min_count: int, most: int) -> list[str]:
    """Returns the bigrams with the highest PMI, log(p(a b) / (p(a) p(b))), best first.

    Args:
        counts: the counts.
        min_count: the least occurrences of a bigram.
        most: maximum number.
    """
    ranked = [
        (-_mutual_information(text, count, counts.unigrams), -count, text)
        for text, count in counts.bigrams.items()
        if count >= min_count and all(part in counts.unigrams for part in _halves(text))
    ]
    ranked.sort()
    return [text.replace(_TOGETHER, "") for _, _, text in ranked[:most]]


def _mutual_information(text: str, count: int, unigrams: Mapping[str, int]) -> float:
    """Returns the PMI up to a constant, which the ranking does not need."""
    first, second = _halves(text)
    return math.log(count) - math.log(unigrams[first]) - math.log(unigrams[second])


def _halves(bigram: str) -> list[str]:
    return bigram.split(_TOGETHER if _TOGETHER in bigram else " ")
