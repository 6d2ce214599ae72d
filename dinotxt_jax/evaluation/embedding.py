"""Image descriptors of a whole set, from its images or from cached backbone tokens."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float

from dinotxt_jax.config import TaskConfig
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.pipeline import evaluation_batches
from dinotxt_jax.data.transforms import EvalTransform
from dinotxt_jax.inference import Model
from dinotxt_jax.progress import progress_bar
from dinotxt_jax.training.features import FeatureCache


def embed_images(
    model: Model,
    source: Source,
    task: TaskConfig,
    count: int,
    batch_size: int,
    *,
    title: str,
    cache: FeatureCache | None = None,
) -> Float[np.ndarray, "n D"]:
    """L2-normalised descriptors of the first `count` images of a source.

    Args:
        model: the model.
        source: the images.
        task: how they are prepared.
        count: how many.
        batch_size: encoded at once.
        title: of the progress bar.
        cache: backbone tokens of the same images, if there are any.

    Raises:
        UserError: an image that cannot be read.
    """
    found = []
    with progress_bar(count, 0, "image", title) as bar:
        if cache is None:
            transform = EvalTransform(task.data)
            batches = evaluation_batches(source, transform, batch_size, task.data.threads, count)
            embedded = model.embed_images((pixels for pixels, _, _ in batches), batch_size)
        else:
            embedded = model.embed_backbone_tokens(_cached(cache, count, batch_size), batch_size)
        for features in embedded:
            found.append(features)
            bar.update(len(features))
    return np.concatenate(found)


def _cached(cache: FeatureCache, count: int, batch_size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        yield np.stack([cache.tokens(0, index) for index in rows])
