"""Training batches: read, agreed on by all processes, and placed on the mesh."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh
from jaxtyping import Int, Shaped, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.config import Config
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.feature_cache import CachedExample, FeatureCache
from dinotxt_jax.data.pipeline import (
    BadImageMonitor,
    ImageTextExample,
    TrainingIterator,
    make_training_iterator,
)
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.termination import Termination
from dinotxt_jax.storage.faults import storage_fault
from dinotxt_jax.tokenizers import Tokenizer
from dinotxt_jax.training.texts import PreparedTexts, TextRows, TokenRows

# Examples of a batch that are kept for a picture.
SAMPLES = 16


class Batch(NamedTuple):
    """One global batch, and the information that the training loop needs about it.

    Attributes:
        arrays: the batch for `Trainer.train_step`, on the mesh.
        token_rows: the rows that the text transformer computes for this batch.
        waited: seconds that this process waited for examples.
        bad_images: images that all processes have skipped since training began.
        exit_code: the exit code for a signal that any process received (`Termination`), after
            which the step with this batch is the last; 0 without a signal.
        indices: the examples that this process read for the batch.
        samples: this process's first pixels uint8[s h w 3] and token rows [s l], as they enter the
            model; no pixels where backbone tokens are cached.
    """

    arrays: dict[str, jax.Array]
    token_rows: TokenRows
    waited: float
    bad_images: int
    exit_code: int
    indices: Int[np.ndarray, " b"]
    samples: tuple[UInt8[np.ndarray, "s h w 3"] | None, Int[np.ndarray, "s l"]]


class _HostBatch(NamedTuple):
    """One process's share of a batch, before it depends on other processes.

    Attributes:
        images: pixels uint8[b h w 3], or cached backbone tokens [b t d].
        texts: the captions.
        skipped: bad images that were skipped to fill the b rows.
        indices: the example in each row.
    """

    images: Shaped[np.ndarray, "b ..."]
    texts: PreparedTexts
    skipped: int
    indices: Int[np.ndarray, " b"]


class _Agreement(NamedTuple):
    """The values that all processes must agree on before a batch is placed."""

    text_size: int
    skipped: int
    exit_code: int


class ReadingError(processes.CommonError):
    """The next batch cannot be read; all processes raise it, and the state may be saved first.

    Attributes:
        position: `Batches.get_state` after the last batch that was returned.
    """

    def __init__(self, error: UserError, position: dict[str, Any]):
        super().__init__(str(error), error.exit_code)
        self.position = position


class Batches(Iterator[Batch]):
    """Endless iterator over global batches; all processes must advance it together.

    A batch is made in two stages. `_read` involves only this process, so it may run ahead of the
    train step. `_agree` and `_place` are collective: they follow the step order.

    Args:
        config: the run's config.
        source: the training data.
        cache: backbone tokens of `source`; None reads images.
        tokenizer: the run's tokenizer.
        mesh: the mesh that receives the batches.
        termination: records a signal, which is then shared with all processes.
        check: called before each batch; a `UserError` that it raises in any process ends all, and
            nothing may be saved after it.
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
        if self._pairs > len(source) and processes.is_first():
            logging.warning(
                "the %d pairs of a step exceed the %d examples, so a batch contains "
                "images more than once and contrasts them with themselves; lower config.batch_size",
                self._pairs,
                len(source),
            )

    def _open_examples(
        self, config: Config, source: Source, cache: FeatureCache | None, tokenizer: Tokenizer
    ) -> TrainingIterator:
        make_example = (
            ImageTextExample(source, config.data, tokenizer.encode)
            if cache is None
            else CachedExample(cache, source, tokenizer.encode)
        )
        process = jax.process_index()
        return make_training_iterator(
            source,
            make_example,
            batch_size=self._pairs,
            seed=config.seed,
            parts=next(parts for parts, group in self._readers.items() if process in group),
            part_count=sharding.batch_parts(self._mesh),
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            workers=config.data.workers if cache is None else 0,
        )

    def __next__(self) -> Batch:
        """Returns the next global batch.

        Raises:
            ReadingError: any process cannot read the examples, or too many images are bad.
            UserError: the check in any process has failed; all processes raise it.
        """
        started = time.perf_counter()
        size = skipped = 0
        position, is_checked = self.get_state(), False
        failure: UserError | None = None
        try:
            self._check()
            is_checked = True
            host = self._read()
            size, skipped = host.texts.size, host.skipped
        except UserError as error:
            failure = error
        except Exception as error:
            failure = storage_fault(error)  # all processes have to hear of it
            if failure is None:
                raise
        waited = time.perf_counter() - started  # for data, not for other processes
        agreed = self._agree(size, skipped, failure, is_checked, position)
        try:
            bad_images = self._bad_images.update(self._pairs, agreed.skipped)
        except UserError as error:
            raise ReadingError(error, position) from error
        arrays, token_rows = self._place(host, agreed.text_size)
        pixels = host.images[:SAMPLES] if self._image_name == "image" else None
        samples = (pixels, host.texts.tokens[:SAMPLES])
        return Batch(
            arrays, token_rows, waited, bad_images, agreed.exit_code, host.indices, samples
        )

    def get_state(self) -> dict[str, Any]:
        """Returns the position after the last returned batch, as plain JSON."""
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

    def close(self) -> None:
        """Stops threads and worker processes."""
        self._examples.close()

    def _read(self) -> _HostBatch:
        rows = next(self._examples)
        texts = self._texts.prepare(rows["tokens"])
        return _HostBatch(rows[self._image_name], texts, int(rows["skipped"].sum()), rows["index"])

    def _agree(
        self,
        size: int,
        skipped: int,
        failure: UserError | None,
        is_checked: bool,
        position: dict[str, Any],
    ) -> _Agreement:
        """Makes all decisions in one exchange: every process must compile and run the same step."""
        everywhere = processes.gathered(
            [size, skipped, failure is not None, is_checked, self._termination.exit_code]
        )
        sizes, skips, failures, checked, exit_codes = everywhere.T  # each [processes]
        if failures.any():
            try:
                processes.agree(failure)
            except UserError as error:
                if checked.all():
                    raise ReadingError(error, position) from error
                raise
        return _Agreement(
            text_size=int(sizes.max()),
            # All processes in a group read the same rows, so only the first one counts.
            skipped=sum(int(skips[group[0]]) for group in self._readers.values()),
            exit_code=int(exit_codes.max()),
        )

    def _place(self, host: _HostBatch, text_size: int) -> tuple[dict[str, jax.Array], TokenRows]:
        arrays, token_rows = self._texts.arrange(host.texts, text_size)
        whole = arrays | {self._image_name: host.images}
        return sharding.global_batch(whole, self._mesh), token_rows
