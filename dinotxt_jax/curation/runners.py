"""Where the work on the ranges of a pool runs: on this machine, or as Apache Beam pipelines."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from dinotxt_jax.curation.text_job import RangeAction, TextJob, TextWorker
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.worker_pool import worker_pool

if TYPE_CHECKING:
    from dinotxt_jax.runtime.beam_pipelines import BeamPipelines

# Runs an action for ranges; yields the number of examples of ranges as they are finished.
RangeRunner = Callable[[RangeAction, list[int]], Iterator[int]]
# Opens the workers of a job: (job, pool).
TextRunner = Callable[[TextJob, Source], AbstractContextManager[RangeRunner]]


def in_processes(job: TextJob, source: Source) -> AbstractContextManager[RangeRunner]:
    """Runs the work in `config.workers` processes; one worker is this process itself."""
    config = job.config
    workers = min(config.workers or os.cpu_count() or 1, len(job.ranges))
    threads = -(-config.data.threads // workers)
    start = functools.partial(TextWorker, job, source, threads)
    return worker_pool(workers, start, "lower config.workers or config.balance.range_size")


class OnBeam:
    """Runs each stage as one Beam pipeline; workers write to the output folder themselves.

    Workers need the project, the extras `beam` and `curation`, and access to the pool, the metadata
    and the output folder.

    Args:
        pipelines: the runner.
    """

    def __init__(self, pipelines: BeamPipelines):
        self._pipelines = pipelines

    @contextlib.contextmanager
    def __call__(self, job: TextJob, source: Source) -> Iterator[RangeRunner]:
        """Yields a function that runs a stage; workers open the pool themselves."""

        def run(action: RangeAction, ranges: list[int]) -> Iterator[int]:
            self._pipelines.run(functools.partial(_opened_worker, job), action, ranges)
            yield sum(len(job.span(number)) for number in ranges)

        yield run


def _opened_worker(job: TextJob) -> TextWorker:
    """Opens the pool on a worker."""
    data = job.config.data
    source = open_source(data)
    if len(source) != job.examples:
        raise UserError(
            f"the pool has {len(source)} examples on a worker, expected {job.examples}; let all "
            "workers see the same files."
        )
    return TextWorker(job, source, data.threads)
