"""Computes image descriptors for a whole data set, from images or cached backbone tokens."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from dinotxt_jax.data.evaluation_batches import evaluation_batches, held_batches
from dinotxt_jax.data.transforms import EvalTransform
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.progress import progress_bar

BatchT = TypeVar("BatchT")


def embed_source(job: Job) -> Float[np.ndarray, "n D"]:
    """Returns L2-normalised descriptors of the images in a job.

    Several processes each read the images whose descriptors their devices compute.

    Raises:
        UserError: an image cannot be read.
    """
    task, source, size, count = job.task, job.source, job.batch_size, len(job.source)
    before = job.partial.load().get("features")
    blocks = [] if before is None else [before]
    done = sum(map(len, blocks))
    rows, threads, held = range(done, count), task.data.threads, job.model.held_rows(size)
    with progress_bar(count, done, "image", job.name) as bar:
        if job.cache is None:
            transform = EvalTransform(task.data)
            pixels = evaluation_batches(source, transform, size, threads, rows, held)
            embedded = job.model.embed_batches(_agreed(pixels), size)
        else:
            load = functools.partial(job.cache.tokens, 0)
            tokens = held_batches(rows, load, job.cache.blank, size, threads, held)
            embedded = job.model.embed_backbone_tokens(_agreed(tokens), size)
        for features in embedded:
            blocks.append(features)
            bar.update(len(features))
            job.end_batch(lambda: {"features": np.concatenate(blocks)})
    return np.concatenate(blocks)


def _agreed(batches: Iterator[BatchT]) -> Iterator[BatchT]:
    """Yields batches; an error in one process is raised in all, which would wait for it."""
    while True:
        batch, failure = None, None
        try:
            batch = next(batches, None)
        except UserError as error:
            failure = error
        processes.agree(failure)
        if batch is None:  # in all processes, as they have the same number of batches
            return
        yield batch
