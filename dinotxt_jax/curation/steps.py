"""The table of curation steps, by the name that users write after `curate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.combining import combine
from dinotxt_jax.curation.deduplication import deduplicate
from dinotxt_jax.curation.hierarchy import cluster
from dinotxt_jax.curation.metadata_step import write_entries
from dinotxt_jax.curation.report import write_report
from dinotxt_jax.curation.runners import OnBeam, in_processes
from dinotxt_jax.curation.sampling import sample_clusters
from dinotxt_jax.curation.text_step import balance_text
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address

if TYPE_CHECKING:
    from dinotxt_jax.runtime.beam_pipelines import BeamPipelines


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes:
        run: takes settings, the arguments after the step's name, the output, and the Beam runner
            if the user names one; returns a sentence about the result.
        summary: one line for `--help`.
        is_shared: whether several processes that were started together share the work; else the
            first one does it.
    """

    run: Callable[[CurationConfig, Sequence[str], Address, BeamPipelines | None], str]
    summary: str
    is_shared: bool = False


LocalStep = Callable[[CurationConfig, Sequence[str], Address], str]


def local_step(name: str, run: LocalStep, summary: str, is_shared: bool = False) -> Step:
    """Returns a step that runs on this machine only."""

    def checked(
        config: CurationConfig,
        arguments: Sequence[str],
        output: Address,
        pipelines: BeamPipelines | None,
    ) -> str:
        if pipelines is not None:
            raise UserError(f"--runner is given, but {name} runs on this machine; remove --runner.")
        return run(config, arguments, output)

    return Step(checked, summary, is_shared)


def _text(
    config: CurationConfig,
    arguments: Sequence[str],
    output: Address,
    pipelines: BeamPipelines | None,
) -> str:
    return balance_text(config, arguments, output, OnBeam(pipelines) if pipelines else in_processes)


CURATION_STEPS: dict[str, Step] = {
    "metadata": local_step("metadata", write_entries, "metadata: write entries to balance over"),
    "text": Step(_text, "text METADATA: balance a pool over entries by its captions", True),
    "cluster": local_step(
        "cluster",
        cluster,
        "cluster EMBEDDINGS: hierarchical k-means on image embeddings",
        is_shared=True,
    ),
    "deduplicate": local_step(
        "deduplicate",
        deduplicate,
        "deduplicate EMBEDDINGS CLUSTERS: leave out near-duplicate images",
    ),
    "sample": local_step(
        "sample",
        sample_clusters,
        "sample CLUSTERS [LIST ...]: draw target examples, balanced over clusters",
    ),
    "combine": local_step(
        "combine", combine, "combine LIST LIST ...: keep the examples in all lists, or in any"
    ),
    "report": local_step(
        "report", write_report, "report RESULT ...: a page about results, in HTML"
    ),
}
"""All steps; to add one, write a module with its function and add a row."""
