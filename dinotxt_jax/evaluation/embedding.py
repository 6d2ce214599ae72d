"""Computes image descriptors for a whole data set, from images or cached backbone tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from dinotxt_jax.data.feature_cache import FeatureCache
from dinotxt_jax.data.pipeline import evaluation_batches
from dinotxt_jax.data.transforms import EvalTransform
from dinotxt_jax.evaluation.jobs import Job
from dinotxt_jax.runtime.progress import progress_bar


def embed_source(job: Job) -> Float[np.ndarray, "n D"]:
    """Returns L2-normalised descriptors of the images in a job.

    Raises:
        UserError: an image cannot be read.
    """
    task, source, size, count = job.task, job.source, job.batch_size, len(job.source)
    before = job.partial.load().get("features")
    blocks = [] if before is None else [before]
    done = sum(map(len, blocks))
    with progress_bar(count, done, "image", job.name) as bar:
        if job.cache is None:
            transform = EvalTransform(task.data)
            rows = range(done, count)
            batches = evaluation_batches(
                source, transform, size, task.data.threads, rows, task.data.max_pixels
            )
            embedded = job.model.embed_batches((pixels for pixels, _, _ in batches), size)
        else:
            tokens = _cached(job.cache, done, count, size)
            embedded = job.model.embed_backbone_tokens(tokens, size)
        for features in embedded:
            blocks.append(features)
            bar.update(len(features))
            job.end_batch(lambda: {"features": np.concatenate(blocks)})
    return np.concatenate(blocks)


def _cached(
    cache: FeatureCache, first: int, count: int, size: int
) -> Iterator[Float[np.ndarray, "b t d"]]:
    for start in range(first, count, size):
        rows = range(start, min(start + size, count))
        yield np.stack([cache.tokens(0, index) for index in rows])
