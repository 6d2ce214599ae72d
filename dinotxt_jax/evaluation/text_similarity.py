"""Text features alone: captions that find the other captions of their image, and rated text pairs.

The weakness that the dino.txt paper states for its text transformer (arXiv 2412.16334, section 5)
is one of texts, so that it is measured without images.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dinotxt_jax.config import TaskConfig
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.config.evaluation import KIND_SETTINGS, TextTaskConfig
from dinotxt_jax.data.examples import Source, limited
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job, TaskResult, digest
from dinotxt_jax.evaluation.retrieval import RECALLS, captions_of_example, ranks_of_right
from dinotxt_jax.inference.encoder import Encoder
from dinotxt_jax.storage.addresses import to_address
from dinotxt_jax.storage.retries import retried

_FEWEST_PAIRS = 3


class RatedPairs(NamedTuple):
    """Pairs of texts with the similarity that people gave them."""

    first: Sequence[str]
    second: Sequence[str]
    scores: Float[np.ndarray, " n"]


def read_pairs(settings: TextTaskConfig, section: str) -> RatedPairs:
    """Reads rated pairs from a CSV, TSV or JSON Lines file.

    Args:
        settings: file and columns.
        section: the key of the settings, for messages.

    Raises:
        UserError: the file cannot be read, lacks a column, has a score that is no number, fewer
            than 3 pairs, or the same score in all of them.
    """
    rows = list(_rows(settings.pairs, f"{section}.pairs"))
    columns = {name: getattr(settings, name) for name in ("first", "second", "score")}
    for key, column in columns.items():
        for number, row in enumerate(rows, 1):
            if row.get(column) is None:
                raise UserError(
                    f"{settings.pairs} has no {column!r} in row {number}, expected the columns "
                    f"{', '.join(columns.values())}; correct {section}.{key}."
                )
    scores = np.array([_score(row[settings.score], n, settings) for n, row in enumerate(rows, 1)])
    if len(rows) < _FEWEST_PAIRS or (scores == scores[0]).all():
        is_short = len(rows) < _FEWEST_PAIRS
        problem = f"{len(rows)} pairs" if is_short else "equal scores in all pairs"
        raise UserError(
            f"{settings.pairs} has {problem}, expected at least {_FEWEST_PAIRS} pairs with "
            f"different scores; correct {section}.pairs."
        )
    first, second = ([str(row[column]) for row in rows] for column in list(columns.values())[:2])
    return RatedPairs(first, second, scores)


def _rows(path: str, key: str) -> Iterator[dict[str, Any]]:
    address = to_address(path)
    if address.suffix not in (".csv", ".tsv", ".jsonl"):
        raise UserError(f"{key} is {path}, expected a file that ends in .csv, .tsv or .jsonl.")
    if not retried(address.is_file):
        raise UserError(f"{key} is {path}, which does not exist; correct the path.")
    try:
        text = retried(address.read_bytes).decode("utf-8-sig")
        if address.suffix == ".jsonl":
            for line in filter(str.strip, text.splitlines()):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a line holds {row!r:.40}")
                yield row
        else:
            delimiter = "\t" if address.suffix == ".tsv" else ","
            yield from csv.DictReader(io.StringIO(text), delimiter=delimiter, strict=True)
    except (ValueError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}), expected one pair per line; correct the file."
        ) from error


def _score(value: Any, row: int, settings: TextTaskConfig) -> float:
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise UserError(
            f"{settings.pairs} has {settings.score}={value!r} in row {row}, expected a number; "
            "correct or remove the row."
        )
    return score


def caption_recalls(
    texts: Float[np.ndarray, "m D"], owners: Int[np.ndarray, " m"]
) -> dict[str, float]:
    """Returns recall at 1, 5 and 10 among all other captions, in percent.

    A caption is a hit if another caption of its image is among the k most similar captions. Ties
    count as misses. Captions that are the only ones of their image are searched, but find nothing
    and do not count.

    Args:
        texts: L2-normalised features.
        owners: image of each caption.
    """
    counted = np.bincount(owners)[owners] > 1
    ranks = ranks_of_right(texts, texts, owners, owners, same_items=True)[counted]
    return {f"caption_r{k}": 100.0 * float(np.mean(ranks < k)) for k in RECALLS}


def chance_caption_recalls(owners: Int[np.ndarray, " m"]) -> dict[str, float]:
    """Returns the expected recalls of random features, in percent."""
    others = np.bincount(owners)[owners] - 1
    others, rest = others[others > 0], len(owners) - 1
    result = {}
    for k in RECALLS:
        draws = np.arange(min(k, rest))[:, None]
        misses = np.prod(np.maximum(rest - others - draws, 0) / (rest - draws), axis=0)
        result[f"caption_r{k}"] = 100.0 * (1 - float(misses.mean()))
    return result


def correlations(
    cosines: Float[np.ndarray, " n"], scores: Float[np.ndarray, " n"]
) -> dict[str, float]:
    """Returns Spearman's and Pearson's correlation times 100; equal numbers share a mean rank."""
    pairs = {"spearman": (_ranked(cosines), _ranked(scores)), "pearson": (cosines, scores)}
    # Constant cosines have no correlation with anything.
    return {
        name: 100.0 * float(np.nan_to_num(np.corrcoef(a, b)[0, 1])) if np.ptp(a) else 0.0
        for name, (a, b) in pairs.items()
    }


def _ranked(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Returns ranks from 1; equal values get the mean of their ranks."""
    _, index, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index]


