"""The step `metadata`: writes entries from wordnets, Wikipedia or the pool's own captions."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator, Sequence
from typing import Any

from dinotxt_jax.config import CurationConfig, flatten
from dinotxt_jax.curation.languages import OTHER_LANGUAGE, LanguageIdentifier
from dinotxt_jax.curation.metadata import cleaned_entries, write_metadata
from dinotxt_jax.curation.ngrams import NgramCounts, best_bigrams, best_unigrams
from dinotxt_jax.curation.wikipedia import (
    article_sources,
    dumps_by_language,
    plain_text,
    viewed_titles,
)
from dinotxt_jax.curation.wordnet import wordnet_names
from dinotxt_jax.data.examples import Source, readable_captions
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.runtime.worker_pool import worker_pool
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.retries import retried

# Articles and examples that a process counts at a time.
_ARTICLES, _EXAMPLES = 500, 10_000
_KILLED = "lower config.workers"

CountsByLanguage = dict[str, NgramCounts]


def write_entries(config: CurationConfig, arguments: Sequence[str], output: Address) -> str:
    """Writes metadata; returns a sentence about the result.

    Args:
        config: the pool, and the settings in `metadata`.
        arguments: none.
        output: the folder to write.

    Raises:
        UserError: a source cannot be read, or there is no entry.
    """
    if arguments:
        raise UserError(f"{arguments[0]!r} is not used by metadata; remove it.")
    if retried(output.is_file):
        raise UserError(f"{output} is a file, expected a folder for lists; correct --output.")
    settings = config.metadata
    names = wordnet_names(settings.wordnet)
    if unused := sorted(set(names) - set(settings.languages)):
        raise UserError(
            f"config.metadata.wordnet names lexicons in {', '.join(unused)}, expected the "
            "languages in config.metadata.languages; add these, or remove the lexicons."
        )
    titles: dict[str, list[str]] = {}
    if settings.page_views:
        titles = viewed_titles(
            settings.page_views, settings.languages, settings.min_hour_views, settings.min_views
        )
    counts, origin = _wikipedia_counts(config) if settings.wikipedia else _caption_counts(config)
    lists = {}
    for language in (*settings.languages, OTHER_LANGUAGE):
        entries = _entries(config, language, names, titles, counts)
        if language != OTHER_LANGUAGE or (OTHER_LANGUAGE in counts and len(settings.languages) > 1):
            lists[language] = entries
    lists = {language: sources for language, sources in lists.items() if any(sources.values())}
    if not lists:
        raise UserError(
            "no entry was found, expected words that occur at least config.metadata.min_count = "
            f"{settings.min_count} times; lower it, or give other sources."
        )
    used = {k: v for k, v in flatten(config).items() if k.startswith("config.metadata.")}
    write_metadata(output, lists, {"settings": used, "text": origin})
    sizes = ", ".join(
        f"{sum(map(len, sources.values()))} entries in {language}.txt"
        for language, sources in lists.items()
    )
    return f"{output}: {sizes}."


def _entries(
    config: CurationConfig,
    language: str,
    names: dict[str, list[str]],
    titles: dict[str, list[str]],
    counts: CountsByLanguage,
) -> dict[str, list[str]]:
    """Returns the entries of a language by source, in the order of MetaCLIP."""
    settings = config.metadata
    counted = counts.get(language, NgramCounts.of(()))
    unigrams = best_unigrams(
        counted.unigrams, settings.min_count, settings.unigram_share, settings.max_unigrams
    )
    most_bigrams = round(settings.bigrams_per_unigram * len(unigrams))
    viewed = titles.get(language, [])
    most_titles = min(round(settings.title_share * len(viewed)), settings.max_titles)
    candidates = {
        "wordnet": names.get(language, []),
        "unigrams": list(unigrams),
        "bigrams": best_bigrams(counted, settings.min_count, most_bigrams),
        "titles": viewed[:most_titles],
    }
    if any(candidates.values()):
        candidates = {"numbers": [str(number) for number in range(100)], **candidates}
    return cleaned_entries(candidates, settings.max_entries)


def _wikipedia_counts(config: CurationConfig) -> tuple[CountsByLanguage, dict[str, Any]]:
    """Counts in the articles of the dumps in the languages of the metadata."""
    settings = config.metadata
    dumps = dumps_by_language(settings.wikipedia)
    missing = sorted(set(settings.languages) - set(dumps))
    if missing:
        raise UserError(
            f"{settings.wikipedia} has no dump in the languages {', '.join(missing)}, expected one "
            "for each of config.metadata.languages; add dumps or remove languages."
        )
    counts = {language: NgramCounts.of(()) for language in settings.languages}
    plain_text("")  # says what is missing before the work begins
    with (
        worker_pool(_processes(config), _nothing, _KILLED) as run,
        progress_bar(None, 0, "article", "counting words", unit_scale=True) as bar,
    ):
        for language in settings.languages:
            articles = (text for file in dumps[language] for text in article_sources(file))
            for counted, number in run(_count_articles, _batches(articles, _ARTICLES)):
                counts[language].add(counted)
                bar.update(number)
    files = {language: [file.name for file in dumps[language]] for language in settings.languages}
    return counts, {"wikipedia": files}


def _nothing() -> None:
    """Is the state of processes that need none."""


def _count_articles(_: None, articles: Sequence[str]) -> tuple[NgramCounts, int]:
    return NgramCounts.of(line for text in articles for line in plain_text(text).split("\n")), len(
        articles
    )


def _batches(items: Iterator[str], size: int) -> Iterator[list[str]]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _caption_counts(config: CurationConfig) -> tuple[CountsByLanguage, dict[str, Any]]:
    """Counts in the captions of the pool, or of evenly spaced examples if it is large."""
    source = open_source(config.data)
    total = min(config.metadata.examples or len(source), len(source))
    counter = functools.partial(_CaptionCounter, source, total, config.metadata.languages)
    spans = (range(start, min(start + _EXAMPLES, total)) for start in range(0, total, _EXAMPLES))
    counts: CountsByLanguage = {}
    processes = min(_processes(config), -(-total // _EXAMPLES))
    with (
        worker_pool(processes, counter, _KILLED) as run,
        progress_bar(total, 0, "example", "counting words", unit_scale=True) as bar,
    ):
        for counted, number in run(_CaptionCounter.count, spans):
            for language, each in counted.items():
                counts.setdefault(language, NgramCounts.of(())).add(each)
            bar.update(number)
    pool = data_identity(source, config.data.threads)
    return counts, {"captions": {"pool": pool, "examples": total}}


def _processes(config: CurationConfig) -> int:
    return config.workers or os.cpu_count() or 1


class _CaptionCounter:
    """Counts in the captions of evenly spaced examples."""

    def __init__(self, source: Source, total: int, languages: tuple[str, ...]):
        self._source, self._total, self._languages = source, total, languages
        self._identify = LanguageIdentifier(languages) if len(languages) > 1 else None

    def count(self, numbers: range) -> tuple[CountsByLanguage, int]:
        """Returns the counts by language, and the number of examples."""
        captions: dict[str, list[str]] = {}
        for number in numbers:
            index = number * len(self._source) // self._total
            for caption in readable_captions(self._source, index):
                language = self._identify(caption) if self._identify else self._languages[0]
                captions.setdefault(language, []).append(caption)
        counts = {language: NgramCounts.of(texts) for language, texts in captions.items()}
        return counts, len(numbers)
