"""Open-vocabulary segmentation: every pixel gets the class whose text is most similar to its patch.

Protocols:

    slide   dino.txt's own: short side to `short_side`; windows of `window` pixels every `stride`,
            the last one shifted inward, each stretched to whole patches; cosines of patch tokens
            and classes, bilinearly to the window, softmax over classes (no temperature); added up
            and divided by visits; bilinearly to the mask's size, argmax
    whole   the image squashed to `data.image_size`; cosines, bilinearly to the mask's size, argmax

One confusion matrix over the whole set; IoU and accuracy are means over the classes that occur.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image

from dinotxt_jax.config import TaskConfig
from dinotxt_jax.data.masks import IGNORED, open_masks
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.data.texts import read_templates
from dinotxt_jax.data.transforms import normalize, squash
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.prompts import class_features
from dinotxt_jax.evaluation.results import TaskResult
from dinotxt_jax.inference import Model
from dinotxt_jax.models.vit import cubic_weights
from dinotxt_jax.progress import progress_bar
from dinotxt_jax.training.features import FeatureCache

PROTOCOLS = ("slide", "whole")
_ROUND = 64  # canvases and masks are padded to multiples of this, so that few shapes are compiled


@dataclasses.dataclass(frozen=True)
class Window:
    """A piece of an image: which image, and where (rows, columns)."""

    image: int
    top: int
    left: int


def check(name: str, task: TaskConfig) -> None:
    """Raises `UserError` for what can be known to be wrong before anything is encoded."""
    if task.protocol not in PROTOCOLS:
        raise UserError(
            f"the task {name} has protocol={task.protocol!r}, which is unknown; choose among "
            f"{', '.join(PROTOCOLS)}."
        )
    if not 0 < task.stride <= task.window <= task.short_side:
        raise UserError(
            f"the task {name} has stride={task.stride}, window={task.window} and "
            f"short_side={task.short_side}, expected 0 < stride <= window <= short_side; correct "
            "them."
        )
    read_templates(task.templates, f"the task {name}: templates")


def run(
    model: Model,
    name: str,
    task: TaskConfig,
    batch_size: int,
    cache: FeatureCache | None = None,
) -> TaskResult:
    """Segments the images of a task and compares with their masks.

    Args:
        model: the model.
        name: of the task, for the progress bar.
        task: the images, classes, templates and protocol.
        batch_size: windows (of several images, where one has fewer), and prompts, encoded at once.
        cache: not used: windows are not what a cache of training images holds.

    Raises:
        UserError: data that cannot be used.
    """
    source = open_masks(task.data)
    count = min(task.max_examples or len(source), len(source))
    templates = read_templates(task.templates, f"the task {name}: templates")
    texts = class_features(model, source.class_names, templates, of_patches=True)
    confusion = np.zeros((len(texts), len(texts)), np.int64)
    digest = hashlib.sha256(json.dumps(source.class_names).encode())
    pairs = in_threads(range(count), source.load, task.data.threads, task.data.threads)
    masks: collections.deque[np.ndarray] = collections.deque()

    def images() -> Iterator[tuple[Image.Image, tuple[int, int]]]:
        for index, (image, mask) in enumerate(pairs):
            digest.update(source.key(index).encode() + mask.tobytes())
            masks.append(mask)
            yield image, mask.shape

    with progress_bar(count, 0, "image", name) as bar:
        for labels in segment(model, images(), texts, task, batch_size):
            confusion += confusion_matrix(masks.popleft(), labels, len(texts))
            bar.update()
    return TaskResult(
        kind="segmentation",
        metrics=scores(confusion),
        chance={"pixel_accuracy": 100.0 / len(texts)},
        protocol={
            "protocol": task.protocol,
            "resolution": task.data.image_size
            if task.protocol == "whole"
            else f"short side {task.short_side}, window {task.window}, stride {task.stride}",
            "templates": len(templates),
            "classes": len(texts),
            "images": count,
            "dataset_fingerprint": digest.hexdigest(),
        },
    )


def segment(
    model: Model,
    images: Iterator[tuple[Image.Image, tuple[int, int]]],
    texts: Float[np.ndarray, "c d"],
    task: TaskConfig,
    batch_size: int,
) -> Iterator[Int[np.ndarray, "h w"]]:
    """The class of every pixel, image by image.

    Args:
        model: the model.
        images: (image, rows and columns of the answer).
        texts: L2-normalised features of the classes, their half that speaks of patches.
        task: protocol and sizes.
        batch_size: windows encoded at once, of as many images as it takes.
    """
    canvases: dict[int, _Canvas] = {}
    queue: list[tuple[Window, np.ndarray]] = []
    finished = 0

    def flush() -> Iterator[Int[np.ndarray, "h w"]]:
        nonlocal finished
        maps = _window_maps(model, [pixels for _, pixels in queue], texts, batch_size)
        for (window, pixels), found in zip(queue, maps, strict=True):
            canvases[window.image].add(window, found, pixels.shape[:2])
        queue.clear()
        while finished in canvases and canvases[finished].complete:
            yield canvases.pop(finished).labels()
            finished += 1

    for number, (image, shape) in enumerate(images):
        pixels, starts, size = _prepared(image, task)
        canvases[number] = _Canvas(pixels.shape[:2], shape, len(texts), len(starts), task.protocol)
        for top, left in starts:
            piece = pixels[top : top + size[0], left : left + size[1]]
            if queue and queue[0][1].shape != piece.shape:
                yield from flush()
            queue.append((Window(number, top, left), piece))
            if len(queue) == batch_size:
                yield from flush()
    if queue:
        yield from flush()


def _prepared(
    image: Image.Image, task: TaskConfig
) -> tuple[np.ndarray, list[tuple[int, int]], tuple[int, int]]:
    """Pixels uint8 [h w 3], where windows start, and their size."""
    if task.protocol == "whole":
        side = task.data.image_size
        return np.asarray(squash(image, side)), [(0, 0)], (side, side)
    short = min(image.size)
    width, height = (max(side * task.short_side // short, task.short_side) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    rows, columns = (window_starts(side, task.window, task.stride) for side in (height, width))
    size = (min(task.window, height), min(task.window, width))
    return np.asarray(resized), [(top, left) for top in rows for left in columns], size


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along one side: every `stride`, the last one shifted inward."""
    count = max(side - window + stride - 1, 0) // stride + 1
    return [min(number * stride, max(side - window, 0)) for number in range(count)]


