"""Zero-shot classification: the class whose text feature is most similar to the image's descriptor.

Top-1, top-5 and the mean over classes of top-1; where images have several classes, the mean over
classes of average precision. In percent.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dinotxt_jax.config import TaskConfig
from dinotxt_jax.data.labelled import LabelledSource, open_labelled
from dinotxt_jax.data.texts import read_templates
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.embedding import embed_images
from dinotxt_jax.evaluation.prompts import class_features
from dinotxt_jax.evaluation.results import TaskResult
from dinotxt_jax.inference import Model
from dinotxt_jax.training.features import FeatureCache

SOURCES = ("folder", "csv")


def check(name: str, task: TaskConfig) -> None:
    """Raises `UserError` for what can be known to be wrong before anything is encoded."""
    if task.data.source not in SOURCES:
        raise UserError(
            f"the task {name} has data.source={task.data.source}, which has no class labels; take "
            f"{' or '.join(SOURCES)}."
        )
    read_templates(task.templates, f"the task {name}: templates")


def run(
    model: Model,
    name: str,
    task: TaskConfig,
    batch_size: int,
    cache: FeatureCache | None = None,
) -> TaskResult:
    """Classifies the images of a task.

    Args:
        model: the model.
        name: of the task, for the progress bar.
        task: the images, classes and templates.
        batch_size: images, and prompts, encoded at once.
        cache: backbone tokens of the same images, if there are any.

    Raises:
        UserError: data that cannot be used.
    """
    source = open_labelled(task.data)
    count = min(task.max_examples or len(source), len(source))
    labels = [source.labels(index) for index in range(count)]
    templates = read_templates(task.templates, f"the task {name}: templates")
    texts = class_features(model, source.class_names, templates, batch_size)
    images = embed_images(model, source, task, count, batch_size, title=name, cache=cache)
    several = any(len(own) > 1 for own in labels)
    if several:
        metrics = {"mean_average_precision": mean_average_precision(images @ texts.T, labels)}
    else:
        metrics = accuracies(images, texts, np.asarray([own[0] for own in labels]))
    return TaskResult(
        kind="classification",
        metrics=metrics,
        chance=_chance(labels, len(source.class_names), several),
        protocol={
            "resolution": task.data.image_size,
            "preparation": task.data.augmentation,
            "templates": len(templates),
            "classes": len(source.class_names),
            "images": count,
            "dataset_fingerprint": _fingerprint(source, count),
        },
    )


def accuracies(
    images: Float[np.ndarray, "n D"],
    texts: Float[np.ndarray, "c D"],
    labels: Int[np.ndarray, " n"],
    block: int = 1024,
) -> dict[str, float]:
    """Top-1, top-5 and the mean over classes of top-1, in percent.

    Of equally similar classes the first one counts as the more similar, as `argmax` has it.
    Classes without an image have no part in the mean.
    """
    ranks = np.concatenate(
        [
            np.asarray(
                _ranks(
                    jnp.asarray(images[start : start + block]),
                    jnp.asarray(texts),
                    jnp.asarray(labels[start : start + block]),
                )
            )
            for start in range(0, len(images), block)
        ]
    )
    correct = np.bincount(labels, weights=ranks < 1, minlength=len(texts))
    seen = np.bincount(labels, minlength=len(texts))
    return {
        "top1": 100.0 * float(np.mean(ranks < 1)),
        "top5": 100.0 * float(np.mean(ranks < 5)),
        "mean_per_class": 100.0 * float(np.mean(correct[seen > 0] / seen[seen > 0])),
    }


@jax.jit
def _ranks(
    images: Float[Array, "n D"], texts: Float[Array, "c D"], labels: Int[Array, " n"]
) -> Int[Array, " n"]:
    """How many classes are more similar to each image than its own."""
    similarity = jnp.matmul(images, texts.T, precision="highest")
    own = jnp.take_along_axis(similarity, labels[:, None], axis=1)
    earlier: Bool[Array, "n c"] = jnp.arange(texts.shape[0]) < labels[:, None]
    return jnp.sum((similarity > own) | ((similarity == own) & earlier), axis=1)


def mean_average_precision(
    scores: Float[np.ndarray, "n c"], labels: Sequence[tuple[int, ...]]
) -> float:
    """The mean over classes of average precision, in percent; classes without images left out.

    Average precision of a class is the mean, over its images, of the share of its images among
    those scored at least as high.
    """
    positive = np.zeros(scores.shape, bool)
    for row, own in enumerate(labels):
        positive[row, list(own)] = True
    found = []
    for scored, own in zip(scores.T, positive.T, strict=True):
        if own.any():
            order = np.argsort(-scored, kind="stable")
            hits = np.cumsum(own[order])
            precision = hits / np.arange(1, len(hits) + 1)
            found.append(precision[own[order]].mean())
    return 100.0 * float(np.mean(found))


def _chance(labels: Sequence[tuple[int, ...]], classes: int, several: bool) -> dict[str, float]:
    if several:
        counts = np.bincount([label for own in labels for label in own], minlength=classes)
        return {"mean_average_precision": 100.0 * float(np.mean(counts[counts > 0]) / len(labels))}
    one = 100.0 / classes
    return {"top1": one, "top5": min(5 * one, 100.0), "mean_per_class": one}


def _fingerprint(source: LabelledSource, count: int) -> str:
    """sha256 over names and labels of the images and the names of the classes."""
    described = [[source.key(i), source.labels(i)] for i in range(count)]
    return hashlib.sha256(json.dumps([described, source.class_names]).encode()).hexdigest()
