"""The table of curation steps, by the name that users write after `curate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.combining import combine
from dinotxt_jax.storage.addresses import Address


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        run: takes settings, the arguments after the step's name, and the output; returns a
            sentence about the result.
        summary: one line for `--help`.
    """

    run: Callable[[CurationConfig, Sequence[str], Address], str]
    summary: str


CURATION_STEPS: dict[str, Step] = {
    "combine": Step(combine, "combine LIST LIST ...: keep the examples in all lists, or in any"),
}
"""All steps; to add one, write a module with its function and add a row."""
