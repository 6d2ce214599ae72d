"""Open-vocabulary segmentation: every pixel gets the class whose text is most similar to its patch.

Protocols:

    slide    dino.txt's own: short side to `short_side`; windows of `window` pixels every `stride`,
             the last one shifted inward, each stretched to whole patches; cosines of patch tokens
             and texts, bilinearly to the window, softmax over texts (no temperature); added up and
             divided by visits; bilinearly to the size asked for, argmax
    whole    the image squashed to a square; cosines, bilinearly to the size asked for, argmax
    highres  windows at several scales; their L2-normalised patch tokens are averaged where windows
             overlap, brought bilinearly to the finest grid and averaged over the scales; if asked
             for, grouped by spherical k-means; cosines, bilinearly to the size asked for, argmax
             (after the "high-resolution" inference of arXiv 2412.16334)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.inference.clustering import clustered
from dinotxt_jax.inference.encoder import Encoder
from dinotxt_jax.inference.interpolation import Taps, linear_taps, resampled
from dinotxt_jax.inference.windows import levels
from dinotxt_jax.models.dinotxt import normalized
from dinotxt_jax.runtime import processes

_ROUND = 64  # canvases and answers are padded to multiples of this: few shapes are compiled


class DenseTexts(NamedTuple):
    """What pixels are compared with.

    Attributes:
        features: of texts, L2-normalised, their half that speaks of patches [t d].
        classes: the class that each text stands for [t]; several may stand for one.
        background: the class of pixels whose best score is below `background_score`; None: none.
        background_score: in the units of the protocol's scores.
    """

    features: Float[np.ndarray, "t d"]
    classes: Int[np.ndarray, " t"]
    background: int | None = None
    background_score: float = -1.0


class DenseScores:
    """The scores of one image, at the protocol's own resolution.

    Args:
        padded: scores [H W t] on a device.
        size: how many of the rows and columns are the image's.
        texts: what the last dimension means.
    """

    def __init__(self, padded: jax.Array, size: tuple[int, int], texts: DenseTexts):
        self._padded, self._size, self.texts = padded, size, texts

    def scores(self) -> Float[np.ndarray, "h w t"]:
        """At the protocol's resolution: pixels of the resized image (slide), else patches."""
        return np.asarray(self._padded)[: self._size[0], : self._size[1]]

    def labels(self, height: int, width: int) -> Int[np.ndarray, "h w"]:
        """The class of every pixel of an image of that size."""
        return np.asarray(self.padded_labels(height, width))[:height, :width]

    def padded_labels(self, height: int, width: int) -> Int[Array, "hp wp"]:
        """As `labels`, on the device, padded to few shapes by whatever lies at the edge."""
        rows, columns = (
            linear_taps(source, target, padded_side(target))
            for source, target in zip(self._size, (height, width), strict=True)
        )
        texts = self.texts
        background = -1 if texts.background is None else texts.background
        floor = -math.inf if background < 0 else texts.background_score
        return _labels(self._padded, rows, columns, texts.classes, background, floor)


