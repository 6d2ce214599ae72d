"""Evaluates open-vocabulary segmentation against masks: IoU and accuracy by confusion matrix."""

from __future__ import annotations

import collections
import functools
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer
from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.config import SegmentationConfig, TaskConfig
from dinotxt_jax.config.evaluation import KIND_SETTINGS
from dinotxt_jax.data.examples import limited
from dinotxt_jax.data.masks import IGNORED, MaskSource
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.data.sources import open_masks
from dinotxt_jax.data.texts import check_several, read_list, read_templates
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job, TaskResult, digest, named
from dinotxt_jax.inference.dense import DenseScores, DenseTexts, padded_side
from dinotxt_jax.inference.prompts import placed_texts
from dinotxt_jax.inference.protocols import PROTOCOLS, check_protocol
from dinotxt_jax.inference.segmentation import segment
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file

_SHEET_IMAGES = 6
_AHEAD = 8  # images decoded ahead


class SegmentationKind:
    """Open-vocabulary segmentation, as a `TaskKind`.

    Cached backbone tokens cover whole images and cannot be used, because windows are encoded here.
    """

    metrics = KIND_SETTINGS["segmentation"].metrics
    encodes_whole_images = False

    def check(self, section: str, task: TaskConfig, patch_size: int) -> None:
        check_protocol(task.segmentation, patch_size, f"{section}.segmentation")
        self.texts(section, task)

    def texts(self, section: str, task: TaskConfig) -> list[tuple[str, ...]]:
        words = _words(section, task)
        return [*([words] if words else []), _templates(section, task)]

    def image_side(self, task: TaskConfig) -> int:
        return PROTOCOLS[task.segmentation.protocol].window_side(task.segmentation)

    def open_set(self, section: str, task: TaskConfig) -> MaskSource:
        """Opens the images and masks, and checks the settings that depend on their classes."""
        source = limited(open_masks(task.data, f"{section}.data"), task.max_examples)
        config = task.segmentation
        if source.background is None and (config.background_words or config.background_score > -1):
            raise UserError(
                f"{section}.segmentation.background_score or background_words is set, but the data "
                "has no class background; leave them out, or take data that has one."
            )
        advice = f"correct {section}.data.path or .classes"
        check_several(source.class_names, f"the data of {section}", advice)
        return source

    def check_images(self, section: str, task: TaskConfig, source: MaskSource) -> None:
        """Checks that some pixel has a class; `open_set` has checked for every image and mask."""
        # Usually the first mask has such a pixel, so that only one pair is read.
        masks = (source.load(index)[1] for index in range(len(source)))
        if not any((mask != IGNORED).any() for mask in masks):
            raise UserError(
                f"the {len(source)} masks of {section}.data have no class in any pixel (all are "
                f"{IGNORED}), expected class indices; correct {section}.data.path."
            )

    def contents(self, source: MaskSource) -> list[Any]:
        """Returns image and class names; the masks are included in the result's fingerprint."""
        return [[source.key(i) for i in range(len(source))], source.class_names]

    def run(self, job: Job) -> TaskResult:
        """Segments the images of a task and compares the labels with the masks."""
        task, where = job.task, f"the task {job.name}"
        source: MaskSource = job.source
        templates, words = _templates(where, task), _words(where, task)
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
                "resolution": PROTOCOLS[task.segmentation.protocol].resolution(task.segmentation),
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


def _templates(section: str, task: TaskConfig) -> tuple[str, ...]:
    return read_templates(task.templates, f"{section}.templates")


def _words(section: str, task: TaskConfig) -> tuple[str, ...]:
    list_name, key = task.segmentation.background_words, "segmentation.background_words"
    return read_list(list_name, f"{section}.{key}") if list_name else ()


def _counted_set(job: Job, texts: DenseTexts) -> tuple[Int[np.ndarray, "c c"], str]:
    """Returns the total confusion matrix, and a SHA-256 over image names, class names and masks."""
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
            job.end_batch(state)
    return confusion.counts(), fingerprint


