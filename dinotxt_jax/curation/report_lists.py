"""The report about a list of kept examples: share, origin, and captions of some examples."""

from __future__ import annotations

import json

import numpy as np
from jaxtyping import Int64

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.data.examples import Source, readable_captions
from dinotxt_jax.data.identity import data_identity, difference
from dinotxt_jax.data.kept import KeptList, read_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.retries import retried
from dinotxt_jax.visualize.web_page import Table, text_element

# Examples that are shown, and characters of each caption.
_SHOWN, _LONGEST = 20, 200


def is_list(path: Address) -> bool:
    """Returns whether a path is a list."""
    return path.suffix == ".npz" and retried(path.is_file)


def list_section(config: CurationConfig, path: Address) -> list[str]:
    """Returns the elements about a list.

    Raises:
        UserError: the list is damaged or belongs to another pool.
    """
    kept = read_kept(path, "the paths after report")
    source = pool_of(config, path, kept)
    origin = json.dumps(kept.description["origin"], ensure_ascii=False)
    return [
        text_element("h2", str(path)),
        text_element("p", kept_share(len(kept.rows), kept.examples)),
        text_element("p", f"Origin: {origin}"),
        *shown_examples(source, kept),
    ]


def kept_share(kept: int, examples: int) -> str:
    """Returns a sentence about the share of kept examples."""
    return f"{kept:,} of {examples:,} examples are kept ({kept / max(examples, 1):.1%})."


def pool_of(config: CurationConfig, path: Address, kept: KeptList) -> Source:
    """Opens the pool of a list.

    Raises:
        UserError: `config.data` is another pool.
    """
    source = open_source(config.data)
    changes = difference(kept.description["pool"], data_identity(source, config.data.threads))
    if changes:
        raise UserError(f"{path} was made for another pool: {changes}; correct config.data.")
    return source


def shown_examples(source: Source, kept: KeptList) -> list[str]:
    """Returns tables with the captions of evenly spaced kept and dropped examples."""
    counts = kept.rows.counts(kept.examples)
    elements = []
    for title, indices in (
        ("Kept", np.flatnonzero(counts)),
        ("Dropped", np.flatnonzero(counts == 0)),
    ):
        elements.append(text_element("h3", f"{title}: {len(indices):,} examples"))
        rows = [[source.key(i), _captions(source, i)] for i in _spaced(indices)]
        if rows:
            elements.append(Table([["example", "captions"], *rows]).html())
    return elements


def _spaced(indices: Int64[np.ndarray, " n"]) -> list[int]:
    shown = min(_SHOWN, len(indices))
    return [int(indices[number * len(indices) // shown]) for number in range(shown)]


def _captions(source: Source, index: int) -> str:
    texts = readable_captions(source, index) or ("(cannot be read)",)
    return " / ".join(t if len(t) <= _LONGEST else f"{t[:_LONGEST]}..." for t in texts)
