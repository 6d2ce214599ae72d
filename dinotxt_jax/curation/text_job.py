"""The work on ranges of a pool: matching captions, and drawing.

A range is stored under its number when it is complete, so results depend neither on the number of
processes nor on the machine or the order in which they come; what is stored is not computed again.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.balancing import count, critical_factors
from dinotxt_jax.curation.draws import hashes
from dinotxt_jax.curation.languages import LanguageIdentifier
from dinotxt_jax.curation.matching import EntryMatcher, Matches, joined_matches
from dinotxt_jax.curation.metadata import Metadata, read_metadata
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.retries import retried

# Examples that one thread reads at a time.
_CHUNK = 256
_AGAIN = "remove it and run the same command again"
MATCHES, DRAWS = "matches", "draws"


class TextPair(NamedTuple):
    """The candidate that stands for an example.

    Attributes:
        caption: the caption that is matched.
        name: the name that draws depend on.
    """

    caption: str
    name: str


def candidate(key: str, captions: Sequence[str], seed: int) -> TextPair:
    """Returns the candidate of an example: with several captions, one drawn by hash.

    The name holds key and caption, so draws do not depend on the position in the pool, and two
    examples are drawn together only if both are equal.

    Args:
        key: the key of the example.
        captions: one or more captions, whose order makes no difference.
        seed: the seed.
    """
    caption = captions[0]
    if len(captions) > 1:
        numbers = hashes(seed, [json.dumps(["caption", key, text]) for text in captions])
        caption = captions[int(np.argmin(numbers))]
    return TextPair(caption, json.dumps([key, caption]))


class MatchedRange(NamedTuple):
    """The stored matches of one range.

    Attributes:
        pairs: hash of each pair; 0 without a caption.
        matches: matched entries of each pair.
        counted: entries that match at least one caption.
        counts: number of captions of these entries.
        unreadable: number of examples whose captions cannot be read.
    """

    pairs: UInt64[np.ndarray, " n"]
    matches: Matches
    counted: Int64[np.ndarray, " k"]
    counts: Int64[np.ndarray, " k"]
    unreadable: int


@dataclasses.dataclass(frozen=True)
class TextJob:
    """What is balanced, and where to; it pickles to a few bytes.

    Attributes:
        config: the settings.
        metadata: path of the metadata.
        output: the output folder, as text.
        examples: number of examples in the pool.
    """

    config: CurationConfig
    metadata: str
    output: str
    examples: int

    @property
    def folder(self) -> Address:
        """The output folder."""
        return to_address(self.output)

    @property
    def ranges(self) -> range:
        """The ranges, by number."""
        return range(-(-self.examples // self.config.balance.range_size))

    def span(self, number: int) -> range:
        """Returns the indices of the examples of a range."""
        first = number * self.config.balance.range_size
        return range(first, min(first + self.config.balance.range_size, self.examples))

    def missing(self, kind: str) -> list[int]:
        """Returns the ranges without a file; lists the folder once."""
        folder = self.folder / kind
        present = retried(lambda: {f.name for f in folder.iterdir()} if folder.is_dir() else set())
        return [number for number in self.ranges if self.file(kind, number).name not in present]

    def file(self, kind: str, number: int) -> Address:
        """Returns the file of a range: `MATCHES` or `DRAWS`."""
        return self.folder / kind / f"{number:06d}.npz"

    @property
    def thresholds_file(self) -> Address:
        """The file with count / t of each entry, from which processes draw."""
        return self.folder / DRAWS / "thresholds.npz"


class TextWorker:
    """Works on ranges in one process.

    Args:
        job: the job.
        source: the pool.
        threads: number of threads that read captions.
    """

    def __init__(self, job: TextJob, source: Source, threads: int):
        self._job, self._source, self._threads = job, source, threads

    def match(self, number: int) -> int:
        """Matches the captions of a range and stores the result; returns the number of examples."""
        span = self._job.span(number)
        seed = self._job.config.seed
        pairs: list[TextPair | None] = []
        parts = []
        for chunk in self._read(span):
            pairs += chunk
            parts.append(self._matcher.match([pair.caption if pair else "" for pair in chunk]))
        matches = joined_matches(parts)
        numbers = hashes(seed, [pair.name if pair else "" for pair in pairs])
        is_read = np.array([pair is not None for pair in pairs], bool)
        counts = count(matches, self._matcher.entries)
        counted = np.flatnonzero(counts)
        write_npz(
            self._job.file(MATCHES, number),
            pairs=np.where(is_read, numbers, np.uint64(0)),
            ends=matches.ends,
            entries=matches.entries,
            counted=counted,
            counts=counts[counted],
            unreadable=np.int64((~is_read).sum()),
        )
        return len(span)

    def draw(self, number: int) -> int:
        """Stores the critical factors of a range; returns the number of examples."""
        matched = read_matched(self._job, number)
        factors = critical_factors(matched.pairs, matched.matches, self._excess, self._names)
        write_npz(self._job.file(DRAWS, number), factors=factors)
        return len(factors)

    @functools.cached_property
    def _metadata(self) -> Metadata:
        return read_metadata(self._job.metadata)

    @functools.cached_property
    def _matcher(self) -> MetadataMatcher:
        return MetadataMatcher(self._metadata)

    @functools.cached_property
    def _names(self) -> UInt64[np.ndarray, " e"]:
        return hashes(self._job.config.seed, self._metadata.entries)

    @functools.cached_property
    def _excess(self) -> Float64[np.ndarray, " e"]:
        return read_npz(self._job.thresholds_file)["excess"]

    def _read(self, span: range) -> Iterator[list[TextPair | None]]:
        """Yields the candidates of a range in chunks; None where captions cannot be read."""
        chunks = [span[start : start + _CHUNK] for start in range(0, len(span), _CHUNK)]
        return in_threads(chunks, self._candidates, self._threads, 2)

    def _candidates(self, indices: range) -> list[TextPair | None]:
        return [self._candidate(index) for index in indices]

    def _candidate(self, index: int) -> TextPair | None:
        try:
            key, captions = self._source.key(index), self._source.captions(index)
        except BadImageError:  # a damaged record
            return None
        return candidate(key, captions, self._job.config.seed)


# Works on a range and returns its number of examples.
RangeAction = Callable[[TextWorker, int], int]


class MetadataMatcher:
    """Matches captions with the list of their language.

    Args:
        metadata: the lists. A single list is used for all captions.

    Attributes:
        entries: number of entries of all languages.
    """

    def __init__(self, metadata: Metadata):
        self.entries = metadata.starts[-1]
        self._starts = dict(zip(metadata.languages, metadata.starts, strict=False))
        several = len(metadata.languages) > 1
        self._identify = LanguageIdentifier(metadata.languages) if several else None
        self._matchers = {
            language: EntryMatcher(entries)
            for language, entries in zip(metadata.languages, metadata.lists, strict=True)
        }

    def match(self, captions: Sequence[str]) -> Matches:
        """Returns the entries in each caption; none in a language without a list."""
        if self._identify is None:
            return next(iter(self._matchers.values())).match(captions)
        languages = [self._identify(caption) for caption in captions]
        rows: list[Matches] = [_NO_MATCH] * len(captions)
        for language, matcher in self._matchers.items():
            chosen = [row for row, named in enumerate(languages) if named == language]
            matches = matcher.match(captions[row] for row in chosen)
            for row, entries in zip(chosen, np.split(matches.entries, matches.ends), strict=False):
                rows[row] = Matches(np.array([len(entries)]), entries + self._starts[language])
        return joined_matches(rows)


_NO_MATCH = Matches(np.zeros(1, np.int64), np.zeros(0, np.int32))


def read_matched(job: TextJob, number: int) -> MatchedRange:
    """Reads the matches of a range.

    Raises:
        UserError: the file is damaged or missing.
    """
    arrays = read_npz(job.file(MATCHES, number))
    matches = Matches(arrays["ends"], arrays["entries"])
    return MatchedRange(
        arrays["pairs"], matches, arrays["counted"], arrays["counts"], int(arrays["unreadable"])
    )


def read_factors(job: TextJob, number: int) -> Float64[np.ndarray, " n"]:
    """Reads the critical factors of a range.

    Raises:
        UserError: the file is damaged or missing.
    """
    return read_npz(job.file(DRAWS, number))["factors"]


def write_npz(file: Address, **arrays: Any) -> None:
    """Writes an npz file, whose parts have checksums."""
    with new_file(file) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def read_npz(file: Address) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file and compares the checksums.

    Raises:
        UserError: the file is damaged or missing.
    """
    try:
        with retried(lambda: file.open("rb")) as stream, np.load(stream) as arrays:
            return dict(arrays)
    except (
        ValueError,
        KeyError,
        EOFError,
        FileNotFoundError,
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise UserError(f"{file} is damaged or missing ({error}); {_AGAIN}.") from error
