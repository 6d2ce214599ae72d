"""Rates of a curation on one CPU core, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np

from dinotxt_jax.config import DataConfig
from dinotxt_jax.curation.balancing import count, critical_factors
from dinotxt_jax.curation.draws import hashes
from dinotxt_jax.curation.metadata import Metadata, read_metadata
from dinotxt_jax.curation.text_job import MetadataMatcher
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import Source, readable_captions
from dinotxt_jax.data.train_views import decoded_image
from dinotxt_jax.data.transforms import EvalTransform
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.progress import progress_bar

_CAPTIONS, _IMAGES = 20_000, 256
_ENTRIES = 500_000
_LETTERS = list("etaoinshrdlucmfwypvbgkjqxz")

ResultT = TypeVar("ResultT")


class CoreRates(NamedTuple):
    """What one core does per second, and what an example takes.

    Attributes:
        entries: number of entries.
        matching: captions per second, matched and hashed.
        drawing: captions per second.
        matches: matched entries per caption.
        decoding: images per second, decoded and prepared for the backbone.
        image_bytes: bytes of an encoded image; 0 if the pool holds pixels.
    """

    entries: int
    matching: float
    drawing: float
    matches: float
    decoding: float
    image_bytes: float


def measured_rates(source: Source, data: DataConfig, metadata: str) -> CoreRates:
    """Measures the rates on evenly spaced examples of a pool.

    Args:
        source: the pool.
        data: its settings.
        metadata: path of the metadata; empty for drawn entries and captions, whose words follow
            Zipf's law.

    Raises:
        UserError: the metadata, or all captions or images, cannot be read.
    """
    with progress_bar(3, 0, "stage", "measuring one core") as bar:
        if metadata:
            entries = read_metadata(metadata)
            texts = [
                text for row in _spaced(source, 2000) for text in readable_captions(source, row)
            ]
            if not texts:
                raise UserError("no caption of config.data can be read, expected some; correct it.")
            texts = [texts[number % len(texts)] for number in range(_CAPTIONS)]
        else:
            words = drawn_entries(_ENTRIES)
            entries, texts = Metadata(("en",), (tuple(words),)), drawn_captions(words, _CAPTIONS)
        matcher = MetadataMatcher(entries)
        matching, (matches, names) = _timed(lambda: (matcher.match(texts), hashes(0, texts)))
        bar.update()
        counts = count(matches, matcher.entries)
        excess, entry_names = counts / max(counts.mean(), 1.0), hashes(0, entries.entries)
        drawing, _ = _timed(lambda: critical_factors(names, matches, excess, entry_names))
        bar.update()
        decoding, size = _image_rate(source, data)
        bar.update()
    return CoreRates(
        entries=matcher.entries,
        matching=len(texts) / matching,
        drawing=len(texts) / drawing,
        matches=len(matches.entries) / len(texts),
        decoding=decoding,
        image_bytes=size,
    )


def _timed(function: Callable[[], ResultT]) -> tuple[float, ResultT]:
    """Returns the shorter processor time of two calls, and the result."""
    seconds = []
    for _ in range(2):
        start = time.process_time()
        result = function()
        seconds.append(time.process_time() - start)
    return max(min(seconds), 1e-9), result


def _spaced(source: Source, most: int) -> Iterator[int]:
    number = min(most, len(source))
    return (index * len(source) // number for index in range(number))


def _image_rate(source: Source, data: DataConfig) -> tuple[float, float]:
    """Returns images per second, and bytes per encoded image."""
    examples = []
    for index in _spaced(source, _IMAGES):
        try:
            examples.append(source[index])
        except BadImageError:
            continue
    transform, good, sizes = EvalTransform(data), 0, []
    start = time.process_time()
    for example in examples:
        try:
            transform(decoded_image(example, data))
        except BadImageError:
            continue
        good += 1
        sizes.append(len(example.image) if isinstance(example.image, bytes) else 0)
    if not good:
        raise UserError("no image of config.data can be read, expected some; correct it.")
    return good / max(time.process_time() - start, 1e-9), float(np.mean(sizes))


def drawn_entries(number: int) -> list[str]:
    """Returns words, most frequent first, then pairs of words."""
    rng = np.random.default_rng(0)
    weights = 1 / np.arange(1, len(_LETTERS) + 1) ** 0.6
    words: dict[str, None] = {}
    while len(words) < number * 3 // 5:
        lengths = rng.integers(3, 10, 10_000)
        letters = rng.choice(_LETTERS, lengths.sum(), p=weights / weights.sum())
        words |= dict.fromkeys("".join(part) for part in np.split(letters, np.cumsum(lengths)[:-1]))
    singles = list(words)[: number * 3 // 5]
    pairs: dict[str, None] = {}
    while len(pairs) < number - len(singles):
        both = rng.integers(0, len(singles), (10_000, 2))
        pairs |= dict.fromkeys(f"{singles[a]} {singles[b]}" for a, b in both)
    return singles + list(pairs)[: number - len(singles)]


def drawn_captions(entries: list[str], number: int, least: int = 4, most: int = 20) -> list[str]:
    """Returns captions of `least` to `most` words, with frequencies by Zipf's law."""
    rng = np.random.default_rng(1)
    words = len(entries) * 3 // 5
    chances = 1 / np.arange(1, words + 1)
    lengths = rng.integers(least, most + 1, number)
    drawn = rng.choice(words, lengths.sum(), p=chances / chances.sum())
    parts = np.split(drawn, np.cumsum(lengths)[:-1])
    return [", ".join([entries[part[0]], " ".join(entries[w] for w in part[1:])]) for part in parts]
