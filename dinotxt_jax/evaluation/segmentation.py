"""Evaluates open-vocabulary segmentation against masks: IoU and accuracy by confusion matrix."""

from __future__ import annotations

import collections
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped
from PIL import Image

from dinotxt_jax import visualize
from dinotxt_jax.config import SegmentationConfig, TaskConfig
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.config.evaluation import KIND_SETTINGS
from dinotxt_jax.data.examples import limited
from dinotxt_jax.data.masks import IGNORED, MaskSource
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.data.sources import open_masks
from dinotxt_jax.data.texts import check_several, read_list, read_templates
from dinotxt_jax.data.transforms import view_decoder
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.confusion import (
    ConfusionMatrix,
    chance_scores,
    intersections_over_unions,
    scores,
)
from dinotxt_jax.evaluation.jobs import Job, TaskResult, digest, named
from dinotxt_jax.inference.dense import DenseScores, DenseTexts
from dinotxt_jax.inference.prompts import placed_texts
from dinotxt_jax.inference.protocols import PROTOCOLS, check_protocol
from dinotxt_jax.inference.segmentation import segment, segment_batches
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

    def check(self, section: str, task: TaskConfig, vision: VisionConfig) -> None:
        check_protocol(task.segmentation, vision, f"{section}.segmentation")
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
        features = job.model.dense_features(
            task.segmentation.features, f"tasks.{job.name}.segmentation"
        )
        names, background = source.class_names, source.background
        texts = placed_texts(job.model, names, templates, background, score, words)
        counts, fingerprint = _counted_set(job, texts)
        confusion = counts.astype(np.float64)
        return TaskResult(
            kind="segmentation",
            metrics=scores(confusion),
            chance=chance_scores(confusion),
            protocol={
                "protocol": task.segmentation.protocol,
                "features": features,
                "resolution": PROTOCOLS[task.segmentation.protocol].resolution(task.segmentation),
                "templates": len(templates),
                "classes": len(names),
                "decoder": view_decoder(task.data),
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
    """Returns the total confusion matrix, and a SHA-256 over image names, class names and masks.

    Several processes each read and segment a share of the images.
    """
    counted = _Counted(job)
    indices = counted.remaining_share()
    pairs = in_threads(indices, job.source.load, job.task.data.threads, _AHEAD)
    waiting: collections.deque[tuple[int, Int[np.ndarray, "h w"]]] = collections.deque()

    def images() -> Iterator[Image.Image]:
        for index, (image, mask) in zip(indices, pairs, strict=True):
            waiting.append((index, mask))
            yield image

    settings = (texts, job.task.segmentation, job.batch_size)
    with progress_bar(len(job.source), counted.finished, "image", job.name) as bar:
        for completed in segment_batches(job.model, images(), *settings):
            number = 0
            for dense in completed:
                counted.add(*waiting.popleft(), dense)
                number += 1
            everywhere = processes.gathered([number, job.partial.is_due()])
            bar.update(int(everywhere[_leaders(job), 0].sum()))
            if everywhere[0, 1]:
                counted.merge()
            job.end_batch(counted.arrays)
    counted.merge()
    return counted.confusion, counted.fingerprint()


def _leaders(job: Job) -> list[int]:
    """Returns one process for each share of the images."""
    return [group[0] for group in job.model.readers]


class _Counted:
    """The counts of a task: those of all processes up to the last `merge`, and later ones of this.

    Attributes:
        confusion: int64 pixel counts up to the last `merge`, true class x predicted class.
    """

    def __init__(self, job: Job):
        self._job = job
        classes = len(job.source.class_names)
        before = job.partial.load()
        self.confusion = before.get("confusion", np.zeros((classes, classes), np.int64))
        # The finished images in any order, and the SHA-256 of each one's mask.
        self._images = before.get("images", np.zeros(0, np.int64))
        self._digests = before.get("digests", np.zeros((0, 32), np.uint8))
        self._clear()

    def _clear(self) -> None:
        self._new = ConfusionMatrix(len(self.confusion))
        self._new_digests: dict[int, bytes] = {}

    @property
    def finished(self) -> int:
        """The number of images up to the last `merge`."""
        return len(self._images)

    def remaining_share(self) -> list[int]:
        """Returns the unfinished images that this process segments."""
        share, count = self._job.model.share
        remaining = np.setdiff1d(np.arange(len(self._job.source)), self._images)
        # Interleaved, because neighbours often have similar sizes: a process with only large images
        # would keep the others waiting.
        return remaining[share::count].tolist()

    def add(self, image: int, mask: Int[np.ndarray, "h w"], dense: DenseScores) -> None:
        """Counts the pixels of an image."""
        self._new.add(mask, dense)
        self._new_digests[image] = hashlib.sha256(mask.tobytes()).digest()

    def merge(self) -> None:
        """Adds the new counts of all processes; all must call it."""
        new: dict[str, np.ndarray] = {
            "images": np.asarray(list(self._new_digests), np.int64),
            "digests": np.frombuffer(b"".join(self._new_digests.values()), np.uint8).reshape(
                -1, 32
            ),
            "confusion": self._new.counts(),
        }
        everywhere = processes.gathered_arrays(new)
        parts = [self.arrays(), *(everywhere[process] for process in _leaders(self._job))]
        self._images = np.concatenate([part["images"] for part in parts])
        self._digests = np.concatenate([part["digests"] for part in parts])
        self.confusion = np.sum([part["confusion"] for part in parts], axis=0)
        self._clear()

    def arrays(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Returns what a later run continues from: the state of the last `merge`."""
        return {"images": self._images, "digests": self._digests, "confusion": self.confusion}

    def fingerprint(self) -> str:
        """Returns a SHA-256 over class names, and image names and masks in order."""
        source: MaskSource = self._job.source
        result = digest(source.class_names)
        for row in np.argsort(self._images):
            key = source.key(int(self._images[row]))
            result = digest([result, key, self._digests[row].tobytes().hex()])
        return result


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
    indices = list(dict.fromkeys(i * count // _SHEET_IMAGES for i in range(_SHEET_IMAGES)))
    labels = _labels(job, texts, indices)
    with processes.together():
        if processes.is_first():
            entries = [(*job.source.load(index), labels[index]) for index in indices]
            sheet = visualize.segmentation_sheet(entries, job.source.class_names, title=job.title)
            with new_file(path) as partial:
                sheet.save(partial)


def _labels(
    job: Job, texts: DenseTexts, indices: Sequence[int]
) -> dict[int, Int[np.ndarray, "h w"]]:
    """Returns predicted labels by image index; each process segments a share of the images."""
    share, count = job.model.share
    mine = indices[share::count]
    sizes: list[tuple[int, int]] = []

    def images() -> Iterator[Image.Image]:
        for index in mine:
            image, mask = job.source.load(index)
            sizes.append(mask.shape)
            yield image

    predictions = segment(job.model, images(), texts, job.task.segmentation, job.batch_size)
    own_labels = {
        str(index): dense.labels(*sizes[position])
        for position, (index, dense) in enumerate(zip(mine, predictions, strict=True))
    }
    labels_by_process = processes.gathered_arrays(own_labels)
    return {
        int(index): labels
        for process in _leaders(job)
        for index, labels in labels_by_process[process].items()
    }
