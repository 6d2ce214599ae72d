"""The report about balancing by text: counts before and after, by entry."""

from __future__ import annotations

import csv
import io
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from dinotxt_jax.curation.report_curves import balance_curves, top_share
from dinotxt_jax.curation.report_lists import kept_share, shown_examples
from dinotxt_jax.curation.report_pool import ReportPool
from dinotxt_jax.curation.text_step import COLUMNS, ENTRIES, KEPT, SUMMARY
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import read_json
from dinotxt_jax.storage.retries import retried
from dinotxt_jax.visualize.web_page import Table, picture_element, text_element

_SHOWN = 25
_CURE = "run python -m dinotxt_jax.curate text again with the same --output"


class EntryCounts(NamedTuple):
    """The table of entries.

    Attributes:
        entries: the entries, each with its language if there are several.
        before: captions of each entry in the pool.
        after: captions of each entry among the kept examples.
    """

    entries: list[str]
    before: Int64[np.ndarray, " e"]
    after: Int64[np.ndarray, " e"]


def is_text_result(path: Address) -> bool:
    """Returns whether a path is a folder that the step `text` has written."""
    return retried((path / SUMMARY).is_file)


def text_list(path: Address) -> Address:
    """Returns the list in a folder that the step `text` has written."""
    return path / KEPT


def text_section(pool: ReportPool, path: Address) -> list[str]:
    """Returns the elements about a folder that the step `text` has written.

    Raises:
        UserError: a file is damaged, or matplotlib is not installed.
    """
    summary = read_json(path / SUMMARY, "the summary of a balancing", _CURE)
    kept = pool.lists[str(text_list(path))]
    counts = read_entry_counts(path / ENTRIES)
    numbers = {"before": counts.before, "after": counts.after}
    curves = balance_curves(numbers, "entries", "captions")
    return [
        text_element("h2", f"Balancing by text: {path}"),
        text_element("p", kept_share(kept)),
        _numbers(summary, counts),
        text_element("h3", "Captions by entry"),
        text_element(
            "p",
            "Left: entries from the most to the least frequent. Right: share of all matches that "
            "the most frequent entries have together; the nearer to the diagonal, the more "
            "balanced.",
        ),
        picture_element(curves, "captions by entry before and after balancing"),
        text_element("h3", "Least balanced before: most captions dropped"),
        _table(counts, np.argsort(counts.after - counts.before, kind="stable")[:_SHOWN]),
        text_element("h3", "Most frequent of the entries that keep every caption"),
        _table(counts, _unchanged(counts)[:_SHOWN]),
        *shown_examples(pool, kept),
    ]


def read_entry_counts(file: Address) -> EntryCounts:
    """Reads the table of entries.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        text = retried(file.read_bytes).decode("utf-8")
        reader = csv.reader(
            io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE, strict=True
        )
        heading, *rows = [row for row in reader if row]
        if tuple(heading) != COLUMNS:
            raise ValueError(f"its columns are {', '.join(heading)}")
        several = len({row[1] for row in rows}) > 1
        entries = [f"{row[0]} ({row[1]})" if several else row[0] for row in rows]
        before, after = (np.array([int(row[column]) for row in rows]) for column in (2, 3))
    except (ValueError, IndexError, FileNotFoundError, csv.Error) as error:
        raise UserError(f"{file} is damaged or missing ({error}); {_CURE}.") from error
    return EntryCounts(entries, before, after)


def _numbers(summary: dict[str, Any], counts: EntryCounts) -> str:
    """Returns the table of figures about pool and balance."""
    thresholds = ", ".join(f"{t:,} ({name})" for name, t in summary["thresholds"].items())
    rows = [
        ["examples that match an entry", f"{summary['matched']:,}"],
        ["examples whose captions cannot be read", f"{summary['unreadable']:,}"],
        ["target", f"{summary['target']:,}" if summary["target"] else "none"],
        ["threshold t (before a target changes it)", thresholds],
        ["entries", f"{len(counts.entries):,}"],
        ["entries without a caption in the pool", f"{int((counts.before == 0).sum()):,}"],
        ["share of the most frequent 1 % of entries, before", f"{top_share(counts.before):.1%}"],
        ["share of the most frequent 1 % of entries, after", f"{top_share(counts.after):.1%}"],
    ]
    return Table([["", ""], *rows]).html()


def _unchanged(counts: EntryCounts) -> Int64[np.ndarray, " k"]:
    """Returns the entries that keep every caption, most frequent first."""
    unchanged = np.flatnonzero((counts.after == counts.before) & (counts.before > 0))
    return unchanged[np.argsort(-counts.before[unchanged], kind="stable")]


def _table(counts: EntryCounts, chosen: Int64[np.ndarray, " k"]) -> str:
    rows = [
        [
            counts.entries[entry],
            f"{counts.before[entry]:,}",
            f"{counts.after[entry]:,}",
            f"{counts.after[entry] / max(counts.before[entry], 1):.1%}",
        ]
        for entry in chosen.tolist()
    ]
    return Table([["entry", "before", "after", "kept"], *rows]).html()