class ConfusionMatrix:
    """Counts pixels by true class (rows) and predicted class (columns), on the device.

    Args:
        classes: number of classes.
        before: counts from earlier images.
    """

    def __init__(self, classes: int, before: Int[np.ndarray, "c c"] | None = None):
        self._classes = classes
        self._counts = np.zeros((classes, classes), np.int64) if before is None else before
        self._clear()

    def _clear(self) -> None:
        self._pixels = 0
        self._on_device = jnp.zeros(self._classes**2 + 1, jnp.int32)

    def add(self, mask: Int[np.ndarray, "h w"], dense: DenseScores) -> None:
        """Adds the pixels of an image, except the pixels that the mask marks as ignored."""
        height, width = mask.shape
        padding = ((0, padded_side(height) - height), (0, padded_side(width) - width))
        padded = np.pad(mask.astype(np.uint8), padding, constant_values=IGNORED)
        labels = dense.padded_labels(height, width)
        if self._pixels + padded.size >= 2**31:
            self.counts()
        self._pixels += padded.size
        self._on_device = _counted(self._on_device, padded, labels, self._classes)

    def counts(self) -> Int[np.ndarray, "c c"]:
        """Returns all counts so far."""
        added = np.asarray(self._on_device)[:-1].reshape(self._counts.shape)
        self._counts = self._counts + added
        self._clear()
        return self._counts


@functools.partial(jax.jit, static_argnames="classes", donate_argnums=0)
def _counted(
    counts: Int[Array, " k"], mask: Integer[Array, "h w"], labels: Int[Array, "h w"], classes: int
) -> Int[Array, " k"]:
    pairs = jnp.where(mask == IGNORED, classes**2, mask.astype(jnp.int32) * classes + labels)
    return counts + jnp.bincount(pairs.ravel(), length=classes**2 + 1)


def intersections_over_unions(confusion: Float[np.ndarray, "c c"]) -> Float[np.ndarray, " c"]:
    """Returns the IoU of each class; nan for classes neither in the masks nor predicted."""
    right = np.diag(confusion)
    union = confusion.sum(axis=1) + confusion.sum(axis=0) - right
    return np.divide(right, union, where=union > 0, out=np.full(len(right), np.nan))


def scores(confusion: Float[np.ndarray, "c c"]) -> dict[str, float]:
    """Returns mean IoU and mean accuracy over occurring classes, and pixel accuracy, in percent."""
    right, true = np.diag(confusion), confusion.sum(axis=1)
    return {
        "mean_iou": 100.0 * float(np.nanmean(intersections_over_unions(confusion))),
        "mean_accuracy": 100.0 * float(np.mean(right[true > 0] / true[true > 0])),
        "pixel_accuracy": 100.0 * float(right.sum()) / float(confusion.sum()),
    }


def _chance(confusion: Float[np.ndarray, "c c"]) -> dict[str, float]:
    """Returns the expected scores of classes drawn uniformly at random for each pixel."""
    true = confusion.sum(axis=1)
    expected = np.repeat(true[:, None], len(true), axis=1) / len(true)
    return scores(expected)


def _background(source: MaskSource, config: SegmentationConfig, words: Sequence[str]) -> str:
    if source.background is None:
        return "none"
    parts = []
    if words:
        parts.append(f"words of {config.background_words} ({', '.join(words)})")
    if config.background_score > -1:
        parts.append(f"score below {config.background_score}")
    return " and ".join(parts) or "by its name"


def _draw_sheet(job: Job, texts: DenseTexts, path: Address) -> None:
    """Draws images spread over the set: photo, mask, and predicted labels."""
    count = len(job.source)
    indices = dict.fromkeys(i * count // _SHEET_IMAGES for i in range(_SHEET_IMAGES))
    pairs = [job.source.load(index) for index in indices]
    images = (image for image, _ in pairs)
    predictions = segment(job.model, images, texts, job.task.segmentation, job.batch_size)
    entries = [
        (image, mask, dense.labels(*mask.shape))
        for (image, mask), dense in zip(pairs, predictions, strict=True)
    ]
    if processes.is_first():
        sheet = visualize.segmentation_sheet(entries, job.source.class_names, title=job.title)
        with new_file(path) as partial:
            sheet.save(partial)
