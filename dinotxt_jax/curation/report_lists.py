"""The report about lists of kept examples: shares, examples, and how two lists differ."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import numpy as np

from dinotxt_jax.curation.report_pool import ReportPool, spaced
from dinotxt_jax.data.kept import KeptList
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.retries import retried
from dinotxt_jax.visualize.web_page import Table, text_element

# Examples of each kind that are shown.
_SHOWN = 16


def is_list(path: Address) -> bool:
    """Returns whether a path is a list."""
    return path.suffix == ".npz" and retried(path.is_file)


def list_section(pool: ReportPool, path: Address) -> list[str]:
    """Returns the elements about a list."""
    kept = pool.lists[str(path)]
    origin = json.dumps(kept.description["origin"], ensure_ascii=False)
    return [
        text_element("h2", str(path)),
        text_element("p", kept_share(kept)),
        text_element("p", f"Origin: {origin}"),
        *shown_examples(pool, kept),
    ]


def kept_share(kept: KeptList) -> str:
    """Returns a sentence about the share of kept examples."""
    number = len(kept.rows)
    return f"{number:,} of {kept.examples:,} examples are kept ({_share(number, kept.examples)})."


def shown_examples(pool: ReportPool, kept: KeptList) -> list[str]:
    """Returns evenly spaced kept and dropped examples."""
    counts = kept.rows.counts(kept.examples)
    return [
        *_examples(pool, "Kept", counts > 0),
        *_examples(pool, "Dropped", counts == 0),
    ]


def comparison(pool: ReportPool) -> Iterator[str]:
    """Yields the elements about each pair of lists: what both keep, one keeps, and none keeps."""
    for (first, a), (second, b) in itertools.combinations(pool.lists.items(), 2):
        in_a, in_b = (kept.rows.counts(kept.examples) > 0 for kept in (a, b))
        yield text_element("h2", f"{first} and {second}")
        kinds = {
            "In both": in_a & in_b,
            f"Only in {first}": in_a & ~in_b,
            f"Only in {second}": in_b & ~in_a,
            "In neither": ~in_a & ~in_b,
        }
        rows = [
            [kind, f"{mask.sum():,}", _share(int(mask.sum()), len(mask))]
            for kind, mask in kinds.items()
        ]
        yield Table([["", "examples", "share of the pool"], *rows]).html()
        for kind, mask in kinds.items():
            yield from _examples(pool, kind, mask)


def _examples(pool: ReportPool, title: str, mask: np.ndarray) -> list[str]:
    indices = np.flatnonzero(mask)
    heading = text_element("h3", f"{title}: {len(indices):,} examples")
    return [heading, pool.gallery(spaced(indices, _SHOWN))] if len(indices) else [heading]


def _share(number: int, total: int) -> str:
    return f"{number / max(total, 1):.1%}"
