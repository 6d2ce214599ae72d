"""Evaluation batches: images in order, each read only by processes that encode it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8

from dinotxt_jax.data.bad_images import BadImageError, bad_in_evaluation
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.pipeline import in_threads
from dinotxt_jax.data.train_views import decoded_image
from dinotxt_jax.data.transforms import EvalTransform


def evaluation_batches(
    source: Source,
    transform: EvalTransform,
    batch_size: int,
    threads: int = 16,
    rows: Sequence[int] | None = None,
    held: Sequence[int] | None = None,
) -> Iterator[UInt8[np.ndarray, "b s s 3"]]:
    """Yields image batches for the examples `rows` in order.

    Each example is used once. The last batch may be shorter.

    Args:
        source: the examples.
        transform: prepares an image; its config says how images are decoded.
        batch_size: number of images per batch.
        threads: number of threads that read and decode.
        rows: the examples.
        held: rows of each batch that are read, as in `held_batches`.

    Raises:
        UserError: an image cannot be read or decoded (skipping it would change the result).
    """

    def load(index: int) -> UInt8[np.ndarray, "s s 3"]:
        try:
            return transform(decoded_image(source[index], transform.config))
        except BadImageError as error:
            raise bad_in_evaluation(index, error) from error

    side = transform.config.image_size
    indices = range(len(source)) if rows is None else rows
    blank = np.zeros((side, side, 3), np.uint8)
    return held_batches(indices, load, blank, batch_size, threads, held)


def held_batches(
    indices: Sequence[int],
    load: Callable[[int], Shaped[np.ndarray, "..."]],
    blank: Shaped[np.ndarray, "..."],
    batch_size: int,
    threads: int,
    held: Sequence[int] | None,
) -> Iterator[Shaped[np.ndarray, "b ..."]]:
    """Yields array batches, loading in threads only the rows that this process needs.

    When several processes share batches, each process loads the rows for its own devices.

    Args:
        indices: example indices, in order.
        load: loads an example's array.
        blank: array for rows that are not loaded, with the same shape and dtype as loaded rows.
        batch_size: number of rows per batch; the last batch may be shorter.
        threads: number of threads.
        held: batch rows to load, ascending; None loads all rows.
    """
    positions = range(batch_size) if held is None else held
    starts = range(0, len(indices), batch_size)
    loaded = [
        indices[start + row] for start in starts for row in positions if start + row < len(indices)
    ]
    arrays = in_threads(loaded, load, threads, 2 * len(positions))
    for start in starts:
        rows = [blank] * min(batch_size, len(indices) - start)
        for row in positions:
            if row < len(rows):
                rows[row] = next(arrays)
        yield np.stack(rows)
