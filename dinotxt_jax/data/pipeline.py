"""The Grain training pipeline (batches, resume, bad images), and evaluation batches.

Row r in the global batch at step s does not depend on the number of processes, threads or workers,
nor on interruptions (see `dinotxt_jax.data.order`).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable, Generator, Sequence, Sized
from typing import TYPE_CHECKING, TypeVar

import grain
import numpy as np
from absl import flags, logging
from grain.experimental import RebatchIterDataset, ThreadPrefetchIterDataset

from dinotxt_jax.data.bad_images import (
    BadImageError,
    BadImageMonitor,
    bad_in_evaluation,
    most_tries,
    nothing_passes,
    too_many_bad,
)
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.mixture import Part, part_number, shares_of, source_parts
from dinotxt_jax.data.order import MAX_EXAMPLES, Dealt, Draw, Turns
from dinotxt_jax.data.parallelism import decoding_threads, decoding_workers
from dinotxt_jax.data.selection import FilteredError, Selection
from dinotxt_jax.data.train_views import TrainViews
from dinotxt_jax.data.transforms import image_size
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import termination

if TYPE_CHECKING:
    from dinotxt_jax.config import DataConfig

__all__ = [
    "BadImageMonitor",
    "Draw",
    "ImageTextExample",
    "TrainingIterator",
    "in_threads",
    "make_training_iterator",
]

# Grain's error for a worker that died, and how many times in a row the workers are restarted.
_KILLED = re.compile(r"worker process( \d+)? was terminated unexpectedly", re.IGNORECASE)
_RESTARTS = 3
# If this many random examples in a row are filtered out, the filter passes practically nothing.
_MOST_FILTERED = 10_000
# Rows that a worker sends at once, 10 MB with 224 px images. A worker holds at most three chunks,
# so a hundred workers need no more memory than a large model's batches.
_CHUNK = 64
# Examples that a thread makes before it hands them over.
_TOGETHER = 8

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def _examples_together(rows: int, most: int) -> int:
    """Returns how many examples a thread makes before it hands them over.

    Fewer exchanges between threads leave more of Python's global lock to decoding. The number
    divides `rows`, so that an error in a batch does not delay the previous batch.
    """
    return max(n for n in range(1, max(1, min(most, _TOGETHER)) + 1) if rows % n == 0)


class TrainingIterator(grain.DatasetIterator[dict[str, np.ndarray]]):
    """Yields batches endlessly; the saved state is only the next step, without any Grain state.

    A saved state can therefore be restored with any number of processes, threads or workers.
    """

    def __init__(
        self,
        turns: Turns,
        make_example: Callable[[Draw], dict[str, np.ndarray]],
        *,
        threads: int,
        prefetch: int,
        workers: int,
    ) -> None:
        super().__init__()
        self._turns = turns
        self._make_example = make_example
        self._threads, self._prefetch, self._workers = threads, prefetch, workers
        self._next_step = turns.first_step
        self._batches: grain.DatasetIterator[dict[str, np.ndarray]] | None = None

    def __next__(self) -> dict[str, np.ndarray]:
        """Returns the next batch; restarts the workers if a worker was killed.

        Raises:
            UserError: workers were killed several times in a row.
        """
        batch = self._retried(_RESTARTS)
        self._next_step += 1
        return batch

    def _retried(self, restarts: int) -> dict[str, np.ndarray]:
        if self._batches is None:
            self._batches = self._started()
        try:
            return next(self._batches)
        except BaseException as error:
            self._stop()  # the next call retries this step, so no step is skipped
            if not (isinstance(error, RuntimeError) and _KILLED.search(str(error))):
                raise
            killed = error
        if not restarts:
            raise UserError(
                f"decoding workers were killed {_RESTARTS + 1} times in a row ({killed}), usually "
                "for lack of memory; lower config.data.workers or config.data.prefetch."
            ) from killed
        logging.warning("a decoding worker was killed (%s): restarting the workers", killed)
        return self._retried(restarts - 1)

    def _started(self) -> grain.DatasetIterator[dict[str, np.ndarray]]:
        turns = dataclasses.replace(self._turns, first_step=self._next_step)
        split = max(1, self._workers)
        threads = -(-self._threads // split)
        if self._workers and threads == 1:
            threads = 0  # decode in the worker's main thread, which would otherwise only wait
        prefetch = max(threads, -(-self._prefetch // split))
        chunk = min(turns.rows, _CHUNK) if self._workers else turns.rows
        together = _examples_together(chunk, prefetch // max(threads, 1))
        reading = grain.ReadOptions(
            num_threads=threads, prefetch_buffer_size=max(threads, prefetch // together)
        )
        draws = turns if not self._workers else Dealt(turns, self._workers, chunk, together)
        parts = (
            grain.MapDataset.source(draws)
            .map(self._make_example)
            .batch(together, drop_remainder=True)
        )
        examples = RebatchIterDataset(parts.to_iter_dataset(reading), chunk)
        if not self._workers:
            return iter(ThreadPrefetchIterDataset(examples, prefetch_buffer_size=1))
        if not flags.FLAGS.is_parsed():  # Grain reads flags, which only absl.app parses
            flags.FLAGS.mark_as_parsed()
        # A worker sends a whole chunk at once, as a single shared memory block per array.
        options = grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=1)
        chunks = examples.mp_prefetch(options, termination.ignore)
        batches = RebatchIterDataset(chunks, turns.rows)
        return iter(ThreadPrefetchIterDataset(batches, prefetch_buffer_size=1))

    def get_state(self) -> dict[str, int]:
        turns = self._turns
        return {
            "next_step": self._next_step,
            "batch_size": turns.batch_size,
            "dataset_size": turns.dataset_size,
            "seed": turns.seed,
        }

    def set_state(self, state: dict[str, int]) -> None:
        """Continues from the position saved in `state`.

        Raises:
            UserError: `state` was saved with a different batch size, seed or number of examples.
        """
        current = self.get_state()
        for name in ("batch_size", "dataset_size", "seed"):
            if state[name] != current[name]:
                raise UserError(
                    f"the saved data position has {name} {state[name]}, this run has "
                    f"{current[name]}, and a position is valid only for equal values; resume with "
                    "the original data and config, or start in a new work directory."
                )
        self._stop()
        self._next_step = int(state["next_step"])

    def _stop(self) -> None:
        if self._batches is not None:
            self._batches.close()
            self._batches = None

    def close(self) -> None:
        """Stops the threads and worker processes."""
        self._closed = True
        self._stop()


def make_training_iterator(
    source: Sized,
    make_example: Callable[[Draw], dict[str, np.ndarray]],
    *,
    batch_size: int,
    seed: int,
    parts: Sequence[int] = (0,),
    part_count: int = 1,
    threads: int = 16,
    prefetch: int = 64,
    workers: int = 0,
    shuffle: bool = True,
) -> TrainingIterator:
    """Returns an endless iterator, from step 0, over this process's share in every global batch.

    Args:
        source: any object whose length is the number of examples; in a `Mixture`, the order follows
            the source weights.
        make_example: makes the arrays for one example, e.g. `ImageTextExample`; called from many
            threads, and pickled if there are workers.
        batch_size: number of rows in the global batch.
        seed: non-negative seed for the order, the augmentation and the caption choice.
        parts: ascending numbers among `part_count` equal parts of the batch rows (the parts that
            `sharding.batch_readers` lists for this process).
        part_count: number of equal parts.
        threads: total threads that call `make_example`, over all workers (0: no threads, -1: chosen
            by `decoding_threads`).
        prefetch: number of examples prepared ahead.
        workers: number of processes that prepare examples (0: only threads, -1: chosen by
            `decoding_workers`).
        shuffle: whether to shuffle each epoch differently or always keep the source order.

    Raises:
        UserError: there are no examples or more than 2^62, or the batch size is not divisible
            by `part_count`.
    """
    size = len(source)
    if not 0 < size <= MAX_EXAMPLES:
        raise UserError(
            f"the data has {size} examples, expected 1 to {MAX_EXAMPLES}; correct config.data."
        )
    if batch_size < 1 or batch_size % part_count:
        raise UserError(
            f"the global batch of {batch_size} does not divide into {part_count} parts, expected "
            f"a multiple of {part_count}; change config.batch_size or config.mesh."
        )
    shares = shares_of(source)
    turns = Turns(shares, batch_size, seed, shuffle, tuple(parts), part_count, first_step=0)
    return TrainingIterator(
        turns,
        make_example,
        threads=decoding_threads(threads),
        prefetch=prefetch,
        workers=decoding_workers(workers),
    )


class ImageTextExample:
    """Reads, augments and tokenizes the example for a draw.

    If an image cannot be decoded, this logs it once and uses a random other example from the same
    source instead (`Draw.substitutes`), with that example's captions and augmentation. The same
    happens if the source's filters exclude the example. The search ends with a `UserError` after
    more bad images than `max_bad_fraction` explains (`most_tries`), or after too many filtered
    examples. With `evaluated`, every bad image raises an error, because skipping it would change
    the evaluation result.

    Returns a dict with image uint8 [s s 3] (not normalised), tokens int32 [l], index int64 (the
    example used), skipped int32 (1 if the drawn image was bad, otherwise 0) and filtered int32 (1
    if the filters excluded the drawn example, otherwise 0).
    """

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        tokenize: Callable[[str], np.ndarray],
        *,
        evaluated: bool = False,
    ) -> None:
        self._source = source
        self._parts = source_parts(source, config)
        self._views = TrainViews(config)
        self._tokenize = tokenize
        self._evaluated = evaluated
        self._max_bad_fraction = config.max_bad_fraction
        self._named: dict[int, object] = {}

    def __call__(self, draw: Draw) -> dict[str, np.ndarray]:
        part = self._parts[part_number(self._parts, draw.index)]
        pixels, caption, used, first_error = self._first_good(draw, part)
        filtered = isinstance(first_error, FilteredError)
        return {
            "image": pixels,
            "tokens": np.asarray(self._tokenize(caption), np.int32),
            "index": np.asarray(used.index, np.int64),
            "skipped": np.asarray(first_error is not None and not filtered, np.int32),
            "filtered": np.asarray(filtered, np.int32),
        }

    def _first_good(self, draw: Draw, part: Part) -> tuple[np.ndarray, str, Draw, Exception | None]:
        """Returns pixels, caption, the draw used, and the first draw's error if it was replaced."""
        share = part.share
        most = most_tries(self._max_bad_fraction, share.size)
        bad = filtered = 0
        first_error: Exception | None = None
        for index in itertools.chain([draw.index], draw.substitutes(share.first, share.size)):
            used = dataclasses.replace(draw, index=index)
            try:
                return *self._read(used, part.selection), used, first_error
            except FilteredError as error:
                filtered += 1
                first_error = first_error or error
            except BadImageError as error:
                if self._evaluated:
                    raise bad_in_evaluation(index, error) from error
                self._name_once(index, error)
                bad += 1
                first_error = first_error or error
            if bad == most or filtered == _MOST_FILTERED:
                break
        if filtered and bad < most:
            raise nothing_passes(filtered, part.section)
        limit = self._max_bad_fraction
        raise too_many_bad(bad, share.size if most >= limit * share.size else bad, limit)

    def _read(self, draw: Draw, selection: Selection) -> tuple[np.ndarray, str]:
        example = self._source[draw.index]
        caption = selection.caption(draw, example.captions)
        if selection.has_size_filter:
            selection.check_size(*image_size(example.image))  # before the image is decoded
        return self._views.finish(self._views.decode(example, draw)), caption

    def _name_once(self, index: int, error: BadImageError) -> None:
        marker = object()
        # `setdefault` is atomic, so that only one thread logs the image.
        if self._named.setdefault(index, marker) is marker:
            logging.warning("skipped a bad image, example %d: %s", index, error)


def in_threads(
    items: Sequence[ItemT], function: Callable[[ItemT], ResultT], threads: int, prefetch: int
) -> Generator[ResultT, None, None]:
    """Yields function(item) for every item, in order, with up to `prefetch` computed ahead.

    `threads` is the number of threads; -1 means the number that `decoding_threads` chooses.
    """
    threads = decoding_threads(threads)
    reading = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, prefetch))
    results = iter(grain.MapDataset.source(items).map(function).to_iter_dataset(reading))
    try:
        yield from results
    finally:
        results.close()
