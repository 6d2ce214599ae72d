"""Image-text retrieval: recall at k in both directions, with several captions per image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dinotxt_jax import visualize
from dinotxt_jax.config import TaskConfig, check_image_size
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.config.evaluation import KIND_SETTINGS
from dinotxt_jax.data.bad_images import BadImageError, bad_in_evaluation
from dinotxt_jax.data.examples import Source, check_images_found, limited
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.train_views import decoded_image
from dinotxt_jax.data.transforms import EvalTransform, view_decoder
from dinotxt_jax.evaluation.embedding import embed_source
from dinotxt_jax.evaluation.jobs import Job, TaskResult, digest
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file

_SHEET_IMAGES = 10
_SHEET_CAPTIONS = 3
RECALLS = (1, 5, 10)
_WAYS = ("image_to_text", "text_to_image")


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """Embedded images and captions.

    Attributes:
        images: L2-normalised descriptors [n D].
        texts: L2-normalised text features [m D].
        owners: image index of each caption [m].
        captions: the m texts.
    """

    images: Float[np.ndarray, "n D"]
    texts: Float[np.ndarray, "m D"]
    owners: Int[np.ndarray, " m"]
    captions: Sequence[str]

    def metrics(self) -> dict[str, float]:
        """Returns recall at 1, 5 and 10 in both directions, and the mean, in percent."""
        return recalls(self.images, self.texts, self.owners)


def recalls(
    images: Float[np.ndarray, "n D"],
    texts: Float[np.ndarray, "m D"],
    owners: Int[np.ndarray, " m"],
    block: int = 1024,
) -> dict[str, float]:
    """Returns recall at 1, 5 and 10, in percent.

    Image to text counts a hit if *any* caption of the image is among the k most similar captions.
    Text to image counts a hit if the caption's only image is among the k most similar images. Ties
    count against the model, so that constant features score zero. Similarities are computed in
    blocks with `block` rows: memory grows with n + m, not with n * m.

    Args:
        images: L2-normalised descriptors.
        texts: L2-normalised text features.
        owners: row in `images` for each text; every image has at least one text.
        block: number of similarity rows computed at a time.
    """
    image_ranks = ranks_of_right(images, texts, owners, np.arange(len(images)), block)
    text_ranks = ranks_of_right(texts, images, np.arange(len(images)), owners, block)
    result = {}
    for name, ranks in zip(_WAYS, (image_ranks, text_ranks), strict=True):
        for k in RECALLS:
            result[f"{name}_r{k}"] = 100.0 * float(np.mean(ranks < k))
    result["mean_recall"] = float(np.mean(list(result.values())))
    return result


def chance_recalls(owners: Int[np.ndarray, " m"]) -> dict[str, float]:
    """Returns the expected recalls of random features, in percent."""
    m, n = len(owners), int(owners.max()) + 1
    result = {}
    for k in RECALLS:
        misses = []
        for count in np.bincount(owners, minlength=n):
            draws = np.arange(min(k, m))
            misses.append(np.prod(np.maximum(m - count - draws, 0) / (m - draws)))
        result[f"image_to_text_r{k}"] = 100.0 * (1 - float(np.mean(misses)))
    for k in RECALLS:
        result[f"text_to_image_r{k}"] = 100.0 * min(k / n, 1.0)
    result["mean_recall"] = float(np.mean(list(result.values())))
    return result


def ranks_of_right(
    queries: Float[np.ndarray, "q D"],
    gallery: Float[np.ndarray, "g D"],
    gallery_labels: Int[np.ndarray, " g"],
    query_labels: Int[np.ndarray, " q"],
    block: int = 1024,
    same_items: bool = False,
) -> Int[np.ndarray, " q"]:
    """Counts, per query, wrong-label gallery entries as similar as the best right-label entry.

    Args:
        queries, gallery: L2-normalised features.
        gallery_labels, query_labels: labels; equal ones are right.
        block: number of similarity rows computed at a time.
        same_items: queries are the gallery, and no query may find itself.
    """
    ranks = []
    placed, labels = jnp.asarray(gallery), jnp.asarray(gallery_labels)
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        same_label = jnp.asarray(query_labels[rows])[:, None] == labels  # [block g]
        right = same_label
        if same_items:
            columns = np.arange(start, min(start + block, len(queries)))  # the queries themselves
            right = same_label.at[np.arange(len(columns)), columns].set(False)
        result = _block_ranks(jnp.asarray(queries[rows]), placed, right, same_label)
        ranks.append(np.asarray(result))
    return np.concatenate(ranks)


@jax.jit
def _block_ranks(
    queries: Float[Array, "q D"],
    gallery: Float[Array, "g D"],
    right: Bool[Array, "q g"],
    same_label: Bool[Array, "q g"],
) -> Int[Array, " q"]:
    similarity = jnp.matmul(queries, gallery.T, precision="highest")
    best = jnp.max(jnp.where(right, similarity, -jnp.inf), axis=1, keepdims=True)
    # Negated `<` instead of `>=`, so that a NaN similarity counts against the model.
    return jnp.sum(~(similarity < best) & ~same_label, axis=1)


class RetrievalKind:
    """Image-text retrieval, as a `TaskKind`."""

    metrics = KIND_SETTINGS["retrieval"].metrics
    encodes_whole_images = True

    def check(self, section: str, task: TaskConfig, vision: VisionConfig) -> None:
        check_image_size(task.data.image_size, vision.patch_size, f"{section}.data.image_size")

    def texts(self, section: str, task: TaskConfig) -> list[tuple[str, ...]]:
        return []

    def image_side(self, task: TaskConfig) -> int:
        return task.data.image_size

    def open_set(self, section: str, task: TaskConfig) -> Source:
        return limited(open_source(task.data, f"{section}.data"), task.max_examples)

    def check_images(self, section: str, task: TaskConfig, source: Source) -> None:
        check_images_found(source, task.data, f"{section}.data")

    def contents(self, source: Source) -> list[Any]:
        """Returns the captions of every image."""
        return [captions_of_example(source, index) for index in range(len(source))]

    def run(self, job: Job) -> TaskResult:
        """Embeds all images and captions in a task, and searches in both directions."""
        task = job.task
        source: Source = job.source
        captions_of = self.contents(source)
        captions = [caption for image_captions in captions_of for caption in image_captions]
        owners = [index for index, image_captions in enumerate(captions_of) for _ in image_captions]
        images = embed_source(job)
        texts = job.model.embed_texts(captions, job.batch_size)
        embedded = RetrievalSet(images, texts, np.asarray(owners), captions)
        return TaskResult(
            kind="retrieval",
            metrics=embedded.metrics(),
            chance=chance_recalls(embedded.owners),
            protocol={
                "resolution": task.data.image_size,
                "preparation": task.data.augmentation,
                "decoder": view_decoder(task.data),
                "images": len(source),
                "captions": len(captions),
                "ties": "count as misses",
                "dataset_fingerprint": digest(captions_of),
            },
            draw=lambda path: _draw_sheet(job, embedded, path),
        )


def captions_of_example(source: Source, index: int) -> tuple[str, ...]:
    """Returns the captions of an example; a damaged record is an error, as in every evaluation."""
    try:
        return source.captions(index)
    except BadImageError as error:
        raise bad_in_evaluation(index, error) from error


def _draw_sheet(job: Job, embedded: RetrievalSet, path: Address) -> None:
    """Draws images spread over the set, each with the captions the model finds most similar."""
    if not processes.is_first():
        return
    source, transform = job.source, EvalTransform(job.task.data)
    count = len(embedded.images)
    indices = [i * count // _SHEET_IMAGES for i in range(min(_SHEET_IMAGES, count))]
    entries = []
    for index in dict.fromkeys(indices):
        pixels = transform(decoded_image(source[index], job.task.data))
        captions, missed = most_similar_captions(embedded, index, _SHEET_CAPTIONS)
        entries.append(visualize.RetrievedCaptions(pixels, captions, missed))
    count = len(embedded.captions)
    with new_file(path) as partial:
        visualize.retrieval_sheet(entries, partial, captions=count, title=job.title)


def most_similar_captions(
    embedded: RetrievalSet, image: int, count: int
) -> tuple[list[tuple[str, float, bool]], tuple[str, float, int] | None]:
    """Returns the captions most similar to an image and, if all are wrong, the best correct one.

    A caption is correct if it belongs to the image. As in `recalls`, ties count against the model
    in the rank for the correct caption.

    Returns:
        (text, similarity, whether it is correct) for each caption, best first; and (text,
        similarity, rank) for the best correct caption, or None.
    """
    similarity: Float[np.ndarray, " m"] = embedded.texts @ embedded.images[image]
    true_captions: Bool[np.ndarray, " m"] = embedded.owners == image
    order = (-similarity).argsort(kind="stable")
    captions = [
        (embedded.captions[i], float(similarity[i]), bool(true_captions[i])) for i in order[:count]
    ]
    if any(belongs for _, _, belongs in captions):
        return captions, None
    best = int(order[true_captions[order]][0])
    ahead = int(np.sum(~(similarity < similarity[best]) & ~true_captions))
    return captions, (embedded.captions[best], float(similarity[best]), ahead + 1)
