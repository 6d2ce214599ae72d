"""Reads training batches, agrees on them across processes, and places them before the step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.profiler import TraceAnnotation
from jax.sharding import Mesh
from jaxtyping import Int, Shaped, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.config import Config
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.feature_cache import CachedExample, FeatureCache
from dinotxt_jax.data.parallelism import training_threads
from dinotxt_jax.data.pipeline import (
    BadImageMonitor,
    ImageTextExample,
    TrainingIterator,
    make_training_iterator,
)
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.exchange import Exchange
from dinotxt_jax.runtime.termination import Termination
from dinotxt_jax.storage.faults import storage_fault
from dinotxt_jax.tokenizers import Tokenizer
from dinotxt_jax.training.texts import PreparedTexts, TextRows, TokenRows

# Polling interval in seconds: while waiting for a batch, check whether the devices are still busy.
_POLL = 0.001
# Examples per batch that are kept for the samples picture.
SAMPLES = 16


class Batch(NamedTuple):
    """A global batch, and the information that the training loop needs about it.

    Attributes:
        arrays: the batch for `Trainer.train_step`, on the mesh.
        token_rows: the rows that the text transformer computes for this batch.
        waited: seconds that this process waited for the batch while its devices were idle: for
            examples, for other processes, or for the copy to the devices.
        bad_images: number of images that all processes have skipped since training began.
        filtered: number of drawn examples that filters have excluded since training began, in all
            processes.
        exit_code: the exit code for a signal that any process received (`Termination`); the run
            then ends after this batch's step. 0 without a signal.
        indices: the examples that this process read for the batch.
        samples: this process's first pixels uint8[s h w 3] and token rows [s l], as passed to the
            model; None instead of pixels if backbone tokens are cached.
    """

    arrays: dict[str, jax.Array]
    token_rows: TokenRows
    waited: float
    bad_images: int
    filtered: int
    exit_code: int
    indices: Int[np.ndarray, " b"]
    samples: tuple[UInt8[np.ndarray, "s h w 3"] | None, Int[np.ndarray, "s l"]]


class _HostBatch(NamedTuple):
    """This process's share of a batch, before the processes exchange any information.

    Attributes:
        images: pixels uint8[b h w 3], or cached backbone tokens [b t d].
        texts: the captions.
        skipped: number of bad images skipped to fill the b rows.
        filtered: number of examples that filters excluded to fill the b rows.
        indices: the example index in each row.
    """

    images: Shaped[np.ndarray, "b ..."]
    texts: PreparedTexts
    skipped: int
    filtered: int
    indices: Int[np.ndarray, " b"]


class _Prepared(NamedTuple):
    """A batch on the mesh, and the data position after it."""

    batch: Batch
    position: dict[str, Any]


class _Agreement(NamedTuple):
    """The values that all processes must agree on before a batch is placed."""

    text_size: int
    skipped: int
    filtered: int
    exit_code: int


class ReadingError(processes.CommonError):
    """The next batch cannot be read; raised by all processes. The current state may be saved.

    Attributes:
        position: `Batches.get_state` after the last returned batch.
    """

    def __init__(self, error: UserError, position: dict[str, Any]):
        super().__init__(str(error), error.exit_code)
        self.position = position


class Batches(Iterator[Batch]):
    """Iterates over global batches up to the last step; all processes must advance it together.

    While the devices compute a step, a thread prepares the next batch: it reads the batch, agrees
    on it with all processes (over the coordination service, because the devices are busy with the
    step), packs the captions and places everything on the mesh. The training loop waits only if
    this takes longer than a step.

    With several processes, a signal or a failed check in any process is shared when the next batch
    is prepared, so it ends the run a step or two later.

    Args:
        config: the run's config.
        source: the training data.
        cache: backbone tokens for `source`; None reads images.
        tokenizer: the run's tokenizer.
        mesh: the mesh that receives the batches.
        termination: records a signal, which is then shared with all processes.
        check: called before each batch; if it raises a `UserError` in any process, all processes
            stop, and nothing may be saved afterwards.
    """

    def __init__(
        self,
        config: Config,
        source: Source,
        cache: FeatureCache | None,
        tokenizer: Tokenizer,
        mesh: Mesh,
        termination: Termination,
        check: Callable[[], None] = lambda: None,
    ):
        self._pairs = config.pairs_per_step
        self._accepts_changes = config.data.accept_changed
        self._mesh = mesh
        self._readers = sharding.batch_readers(mesh)
        self._termination = termination
        self._check = check
        self._image_name = "image" if cache is None else "features"
        self._texts = TextRows(config, tokenizer, source, mesh)
        self._examples = self._open_examples(config, source, cache, tokenizer)
        self._bad_images = BadImageMonitor(config.data.max_bad_fraction, len(source))
        self._steps = config.steps
        self._exchange = Exchange()
        self._thread = ThreadPoolExecutor(1, "batches")
        self._next: Future[_Prepared] | None = None
        self._position = self._read_position()
        self._check_failure: UserError | None = None
        self._in_flight: Any = None  # the type of arrays does not declare `is_ready`
        if self._pairs > len(source) and processes.is_first():
            logging.warning(
                "the %d pairs per step exceed the %d examples, so a batch contains the same image "
                "several times and contrasts it with itself; lower config.batch_size",
                self._pairs,
                len(source),
            )

    def _open_examples(
        self, config: Config, source: Source, cache: FeatureCache | None, tokenizer: Tokenizer
    ) -> TrainingIterator:
        make_example = (
            ImageTextExample(source, config.data, tokenizer.encode)
            if cache is None
            else CachedExample(cache, source, config.data, tokenizer.encode)
        )
        process = jax.process_index()
        return make_training_iterator(
            source,
            make_example,
            batch_size=self._pairs,
            seed=config.seed,
            parts=next(parts for parts, group in self._readers.items() if process in group),
            part_count=sharding.batch_parts(self._mesh),
            threads=training_threads(config.data),
            prefetch=config.data.prefetch,
            workers=config.data.workers if cache is None else 0,
        )

    def __next__(self) -> Batch:
        """Returns the next global batch.

        Raises:
            ReadingError: any process cannot read the examples, or too many images are bad.
            UserError: the check has failed in any process; all processes raise this error.
        """
        self._run_check()
        prepared, self._next = self._next or self._thread.submit(self._prepare), None
        with TraceAnnotation("wait for a batch"):
            waited = self._wait(prepared)
        batch, self._position = prepared.result()
        if self._position["data"]["next_step"] < self._steps:
            self._next = self._thread.submit(self._prepare)
        # A single process can react to a signal at once; several must react at the same step.
        exit_code = batch.exit_code if processes.several() else self._termination.exit_code
        return batch._replace(waited=waited, exit_code=exit_code)

    def started(self, result: jax.Array) -> None:
        """Notes that a step with the last batch has been started.

        `result`, any array that the step computes, tells `__next__` whether the devices are busy.
        """
        self._in_flight = result

    def _wait(self, prepared: Future[_Prepared]) -> float:
        """Waits for a batch; returns how many seconds the devices were idle meanwhile."""
        while self._in_flight is not None and not self._in_flight.is_ready():
            if wait([prepared], _POLL).done:
                return 0.0
        started = time.perf_counter()
        wait([prepared])
        return time.perf_counter() - started

    def _run_check(self) -> None:
        """Runs the check; a single process raises a failure now, several with the next batch."""
        try:
            self._check()
        except UserError as error:
            if not processes.several():
                raise
            self._check_failure = error

    def _prepare(self) -> _Prepared:
        """Reads a batch, agrees on it with the other processes, and places it on the mesh."""
        before = self._read_position()
        with TraceAnnotation("read a batch"):
            host, failure = self._read_unless(self._check_failure)
        with TraceAnnotation("agree on a batch"):
            agreed = self._agree(host, failure, before)
        assert host is not None  # without a batch, `_agree` has raised the failure
        try:
            self._bad_images.update(self._pairs, agreed.skipped, agreed.filtered)
        except UserError as error:
            raise ReadingError(error, before) from error
        pixels = host.images[:SAMPLES] if self._image_name == "image" else None
        samples = (pixels, host.texts.tokens[:SAMPLES])
        with TraceAnnotation("place a batch"):
            arrays, rows = self._place(host, agreed.text_size)
        counts = (self._bad_images.skipped, self._bad_images.filtered)
        batch = Batch(arrays, rows, 0.0, *counts, agreed.exit_code, host.indices, samples)
        return _Prepared(batch, self._read_position())

    def _read_unless(self, failure: UserError | None) -> tuple[_HostBatch | None, UserError | None]:
        """Reads this process's share of a batch, or returns why it cannot be read."""
        if failure is not None:
            return None, failure
        try:
            return self._read(), None
        except UserError as error:
            return None, error
        except Exception as error:
            failure = storage_fault(error)  # returned, so that `_agree` tells all processes
            if failure is None:
                raise
            return None, failure

    def get_state(self) -> dict[str, Any]:
        """Returns the data position after the last returned batch, as plain JSON."""
        return self._position

    def _read_position(self) -> dict[str, Any]:
        """Returns the data position after the last batch that was read, returned or not."""
        return {"data": self._examples.get_state(), "bad_images": self._bad_images.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continues after the batch at which `state` was saved.

        Raises:
            UserError: `state` has another batch size or seed, or another number of examples
                without `config.data.accept_changed`.
        """
        data = dict(state["data"])
        if self._accepts_changes:
            data["dataset_size"] = self._examples.get_state()["dataset_size"]
        self._examples.set_state(data)
        self._bad_images.set_state(state["bad_images"])
        self._position = self._read_position()

    def close(self) -> None:
        """Stops threads and worker processes."""
        self._exchange.close()
        self._thread.shutdown()
        self._examples.close()

    def _read(self) -> _HostBatch:
        rows = next(self._examples)
        texts = self._texts.prepare(rows["tokens"])
        counts = (int(rows["skipped"].sum()), int(rows["filtered"].sum()))
        return _HostBatch(rows[self._image_name], texts, *counts, rows["index"])

    def _agree(
        self, host: _HostBatch | None, failure: UserError | None, position: dict[str, Any]
    ) -> _Agreement:
        """Makes all common decisions in a single exchange, so that all processes run equal steps.

        Raises:
            ReadingError: any process failed to read the batch.
            UserError: the check failed in any process.
        """
        sizes, counts, checked, exit_codes, sentences, codes = zip(
            *self._exchange.gathered(
                [
                    0 if host is None else host.texts.size,
                    (0, 0) if host is None else (host.skipped, host.filtered),
                    self._check_failure is None,
                    self._termination.exit_code,
                    "" if failure is None else str(failure),
                    0 if failure is None else failure.exit_code,
                ]
            ),
            strict=True,
        )  # each tuple has an item per process
        try:
            if failure is not None and not processes.several():
                raise failure
            processes.raise_common(failure, list(zip(sentences, codes, strict=True)))
        except UserError as error:
            if all(checked):
                raise ReadingError(error, position) from error
            raise
        # All processes in a group read the same rows, so count only the group's first process.
        skipped, filtered = np.sum([counts[group[0]] for group in self._readers.values()], 0)
        return _Agreement(
            text_size=max(sizes),
            skipped=int(skipped),
            filtered=int(filtered),
            exit_code=max(exit_codes),
        )

    def _place(self, host: _HostBatch, text_size: int) -> tuple[dict[str, jax.Array], TokenRows]:
        arrays, token_rows = self._texts.arrange(host.texts, text_size)
        host_arrays = arrays | {self._image_name: host.images}
        return sharding.global_batch(host_arrays, self._mesh), token_rows
