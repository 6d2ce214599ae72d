"""Open-vocabulary segmentation against masks: IoU and accuracy from one confusion matrix."""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.config import SegmentationConfig, TaskConfig
from dinotxt_jax.data.examples import limited
from dinotxt_jax.data.masks import IGNORED, MaskSource, open_masks
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.data.texts import read_list, read_templates
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job, TaskResult, digest, named
from dinotxt_jax.inference.prompts import placed_texts
from dinotxt_jax.inference.segmentation import DenseScores, DenseTexts, padded_side, segment
from dinotxt_jax.inference.windows import check_protocol
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.progress import progress_bar

SHEET_IMAGES = 6
_AHEAD = 8  # images decoded ahead
METRICS = ("mean_iou", "mean_accuracy", "pixel_accuracy")


def check(key: str, task: TaskConfig, patch_size: int) -> None:
    """Raises `UserError` for what does not fit the backbone, or for a list that cannot be read."""
    check_protocol(task.segmentation, patch_size, f"{key}.segmentation")
    read_templates(task.templates, f"{key}.templates")
    if task.segmentation.background_words:
        read_list(task.segmentation.background_words, f"{key}.segmentation.background_words")


def open_set(task: TaskConfig) -> MaskSource:
    """The examples of a task.

    Raises:
        UserError: data that cannot be used, or a background that it has not.
    """
    source = limited(open_masks(task.data), task.max_examples)
    config = task.segmentation
    if source.background is None and (config.background_words or config.background_score > -1):
        raise UserError(
            "background_score or background_words is set, but the data has no class background; "
            "leave them out, or take data that has one."
        )
    return source


def contents(source: MaskSource) -> list[Any]:
    """Names of the images, and of the classes; the masks are part of the result's fingerprint."""
    return [[source.key(i) for i in range(len(source))], source.class_names]


def run(job: Job) -> TaskResult:
    """Segments the images of a task and compares with their masks.

    A cache of tokens is not used: it holds whole images, and windows are asked for here.

    Raises:
        UserError: data that cannot be used.
    """
    task = job.task
    source: MaskSource = job.source
    templates, words = job.templates(), _words(job)
    score = task.segmentation.background_score
    names, background = source.class_names, source.background
    texts = placed_texts(job.model, names, templates, background, score, words)
    counts, fingerprint = _counted_set(job, texts)
    confusion = counts.astype(np.float64)
    return TaskResult(
        kind="segmentation",
        metrics=scores(confusion),
        chance=_chance(confusion),
        protocol={
            "protocol": task.segmentation.protocol,
            "resolution": _resolution(task.segmentation),
            "templates": len(templates),
            "classes": len(names),
            "background": _background(source, task.segmentation, words),
            "images": len(source),
            "dataset_fingerprint": fingerprint,
        },
        per_class=named(names, 100.0 * intersections_over_unions(confusion)),
        prompts=templates,
        draw=lambda path: _draw_sheet(job, texts, path),
    )


def _words(job: Job) -> tuple[str, ...]:
    named_list = job.task.segmentation.background_words
    return read_list(named_list, f"the task {job.name}: background_words") if named_list else ()


def _counted_set(job: Job, texts: DenseTexts) -> tuple[Int[np.ndarray, "c c"], str]:
    """The confusion matrix of all images, and a sha256 over names of images and classes, masks."""
    task, source = job.task, job.source
    before = job.partial.load()
    done = int(before.get("done", 0))
    fingerprint = str(before.get("fingerprint", digest(source.class_names)))
    confusion = ConfusionMatrix(len(source.class_names), before.get("counts"))
    rows = range(done, len(source))
    pairs = in_threads(rows, source.load, task.data.threads, _AHEAD)
    waiting: collections.deque[tuple[str, Int[np.ndarray, "h w"]]] = collections.deque()

    def images() -> Iterator[Image.Image]:
        for index, (image, mask) in zip(rows, pairs, strict=True):
            waiting.append((source.key(index), mask))
            yield image

    def state() -> dict[str, Any]:
        return {"done": done, "fingerprint": fingerprint, "counts": confusion.counts()}

    with progress_bar(len(source), done, "image", job.name) as bar:
        for dense in segment(job.model, images(), texts, task.segmentation, job.batch_size):
            key, mask = waiting.popleft()
            confusion.add(mask, dense)
            fingerprint = digest([fingerprint, key, hashlib.sha256(mask.tobytes()).hexdigest()])
            done += 1
            bar.update()
            job.partial.save(state)
    return confusion.counts(), fingerprint