def padded_side(side: int) -> int:
    """A side rounded up, so that few shapes are compiled."""
    return -(-side // _ROUND) * _ROUND


@jax.jit
def _labels(
    scores: Float[Array, "h w t"],
    rows: Taps,
    columns: Taps,
    classes: Int[Array, " t"],
    background: Int[Array, ""],
    floor: Float[Array, ""],
) -> Int[Array, "i j"]:
    def of_rows(rows: Taps) -> Int[Array, "r j"]:
        fine = resampled(scores, rows, columns)
        found = jnp.take(classes, jnp.argmax(fine, axis=-1))
        return jnp.where(jnp.max(fine, axis=-1) < floor, background, found)

    # In pieces, since all scores at the size of a photo need not fit in memory.
    pieces = jax.tree.map(lambda tap: tap.reshape(-1, _ROUND), rows)
    return jax.lax.map(of_rows, pieces).reshape(-1, columns.lower.shape[0])


def segment(
    model: Encoder,
    images: Iterable[Image.Image],
    texts: DenseTexts,
    config: SegmentationConfig,
    batch_size: int,
) -> Iterator[DenseScores]:
    """Scores of RGB images, one after the other; images are taken as they are needed.

    Args:
        model: the model.
        images: RGB.
        texts: what pixels are compared with.
        config: protocol and sizes, as `windows.check_protocol` accepts them.
        batch_size: windows encoded at once, of as many images as it takes.

    Raises:
        UserError: an image too narrow to be resized.
    """
    pending: dict[int, _Pending] = {}
    queue: list[tuple[_Canvas, int, int, np.ndarray]] = []
    finished = 0
    features = texts.features  # not on a device: `tokens` may lie on those of several processes
    patch = model.description.vision.patch_size
    channels = features.shape[1 if config.protocol == "highres" else 0]

    def flush() -> Iterator[DenseScores]:
        nonlocal finished
        tokens = model.window_tokens(np.stack([pixels for *_, pixels in queue]), batch_size)
        maps = tokens if config.protocol == "highres" else _cosines(tokens, features)
        if len(maps.sharding.device_set) > 1:
            maps = jnp.asarray(processes.on_host(maps))  # canvases lie on the first device
        for row, (canvas, top, left, pixels) in enumerate(queue):
            canvas.add(maps, row, top, left, pixels.shape[0])
            # At once: the canvases of a whole batch need not fit in memory.
            while finished in pending and pending[finished].complete:
                yield pending.pop(finished).scores()
                finished += 1
        queue.clear()

    for number, image in enumerate(images):
        found = levels(image, config, patch, channels)
        pending[number] = _Pending(texts, config)
        for level in found:
            canvas = _Canvas(level.pixels.shape[:2], patch, len(level.starts), config.protocol)
            pending[number].canvases.append(canvas)
        for level, canvas in zip(found, pending[number].canvases, strict=True):
            for top, left in level.starts:
                piece = level.pixels[top : top + level.side, left : left + level.side]
                queue.append((canvas, top, left, piece))
                if len(queue) == batch_size:
                    yield from flush()
    if queue:
        yield from flush()


@jax.jit
def _cosines(
    tokens: Float[Array, "b gh gw d"], texts: Float[Array, "t d"]
) -> Float[Array, "b gh gw t"]:
    return jnp.einsum("bijd,td->bijt", tokens, texts, precision="highest")


class _Canvas:
    """Window maps of one image at one size, added up: a pixel a place (slide) or a patch."""

    def __init__(self, size: tuple[int, int], patch: int, windows: int, protocol: str):
        self._cell = 1 if protocol == "slide" else patch
        self._softmax = protocol == "slide"
        self.size = (size[0] // self._cell, size[1] // self._cell)
        self.left = windows
        self._visits = np.zeros([padded_side(side) for side in self.size], np.float32)
        self._total: jax.Array | None = None

    def add(
        self, maps: Float[Array, "b gh gw c"], row: int, top: int, left: int, side: int
    ) -> None:
        """Adds the map of a window, one row of a batch; where it is and its side are in pixels."""
        if self._total is None:
            self._total = jnp.zeros((*self._visits.shape, maps.shape[-1]), jnp.float32)
        top, left, side = (value // self._cell for value in (top, left, side))
        taps = tuple(linear_taps(source, side) for source in maps.shape[1:3])
        self._total = _added(self._total, maps, row, top, left, taps, softmax=self._softmax)
        self._visits[top : top + side, left : left + side] += 1
        self.left -= 1

    def mean(self) -> Float[Array, "hp wp c"]:
        """Divided by visits; nothing where the padding is."""
        return _divided(self._total, np.maximum(self._visits, 1))


@functools.partial(jax.jit, static_argnames="softmax", donate_argnums=0)
def _added(
    total: Float[Array, "h w c"],
    maps: Float[Array, "b gh gw c"],
    row: int,
    top: int,
    left: int,
    taps: tuple[Taps, Taps],
    *,
    softmax: bool,
) -> Float[Array, "h w c"]:
    piece = maps[row]
    if softmax:
        piece = jnp.exp(resampled(piece, *taps))  # of cosines: no overflow
        piece = piece / jnp.sum(piece, axis=-1, keepdims=True)
    place = (top, left, 0)
    before = jax.lax.dynamic_slice(total, place, piece.shape)
    return jax.lax.dynamic_update_slice(total, before + piece, place)


@functools.partial(jax.jit, donate_argnums=0)
def _divided(total: Float[Array, "h w c"], visits: Float[Array, "h w"]) -> Float[Array, "h w c"]:
    return total / visits[..., None]


class _Pending:
    """An image of which not all windows have been looked at."""

    def __init__(self, texts: DenseTexts, config: SegmentationConfig):
        self.canvases: list[_Canvas] = []
        self._texts, self._config = texts, config

    @property
    def complete(self) -> bool:
        return all(canvas.left == 0 for canvas in self.canvases)

    def scores(self) -> DenseScores:
        """The scores of the image, all windows being there."""
        if self._config.protocol != "highres":
            (canvas,) = self.canvases
            return DenseScores(canvas.mean(), canvas.size, self._texts)
        finest = max(self.canvases, key=lambda canvas: canvas.size)
        rows, columns = (padded_side(side) for side in finest.size)
        total = jnp.zeros((), jnp.float32)
        for canvas in self.canvases:
            taps = (
                linear_taps(canvas.size[0], finest.size[0], rows),
                linear_taps(canvas.size[1], finest.size[1], columns),
            )
            total = total + _resampled(canvas.mean(), *taps)
        features = _unit(total)
        if self._config.clusters:
            inside = np.zeros((rows, columns), bool)
            inside[: finest.size[0], : finest.size[1]] = True
            features = clustered(features, inside, self._config.clusters)
        scores = _cosines(features[None], jnp.asarray(self._texts.features))[0]
        return DenseScores(scores, finest.size, self._texts)


_resampled = jax.jit(resampled)
_unit = jax.jit(normalized)
