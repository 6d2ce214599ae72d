"""Open-vocabulary segmentation: each pixel gets the class whose text is most similar to the patch.

`inference.protocols` defines how an image is cut into windows and how patch tokens become scores;
this module encodes windows from many images in batches.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.inference.canvas import Canvas
from dinotxt_jax.inference.dense import DenseScores, DenseTexts
from dinotxt_jax.inference.encoder import Encoder
from dinotxt_jax.inference.protocols import PROTOCOLS
from dinotxt_jax.runtime import processes


class _Window(NamedTuple):
    """A square window to encode, and its place (pixels) on the canvas for its map."""

    canvas: Canvas
    top: int
    left: int
    pixels: UInt8[np.ndarray, "s s 3"]


def segment(
    model: Encoder,
    images: Iterable[Image.Image],
    texts: DenseTexts,
    config: SegmentationConfig,
    batch_size: int,
) -> Iterator[DenseScores]:
    """Yields the scores of RGB images in input order; arguments as for `segment_batches`."""
    batches = segment_batches(model, images, texts, config, batch_size)
    return itertools.chain.from_iterable(batches)


def segment_batches(
    model: Encoder,
    images: Iterable[Image.Image],
    texts: DenseTexts,
    config: SegmentationConfig,
    batch_size: int,
) -> Iterator[Iterator[DenseScores]]:
    """Yields, after each batch of windows, the scores of the images that it completes, in order.

    The processes that share the model's mesh must all call it, each with images of its own (those
    of a group in `model.readers` with the same). Each fills its rows of every batch, and makes as
    many batches as the process with the most windows. The scores of an image do not depend on the
    other images.

    Args:
        model: the model.
        images: RGB, read lazily.
        texts: text features that pixels are compared with.
        config: protocol and sizes, already accepted by `protocols.check_protocol`.
        batch_size: number of windows encoded at once, by all processes; a batch may span several
            images.

    Yields:
        An iterator, which must be exhausted before the next one is asked for.

    Raises:
        UserError: an image is too narrow to be resized, or reading it raises the error; all
            processes that share the mesh raise an error then.
    """
    features = model.dense_features(config.features, "segmentation")
    protocol, patch = PROTOCOLS[config.protocol], model.description.vision.patch_size
    rows = model.window_rows(batch_size)
    # Canvases of each unfinished image, in image order.
    unfinished: collections.deque[list[Canvas]] = collections.deque()

    def windows() -> Iterator[_Window]:
        for image in images:
            levels = protocol.levels(image, config, patch, texts)
            canvases = [protocol.canvas(level, patch) for level in levels]
            unfinished.append(canvases)
            for level, canvas in zip(levels, canvases, strict=True):
                for top, left in level.starts:
                    piece = level.pixels[top : top + level.side, left : left + level.side]
                    yield _Window(canvas, top, left, piece)

    def completed(
        batch: Sequence[_Window], maps: Float[Array, "r gh gw c"]
    ) -> Iterator[DenseScores]:
        for row, (canvas, top, left, pixels) in enumerate(batch):
            canvas.add(maps, row, top, left, pixels.shape[0])
            # Yield immediately: canvases for a whole batch might not fit in memory.
            while unfinished and all(canvas.left == 0 for canvas in unfinished[0]):
                yield protocol.scores(unfinished.popleft(), texts, config)

    for batch, pixels in _filled(model, windows(), rows):
        # Texts stay on the host here, because tokens may be on devices from several processes.
        maps = protocol.window_maps(model.window_tokens(pixels, features), texts)
        yield completed(batch, model.own_rows(maps))


def _filled(
    model: Encoder, windows: Iterator[_Window], rows: int
) -> Iterator[tuple[list[_Window], UInt8[np.ndarray, "r s s 3"]]]:
    """Yields this process's windows of each batch, alone and padded with blank windows to `rows`.

    Ends when no process that shares the mesh has windows left. A `UserError` in one process is
    raised in all, which would wait for it.
    """
    while True:
        batch: list[_Window] = []
        failure = None
        try:
            batch.extend(itertools.islice(windows, rows))
        except UserError as error:
            failure = error
        side = batch[0].pixels.shape[0] if batch else 0
        if model.is_shared:
            sides, failed = processes.gathered([side, failure is not None]).T
            if failed.any():
                processes.agree(failure)
            side = int(sides.max())  # a process without windows learns their side
        elif failure is not None:
            raise failure
        if side == 0:
            return
        pixels = np.zeros((rows, side, side, 3), np.uint8)
        for row, window in enumerate(batch):
            pixels[row] = window.pixels
        yield batch, pixels
