"""Image-text retrieval: recall at k both ways, several captions an image."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from dinotxt_jax import sharding
from dinotxt_jax.config import EvaluationConfig, TaskConfig, check_image_size
from dinotxt_jax.data.pipeline import evaluation_batches
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import EvalTransform, is_random
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference import Model
from dinotxt_jax.progress import progress_bar
from dinotxt_jax.training.features import FeatureCache

RECALLS = (1, 5, 10)


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """Embedded images and captions.

    Attributes:
        images: L2-normalised descriptors [n D].
        texts: L2-normalised text features [m D].
        owners: which image each caption belongs to [m].
        captions: the m texts.
    """

    images: Float[np.ndarray, "n D"]
    texts: Float[np.ndarray, "m D"]
    owners: Int[np.ndarray, " m"]
    captions: Sequence[str]

    def metrics(self) -> dict[str, float]:
        """Recall at 1, 5 and 10 both ways, and their mean, in percent."""
        return recalls(self.images, self.texts, self.owners)


def recalls(
    images: Float[np.ndarray, "n D"],
    texts: Float[np.ndarray, "m D"],
    owners: Int[np.ndarray, " m"],
    block: int = 1024,
) -> dict[str, float]:
    """Recall at 1, 5 and 10, in percent.

    Image to text counts a hit when *any* of the image's captions is among the k most similar;
    text to image when the caption's one image is. Equal similarities count against the model, so
    that constant features score nothing. Similarities are computed in blocks of `block` rows:
    memory grows with n + m, not with n * m.

    Args:
        images: L2-normalised descriptors.
        texts: L2-normalised text features.
        owners: row of `images` that each text belongs to; every image has at least one.
        block: rows of similarities at a time.
    """
    image_ranks = _ranks(images, texts, owners, np.arange(len(images)), block)
    text_ranks = _ranks(texts, images, np.arange(len(images)), owners, block)
    result = {}
    for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        for k in RECALLS:
            result[f"{name}_r{k}"] = 100.0 * float(np.mean(ranks < k))
    result["mean_recall"] = float(np.mean(list(result.values())))
    return result


def chance_recalls(owners: Int[np.ndarray, " m"]) -> dict[str, float]:
    """What random features would score: the expected recalls, in percent."""
    m, n = len(owners), int(owners.max()) + 1
    result = {}
    for k in RECALLS:
        misses = []
        for count in np.bincount(owners, minlength=n):
            drawn = np.arange(min(k, m))
            misses.append(np.prod(np.maximum(m - count - drawn, 0) / (m - drawn)))
        result[f"image_to_text_r{k}"] = 100.0 * (1 - float(np.mean(misses)))
    for k in RECALLS:
        result[f"text_to_image_r{k}"] = 100.0 * min(k / n, 1.0)
    result["mean_recall"] = float(np.mean(list(result.values())))
    return result


def _ranks(
    queries: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    query_labels: np.ndarray,
    block: int,
) -> Int[np.ndarray, " q"]:
    """For each query, how many gallery entries of other labels are as similar as its best own."""
    ranks = []
    placed, labels = jnp.asarray(gallery), jnp.asarray(gallery_labels)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        own = jnp.asarray(query_labels[rows])[:, None] == labels
        ranks.append(np.asarray(_block_ranks(jnp.asarray(queries[rows]), placed, own)))
    return np.concatenate(ranks)


@jax.jit
def _block_ranks(
    queries: Float[Array, "q D"], gallery: Float[Array, "g D"], own: Bool[Array, "q g"]
) -> Int[Array, " q"]:
    similarity = jnp.matmul(queries, gallery.T, precision="highest")
    best = jnp.max(jnp.where(own, similarity, -jnp.inf), axis=1, keepdims=True)
    return jnp.sum((similarity >= best) & ~own, axis=1)


def check_tasks(config: EvaluationConfig, patch_size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` for what can be known to be wrong before anything is encoded."""
    sharding.check_batch(config.batch_size, mesh, f"{where}.batch_size")
    for name, task in config.tasks.items():
        if task.kind != "retrieval":
            raise UserError(
                f"the task {name} has kind={task.kind!r}, which is unknown; choose retrieval."
            )
        if is_random(task.data):
            raise UserError(
                f"the task {name} would be evaluated on random crops; set its data.augmentation "
                "to center_crop or squash."
            )
        check_image_size(task.data, patch_size, f"the task {name}")


def embed_set(
    model: Model,
    task: TaskConfig,
    *,
    batch_size: int,
    title: str,
    cache: FeatureCache | None = None,
) -> RetrievalSet:
    """Embeds the images and all captions of a task.

    Args:
        model: the model.
        task: the examples.
        batch_size: images, and captions, encoded at once.
        title: of the progress bar.
        cache: backbone tokens of the same examples, if there are any.

    Raises:
        UserError: data that cannot be used.
    """
    source = open_source(task.data)
    count = min(task.max_examples or len(source), len(source))
    captions: list[str] = []
    owners: list[int] = []
    images: list[np.ndarray] = []
    for index in range(count):
        own = source.captions(index)
        captions.extend(own)
        owners.extend([index] * len(own))
    with progress_bar(count, 0, "image", title) as bar:
        if cache is None:
            batches = evaluation_batches(
                source, EvalTransform(task.data), batch_size, task.data.threads, count
            )
            embedded = model.embed_images((pixels for pixels, _, _ in batches), batch_size)
        else:
            embedded = model.embed_backbone_tokens(_cached(cache, count, batch_size), batch_size)
        for features in embedded:
            images.append(features)
            bar.update(len(features))
    texts = model.embed_texts(captions, batch_size)
    return RetrievalSet(np.concatenate(images), texts, np.asarray(owners), captions)


def _cached(cache: FeatureCache, count: int, batch_size: int) -> Iterator[np.ndarray]:
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        yield np.stack([cache.tokens(0, index) for index in rows])
