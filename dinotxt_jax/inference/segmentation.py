"""Open-vocabulary segmentation: each pixel gets the class whose text is most similar to the patch.

`inference.protocols` defines how an image is cut into windows and how patch tokens become scores;
this module encodes windows from many images in batches.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Iterator

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dinotxt_jax.config import SegmentationConfig
from dinotxt_jax.inference.canvas import Canvas
from dinotxt_jax.inference.dense import DenseScores, DenseTexts
from dinotxt_jax.inference.encoder import Encoder
from dinotxt_jax.inference.protocols import PROTOCOLS
from dinotxt_jax.runtime import processes


def segment(
    model: Encoder,
    images: Iterable[Image.Image],
    texts: DenseTexts,
    config: SegmentationConfig,
    batch_size: int,
) -> Iterator[DenseScores]:
    """Yields the scores of RGB images in input order; images are read lazily.

    Args:
        model: the model.
        images: RGB.
        texts: text features that pixels are compared with.
        config: protocol and sizes, already accepted by `protocols.check_protocol`.
        batch_size: number of windows encoded at once; a batch may span several images.

    Raises:
        UserError: an image is too narrow to be resized.
    """
    protocol, patch = PROTOCOLS[config.protocol], model.description.vision.patch_size
    # Canvases of each unfinished image, in image order.
    unfinished: collections.deque[list[Canvas]] = collections.deque()
    # Windows to encode: canvas for the map, top, left, pixels [s s 3].
    queue: list[tuple[Canvas, int, int, UInt8[np.ndarray, "s s 3"]]] = []

    def flush() -> Iterator[DenseScores]:
        """Encodes the queued windows, and yields the images whose last window was among them."""
        tokens = model.window_tokens(np.stack([pixels for *_, pixels in queue]), batch_size)
        # Texts stay on the host here, because tokens may be on devices from several processes.
        maps = protocol.window_maps(tokens, texts)
        if len(maps.sharding.device_set) > 1:
            maps = jnp.asarray(processes.on_host(maps))  # canvases are on the first device
        for row, (canvas, top, left, pixels) in enumerate(queue):
            canvas.add(maps, row, top, left, pixels.shape[0])
            # Yield immediately: canvases for a whole batch might not fit in memory.
            while unfinished and all(canvas.left == 0 for canvas in unfinished[0]):
                yield protocol.scores(unfinished.popleft(), texts, config)
        queue.clear()

    for image in images:
        levels = protocol.levels(image, config, patch, texts)
        canvases = [protocol.canvas(level, patch) for level in levels]
        unfinished.append(canvases)
        for level, canvas in zip(levels, canvases, strict=True):
            for top, left in level.starts:
                piece = level.pixels[top : top + level.side, left : left + level.side]
                queue.append((canvas, top, left, piece))
                if len(queue) == batch_size:
                    yield from flush()
    if queue:
        yield from flush()
