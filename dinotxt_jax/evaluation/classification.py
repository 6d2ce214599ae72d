"""Zero-shot classification: predicts the class whose text feature is nearest to the descriptor.

Metrics are top-1, top-5 and top-1 averaged over classes; if images have several classes, average
precision averaged over classes. All are in percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dinotxt_jax.config import TaskConfig, check_image_size
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.config.evaluation import KIND_SETTINGS
from dinotxt_jax.data.examples import check_images_found, limited
from dinotxt_jax.data.labelled import LabelledSource
from dinotxt_jax.data.sources import open_labelled
from dinotxt_jax.data.texts import check_several, read_templates
from dinotxt_jax.data.transforms import view_decoder
from dinotxt_jax.evaluation.embedding import embed_source
from dinotxt_jax.evaluation.jobs import Job, TaskResult, digest, named
from dinotxt_jax.inference.prompts import class_features


class ClassificationKind:
    """Zero-shot classification, as a `TaskKind`."""

    metrics = KIND_SETTINGS["classification"].metrics
    encodes_whole_images = True

    def check(self, section: str, task: TaskConfig, vision: VisionConfig) -> None:
        check_image_size(task.data.image_size, vision.patch_size, f"{section}.data.image_size")
        self.texts(section, task)

    def texts(self, section: str, task: TaskConfig) -> list[tuple[str, ...]]:
        return [read_templates(task.templates, f"{section}.templates")]

    def image_side(self, task: TaskConfig) -> int:
        return task.data.image_size

    def open_set(self, section: str, task: TaskConfig) -> LabelledSource:
        source = open_labelled(task.data, f"{section}.data")
        advice = f"correct {section}.data.path, .classes or .only"
        check_several(source.class_names, f"the data of {section}", advice)
        return limited(source, task.max_examples)

    def check_images(self, section: str, task: TaskConfig, source: LabelledSource) -> None:
        check_images_found(source, task.data, f"{section}.data")

    def contents(self, source: LabelledSource) -> list[Any]:
        """Returns image names and labels, and class names."""
        described = [[source.key(i), source.labels(i)] for i in range(len(source))]
        return [described, source.class_names]

    def run(self, job: Job) -> TaskResult:
        """Classifies the images of a task."""
        task = job.task
        source: LabelledSource = job.source
        names, count = source.class_names, len(source)
        labels = [source.labels(index) for index in range(count)]
        (templates,) = self.texts(f"the task {job.name}", task)
        texts = class_features(job.model, names, templates, job.batch_size)
        images = embed_source(job)
        several = any(len(image_labels) > 1 for image_labels in labels)
        if several:
            per_class = average_precisions(images @ texts.T, labels)
            metrics = {"mean_average_precision": float(np.nanmean(per_class))}
        else:
            metrics, per_class = accuracies(
                images, texts, np.asarray([image_labels[0] for image_labels in labels])
            )
        return TaskResult(
            kind="classification",
            metrics=metrics,
            chance=_chance(labels, len(names), several),
            protocol={
                "resolution": task.data.image_size,
                "preparation": task.data.augmentation,
                "decoder": view_decoder(task.data),
                "templates": len(templates),
                "classes": len(names),
                "images": count,
                "dataset_fingerprint": digest(self.contents(source)),
            },
            per_class=named(names, per_class),
            prompts=templates,
        )


def accuracies(
    images: Float[np.ndarray, "n D"],
    texts: Float[np.ndarray, "c D"],
    labels: Int[np.ndarray, " n"],
    block: int = 1024,
) -> tuple[dict[str, float], Float[np.ndarray, " c"]]:
    """Returns top-1, top-5 and mean per-class top-1, and top-1 of each class, in percent.

    Among equally similar classes, the first one ranks highest, as in `argmax`. Classes without an
    image are nan and are excluded from the mean.
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
    images_per_class = np.bincount(labels, minlength=len(texts))
    per_class = 100.0 * np.divide(
        correct,
        images_per_class,
        where=images_per_class > 0,
        out=np.full(len(images_per_class), np.nan),
    )
    figures = {
        "top1": 100.0 * float(np.mean(ranks < 1)),
        "top5": 100.0 * float(np.mean(ranks < 5)),
        "mean_per_class": float(np.nanmean(per_class)),
    }
    return figures, per_class


@jax.jit
def _ranks(
    images: Float[Array, "n D"], texts: Float[Array, "c D"], labels: Int[Array, " n"]
) -> Int[Array, " n"]:
    """Returns, for each image, how many classes are more similar than the labelled class."""
    similarity = jnp.matmul(images, texts.T, precision="highest")
    true_scores = jnp.take_along_axis(similarity, labels[:, None], axis=1)
    numbers = jnp.arange(texts.shape[0])
    earlier: Bool[Array, "n c"] = numbers < labels[:, None]
    # Negated `<=` instead of `>`, so that a NaN similarity counts against the model.
    others = ~(similarity <= true_scores) & (numbers != labels[:, None])
    return jnp.sum(others | ((similarity == true_scores) & earlier), axis=1)


def average_precisions(
    scores: Float[np.ndarray, "n c"], labels: Sequence[tuple[int, ...]]
) -> Float[np.ndarray, " c"]:
    """Returns average precision of each class, in percent; nan for classes without images.

    For each image with the class, precision is the share of images with the class among all images
    scored at least as high. Average precision is the mean over these images.
    """
    positive = np.zeros(scores.shape, bool)
    for row, image_labels in enumerate(labels):
        positive[row, list(image_labels)] = True
    precisions = np.full(scores.shape[1], np.nan)
    for label, (scored, relevant) in enumerate(zip(scores.T, positive.T, strict=True)):
        if relevant.any():
            order = np.argsort(-scored, kind="stable")
            hits = np.cumsum(relevant[order])
            precision = hits / np.arange(1, len(hits) + 1)
            precisions[label] = 100.0 * precision[relevant[order]].mean()
    return precisions


def _chance(labels: Sequence[tuple[int, ...]], classes: int, several: bool) -> dict[str, float]:
    if several:
        counts = np.bincount(
            [label for image_labels in labels for label in image_labels], minlength=classes
        )
        return {"mean_average_precision": 100.0 * float(np.mean(counts[counts > 0]) / len(labels))}
    top1 = 100.0 / classes
    return {"top1": top1, "top5": min(5 * top1, 100.0), "mean_per_class": top1}