def _window_maps(
    model: Model, windows: list[np.ndarray], texts: Float[np.ndarray, "c d"], batch_size: int
) -> Float[np.ndarray, "n gh gw c"]:
    """Cosines of every patch of every window with every class; one shape is compiled."""
    missing = batch_size - len(windows)
    stacked = np.stack(windows + [windows[-1]] * missing)
    wanted = model.description.preprocessing
    patch = model.description.vision.patch_size
    images = _stretched(jnp.asarray(normalize(stacked, wanted.mean, wanted.std)), patch)
    patches = model.encode_patches(images).patch_tokens
    return np.asarray(_cosines(patches, jnp.asarray(texts)))[: len(windows)]


def _stretched(images: Float[Array, "b h w 3"], patch: int) -> Float[Array, "b h w 3"]:
    """Brought bicubically (a = -0.75, as PyTorch) to the next multiples of the patch size."""
    height, width = images.shape[1:3]
    rows, columns = (-(-side // patch) * patch for side in (height, width))
    if (rows, columns) == (height, width):
        return images
    return jnp.einsum(
        "in,jm,bnmc->bijc",
        cubic_weights(height, rows),
        cubic_weights(width, columns),
        images,
        precision="highest",
    )


@jax.jit
def _cosines(
    patches: Float[Array, "b gh gw d"], texts: Float[Array, "c d"]
) -> Float[Array, "b gh gw c"]:
    wide = patches.astype("float32")
    norm = jnp.sqrt(jnp.sum(jnp.square(wide), axis=-1, keepdims=True))
    return jnp.einsum("bijd,cd->bijc", wide / jnp.maximum(norm, 1e-12), texts, precision="highest")


class _Canvas:
    """The scores of one image, added up window by window."""

    def __init__(
        self,
        size: tuple[int, int],
        shape: tuple[int, int],
        classes: int,
        windows: int,
        protocol: str,
    ):
        self._size, self._shape = size, shape
        self._softmax = protocol == "slide"
        self._left = windows
        padded = tuple(_padded(side) for side in size)
        self._scores = jnp.zeros((*padded, classes), jnp.float32)
        self._visits = np.zeros(padded, np.float32)

    @property
    def complete(self) -> bool:
        return self._left == 0

    def add(
        self, window: Window, maps: Float[np.ndarray, "gh gw c"], size: tuple[int, int]
    ) -> None:
        rows = linear_weights(maps.shape[0], size[0])
        columns = linear_weights(maps.shape[1], size[1])
        start = (window.top, window.left)
        self._scores = _added(self._scores, maps, rows, columns, start, softmax=self._softmax)
        self._visits[window.top : window.top + size[0], window.left : window.left + size[1]] += 1
        self._left -= 1

    def labels(self) -> Int[np.ndarray, "h w"]:
        weights = []
        for side, wanted, padded in zip(self._size, self._shape, self._visits.shape, strict=True):
            matrix = np.zeros((_padded(wanted), padded), np.float32)
            matrix[:wanted, :side] = linear_weights(side, wanted)
            weights.append(matrix)
        found = _argmax(self._scores, np.maximum(self._visits, 1), *weights)
        return np.asarray(found)[: self._shape[0], : self._shape[1]]


def _padded(side: int) -> int:
    return -(-side // _ROUND) * _ROUND


def _added_impl(
    scores: Float[Array, "h w c"],
    maps: Float[Array, "gh gw c"],
    rows: Float[Array, "a gh"],
    columns: Float[Array, "b gw"],
    start: tuple[int, int],
    *,
    softmax: bool,
) -> Float[Array, "h w c"]:
    fine = jnp.einsum("in,jm,nmc->ijc", rows, columns, maps, precision="highest")
    if softmax:
        fine = jax.nn.softmax(fine, axis=-1)
    place = (*start, 0)
    before = jax.lax.dynamic_slice(scores, place, fine.shape)
    return jax.lax.dynamic_update_slice(scores, before + fine, place)


_added = jax.jit(_added_impl, static_argnames="softmax", donate_argnums=0)


@jax.jit
def _argmax(
    scores: Float[Array, "h w c"],
    visits: Float[Array, "h w"],
    rows: Float[Array, "i h"],
    columns: Float[Array, "j w"],
) -> Int[Array, "i j"]:
    mean = scores / visits[..., None]
    return jnp.argmax(jnp.einsum("ih,jw,hwc->ijc", rows, columns, mean, precision="highest"), -1)


def linear_weights(source: int, target: int) -> Float[np.ndarray, "t s"]:
    """Weights of bilinear resampling along one side, as PyTorch's `align_corners=False`."""
    centres = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0.0)
    lower = np.minimum(centres.astype(int), source - 1)
    upper = np.minimum(lower + 1, source - 1)
    weights = np.zeros((target, source))
    np.add.at(weights, (np.arange(target), lower), 1 - (centres - lower))
    np.add.at(weights, (np.arange(target), upper), centres - lower)
    return weights.astype(np.float32)


def confusion_matrix(
    mask: Int[np.ndarray, "h w"], labels: Int[np.ndarray, "h w"], classes: int
) -> Int[np.ndarray, "c c"]:
    """Pixels by true class (rows) and found class (columns); ignored ones are left out."""
    kept = mask != IGNORED
    pairs = mask[kept].astype(np.int64) * classes + labels[kept]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def scores(confusion: Int[np.ndarray, "c c"]) -> dict[str, float]:
    """Mean IoU and mean accuracy over the classes that occur, and pixel accuracy, in percent."""
    counts = np.asarray(confusion, np.float64)
    right, true, found = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    union = true + found - right
    return {
        "mean_iou": 100.0 * float(np.mean(right[union > 0] / union[union > 0])),
        "mean_accuracy": 100.0 * float(np.mean(right[true > 0] / true[true > 0])),
        "pixel_accuracy": 100.0 * float(right.sum()) / float(counts.sum()),
    }
