"""Combines lists of kept examples: those in all lists or in any, to an exact number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.draws import hashes, uniform
from dinotxt_jax.curation.embeddings import check_pool
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import read_kept, write_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address

_CHUNK = 1 << 20


def combine(config: CurationConfig, files: Sequence[str], output: Address) -> str:
    """Writes the intersection or union of lists; returns a sentence about the result.

    An example that several lists repeat is kept as often as the list says that repeats it least
    (intersection) or most (union).

    Args:
        config: the pool, `combine`, `target` and `seed`.
        files: the lists; one alone is only thinned to `target`.
        output: the list to write.

    Raises:
        UserError: a list cannot be read or belongs to another pool, or fewer examples than
            `target` are left.
    """
    if len(files) < (1 if config.target else 2):
        raise UserError(
            f"{len(files)} lists are given, expected at least two to combine, or one with "
            "config.target to thin it; name them after combine."
        )
    source = open_source(config.data)
    identity = data_identity(source, config.data.threads)
    combined: Int64[np.ndarray, " n"] | None = None
    for file in files:
        kept = read_kept(to_address(file), "the lists to combine")
        check_pool(kept.description["pool"], identity, to_address(file))
        counts = kept.rows.counts(len(source))
        if combined is None:
            combined = counts
        else:
            join = np.minimum if config.combine == "intersection" else np.maximum
            combined = join(combined, counts)
    assert combined is not None
    available = int(combined.sum())
    if config.target:
        combined = thinned(combined, config.target, config.seed)
    origin = {"combine": config.combine, "lists": list(files), "target": config.target}
    write_kept(output, combined, identity, origin)
    return f"{int(combined.sum())} of {len(source)} examples are kept ({available} before target)."


def thinned(counts: Int64[np.ndarray, " n"], target: int, seed: int) -> Int64[np.ndarray, " n"]:
    """Returns counts that add up to `target`; the uses that are left out are drawn at random.

    Raises:
        UserError: the counts add up to less.
    """
    total = int(counts.sum())
    if target > total:
        raise UserError(
            f"config.target is {target}, expected at most the {total} examples that are left; "
            "lower it, or keep more examples in the lists."
        )
    indices = np.repeat(np.arange(len(counts)), counts)
    use = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    draws = np.concatenate(
        [
            uniform(
                hashes(seed, [f"{index}" for index in indices[start : start + _CHUNK]]),
                use[start : start + _CHUNK].astype(np.uint64),
            )
            for start in range(0, total, _CHUNK)
        ]
        or [np.zeros(0)]
    )
    chosen = np.argsort(draws, kind="stable")[:target]
    return np.bincount(indices[chosen], minlength=len(counts))