class ConfusionMatrix:
    """Pixels by true class (rows) and found class (columns), counted on the device.

    Args:
        classes: how many.
        before: pixels counted already.
    """

    def __init__(self, classes: int, before: Int[np.ndarray, "c c"] | None = None):
        self._classes = classes
        self._counts = np.zeros((classes, classes), np.int64) if before is None else before
        self._clear()

    def _clear(self) -> None:
        self._pixels = 0
        self._on_device = jnp.zeros(self._classes**2 + 1, jnp.int32)

    def add(self, mask: Int[np.ndarray, "h w"], dense: DenseScores) -> None:
        """Counts the pixels of an image; those that the mask ignores are left out."""
        height, width = mask.shape
        padding = ((0, padded_side(height) - height), (0, padded_side(width) - width))
        padded = np.pad(mask.astype(np.uint8), padding, constant_values=IGNORED)
        labels = dense.padded_labels(height, width)
        if self._pixels + padded.size >= 2**31:
            self.counts()
        self._pixels += padded.size
        self._on_device = _counted(self._on_device, padded, labels, self._classes)

    def counts(self) -> Int[np.ndarray, "c c"]:
        """All counts so far."""
        added = np.asarray(self._on_device)[:-1].reshape(self._counts.shape)
        self._counts = self._counts + added
        self._clear()
        return self._counts


@functools.partial(jax.jit, static_argnames="classes", donate_argnums=0)
def _counted(
    counts: Int[Array, " k"], mask: Int[Array, "h w"], labels: Int[Array, "h w"], classes: int
) -> Int[Array, " k"]:
    pairs = jnp.where(mask == IGNORED, classes**2, mask.astype(jnp.int32) * classes + labels)
    return counts + jnp.bincount(pairs.ravel(), length=classes**2 + 1)


def intersections_over_unions(confusion: Float[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """IoU of each class; nan for those that are neither in the masks nor found."""
    right = np.diag(confusion)
    union = confusion.sum(axis=1) + confusion.sum(axis=0) - right
    return np.divide(right, union, where=union > 0, out=np.full(len(right), np.nan))


def scores(confusion: Float[np.ndarray, "c c"]) -> dict[str, float]:
    """Mean IoU and mean accuracy over the classes that occur, and pixel accuracy, in percent."""
    right, true = np.diag(confusion), confusion.sum(axis=1)
    return {
        "mean_iou": 100.0 * float(np.nanmean(intersections_over_unions(confusion))),
        "mean_accuracy": 100.0 * float(np.mean(right[true > 0] / true[true > 0])),
        "pixel_accuracy": 100.0 * float(right.sum()) / float(confusion.sum()),
    }


def _chance(confusion: Float[np.ndarray, "c c"]) -> dict[str, float]:
    """The expected scores of classes drawn uniformly, pixel by pixel."""
    true = confusion.sum(axis=1)
    drawn = np.repeat(true[:, None], len(true), axis=1) / len(true)
    return scores(drawn)


def _resolution(config: SegmentationConfig) -> int | str:
    if config.protocol == "whole":
        return config.image_size
    windows = f"window {config.window}, stride {config.stride}"
    if config.protocol == "slide":
        return f"short side {config.short_side}, {windows}"
    sides = ", ".join(map(str, config.scales))
    groups = f", {config.clusters} clusters" if config.clusters else ""
    return f"short sides {sides}, {windows}{groups}"


def _background(source: MaskSource, config: SegmentationConfig, words: Sequence[str]) -> str:
    if source.background is None:
        return "none"
    parts = []
    if words:
        parts.append(f"words of {config.background_words} ({', '.join(words)})")
    if config.background_score > -1:
        parts.append(f"score below {config.background_score}")
    return " and ".join(parts) or "by its name"


def _draw_sheet(job: Job, texts: DenseTexts, path: Path) -> None:
    """Images spread over the set: photo, mask, and what was found."""
    count = len(job.source)
    shown = dict.fromkeys(i * count // SHEET_IMAGES for i in range(SHEET_IMAGES))
    pairs = [job.source.load(index) for index in shown]
    images = (image for image, _ in pairs)
    found = segment(job.model, images, texts, job.task.segmentation, job.batch_size)
    entries = [
        (image, mask, dense.labels(*mask.shape))
        for (image, mask), dense in zip(pairs, found, strict=True)
    ]
    if processes.is_first():
        visualize.segmentation_sheet(entries, job.source.class_names).save(path)