class TextKind:
    """Similarity of texts to texts, as a `TaskKind`."""

    metrics = KIND_SETTINGS["text"].metrics
    encodes_whole_images = False

    def check(self, section: str, task: TaskConfig, vision: VisionConfig) -> None:
        """Reads the pairs, if the task has some."""
        if task.text.pairs:
            read_pairs(task.text, f"{section}.text")

    def texts(self, section: str, task: TaskConfig) -> list[tuple[str, ...]]:
        return []

    def image_side(self, task: TaskConfig) -> int:
        """Returns 0, because no image is encoded."""
        return 0

    def open_set(self, section: str, task: TaskConfig) -> Source | RatedPairs:
        if task.text.pairs:
            return read_pairs(task.text, f"{section}.text")
        source = limited(open_source(task.data, f"{section}.data"), task.max_examples)
        if all(len(captions_of_example(source, index)) < 2 for index in range(len(source))):
            raise UserError(
                f"no image of {section}.data has two captions, expected several for some images; "
                f"take other data, or set {section}.text.pairs to a file with rated pairs."
            )
        return source

    def check_images(self, section: str, task: TaskConfig, source: Source | RatedPairs) -> None:
        """Does nothing: no image is read."""

    def contents(self, source: Source | RatedPairs) -> list[Any]:
        """Returns the captions of every image, or the pairs with their scores."""
        if isinstance(source, RatedPairs):
            return [list(source.first), list(source.second), source.scores.tolist()]
        return [captions_of_example(source, index) for index in range(len(source))]

    def run(self, job: Job) -> TaskResult:
        """Embeds all texts of a task and compares them with each other."""
        source, part = job.source, job.task.text.part
        contents = self.contents(source)
        protocol = {"part": part, "dataset_fingerprint": digest(contents)}
        if isinstance(source, RatedPairs):
            texts = [*source.first, *source.second]
            features = embedded_part(job.model, texts, job.batch_size, part)
            first, second = np.split(features, 2)
            return TaskResult(
                kind="text",
                metrics=correlations((first * second).sum(1), source.scores),
                chance={"spearman": 0.0, "pearson": 0.0},
                protocol={"pairs": len(source.scores), **protocol},
            )
        captions = [caption for captions in contents for caption in captions]
        owners = np.repeat(np.arange(len(contents)), list(map(len, contents)))
        return TaskResult(
            kind="text",
            metrics=caption_recalls(
                embedded_part(job.model, captions, job.batch_size, part), owners
            ),
            chance=chance_caption_recalls(owners),
            protocol={
                "images": len(contents),
                "captions": len(captions),
                "ties": "count as misses",
                **protocol,
            },
        )


def embedded_part(
    model: Encoder, texts: Sequence[str], batch_size: int, part: str
) -> Float[np.ndarray, "n e"]:
    """Returns L2-normalised text features, or the normalised half of them that `part` names."""
    features = model.embed_texts(texts, batch_size)
    dim = model.description.dinotxt.token_dim
    if part != "whole" and features.shape[1] == dim:
        raise UserError(
            f"text.part is {part}, but the text features of this model have no halves; set it to "
            "whole."
        )
    chosen = {"whole": slice(None), "class": slice(0, dim), "patch": slice(dim, None)}[part]
    halves = features[:, chosen]
    return halves / np.maximum(np.linalg.norm(halves, axis=1, keepdims=True), 1e-12)
