"""Measures the input pipeline, by stage and as a whole, and recommends a setting to change."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from dinotxt_jax.config import DataConfig
from dinotxt_jax.config.data import EXACT, FAST
from dinotxt_jax.data.bad_images import BadImageError, too_many_bad
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.mixture import shares_of
from dinotxt_jax.data.order import Draw, Turns
from dinotxt_jax.data.parallelism import decoding_workers, training_threads
from dinotxt_jax.data.pipeline import ImageTextExample, make_training_iterator
from dinotxt_jax.data.train_views import TrainViews
from dinotxt_jax.data.transforms import is_random
from dinotxt_jax.runtime.cpus import available_cpus
from dinotxt_jax.runtime.progress import progress_bar

READ, DECODE, RESIZE, TOKENIZE, ASSEMBLE = (
    "read",
    "decode",
    "crop and resize",
    "tokenize",
    "assemble",
)
# Advice for each stage, if the stage keeps the CPUs busy.
_CURES = {
    READ: "convert the data to array_record or webdataset files (config.data.source)",
    DECODE: "store smaller images, or encode them once: run python -m dinotxt_jax.precompute and "
    "set config.features",
    RESIZE: "encode the images once: run python -m dinotxt_jax.precompute and set config.features",
    TOKENIZE: "lower config.tokenizer.context_length or shorten the captions",
    ASSEMBLE: "lower config.data.image_size",
}
# Smaller speed ratios are within the measurement noise.
_NOTICEABLE = 1.1
_ROWS = 64

ResultT = TypeVar("ResultT")


@dataclasses.dataclass
class Stage:
    """The time that a single thread takes for a stage.

    Attributes:
        name: the stage.
        seconds: wall time per image.
        cpu_seconds: CPU time per image, including threads that libraries start; less than `seconds`
            if the stage waits for storage.
    """

    name: str
    seconds: float = 0.0
    cpu_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class PipelineRate:
    """The whole pipeline's speed in images per second, with these thread and worker counts."""

    threads: int
    workers: int
    images_per_second: float


@dataclasses.dataclass(frozen=True)
class InputSpeed:
    """The measurements that `measure_input` returns.

    Attributes:
        config: the data settings.
        stages: the stages, in order.
        configured: the pipeline as configured.
        alternative: the pipeline with workers if `config` has no workers, otherwise with threads
            only.
        cpus: number of CPUs that the process may use.
    """

    config: DataConfig
    stages: Sequence[Stage]
    configured: PipelineRate
    alternative: PipelineRate
    cpus: int

    @property
    def limit(self) -> float:
        """Upper bound in images per second: the stages keep all CPUs busy, nothing else runs."""
        return self.cpus / max(sum(stage.cpu_seconds for stage in self.stages), 1e-9)

    def lines(self) -> Iterator[str]:
        """Yields the report: a table, and a sentence about the bottleneck."""
        total = sum(stage.seconds for stage in self.stages)
        yield f"{'stage (one thread)':28} images/s   share"
        for stage in self.stages:
            rate, share = 1 / max(stage.seconds, 1e-9), stage.seconds / total
            yield f"{stage.name:28} {rate:8,.0f}   {share:5.0%}"
        yield f"{'all stages':28} {1 / total:8,.0f}"
        yield f"{'whole pipeline':28} images/s"
        for pipeline in (self.configured, self.alternative):
            label = f"{pipeline.threads} threads, {pipeline.workers} workers"
            note = "   (the settings)" if pipeline is self.configured else ""
            yield f"{label:28} {pipeline.images_per_second:8,.0f}{note}"
        yield f"{f'limit of {self.cpus} CPUs':28} {self.limit:8,.0f}"
        yield self.bottleneck()

    def bottleneck(self) -> str:
        """Returns a sentence that names the bottleneck and the setting to change."""
        slowest = max(self.stages, key=lambda stage: stage.seconds)
        share = slowest.seconds / sum(stage.seconds for stage in self.stages)
        start = f"bottleneck: {slowest.name} ({share:.0%} of the time per image)"
        if slowest.name == READ and slowest.cpu_seconds < slowest.seconds / 2:
            threads = 2 * self.configured.threads
            return f"{start}, which waits for storage; set --config.data.threads={threads}."
        if (
            slowest.name in (DECODE, RESIZE)
            and self.config.decoder == EXACT
            and is_random(self.config)
        ):
            return f"{start}; set --config.data.decoder={FAST} (pixels change slightly)."
        gain = self.alternative.images_per_second / self.configured.images_per_second
        if gain > _NOTICEABLE:
            workers = self.alternative.workers
            return (
                f"bottleneck: {self.configured.workers} worker processes, since {workers} are "
                f"{gain:.1f} times as fast; set --config.data.workers={workers}."
            )
        return f"{start} on {self.cpus} CPUs; use more CPUs, or {_CURES[slowest.name]}."


def measure_input(
    source: Source,
    config: DataConfig,
    tokenize: Callable[[str], np.ndarray],
    *,
    examples: int,
    seed: int,
) -> InputSpeed:
    """Measures the input pipeline on the first examples that a new run would use.

    Args:
        source: the examples.
        config: the data settings.
        tokenize: converts a caption to token IDs.
        examples: number of examples per measurement.
        seed: the run's seed.

    Raises:
        UserError: too many images are bad.
    """
    make_example = ImageTextExample(source, config, tokenize)
    threads, workers = training_threads(config), decoding_workers(config.workers)
    alternative_workers = 0 if workers else available_cpus()
    with progress_bar(3 * examples, 0, "image", "measuring") as bar:
        stages = _measure_stages(source, config, tokenize, examples, seed, bar)

        def rate(workers: int) -> PipelineRate:
            """Measures the whole pipeline with `workers` worker processes."""
            iterator = make_training_iterator(
                source,
                make_example,
                batch_size=_ROWS,
                seed=seed,
                threads=threads,
                prefetch=config.prefetch,
                workers=workers,
            )
            try:
                return PipelineRate(
                    threads, workers, _images_per_second(iterator, workers, examples, bar)
                )
            finally:
                iterator.close()

        configured, alternative = rate(workers), rate(alternative_workers)
    return InputSpeed(config, stages, configured, alternative, available_cpus())


def _images_per_second(
    batches: Iterator[dict[str, np.ndarray]], workers: int, examples: int, bar: tqdm
) -> float:
    for _ in range(1 + workers):  # warm-up: threads and workers start and import modules
        next(batches)
    count, start = -(-examples // _ROWS), time.perf_counter()
    for _ in range(count):
        next(batches)
        bar.update(min(_ROWS, bar.total - bar.n))
    return count * _ROWS / (time.perf_counter() - start)


def _measure_stages(
    source: Source,
    config: DataConfig,
    tokenize: Callable[[str], np.ndarray],
    examples: int,
    seed: int,
    bar: tqdm,
) -> list[Stage]:
    """Runs the stages sequentially in this thread; skips bad images."""
    stages = {name: Stage(name) for name in (READ, DECODE, RESIZE, TOKENIZE, ASSEMBLE)}
    views, bad = TrainViews(config), 0
    rows: list[np.ndarray] = []
    turns = Turns(shares_of(source), _ROWS, seed, True, (0,), 1, first_step=0)

    def timed(name: str, function: Callable[[], ResultT]) -> ResultT:
        stage, wall, cpu = stages[name], time.perf_counter(), time.process_time()
        result = function()
        stage.seconds += (time.perf_counter() - wall) / examples
        stage.cpu_seconds += (time.process_time() - cpu) / examples
        return result

    def prepared(draw: Draw) -> np.ndarray:
        example = timed(READ, lambda: source[draw.index])
        decoded = timed(DECODE, lambda: views.decode(example, draw))
        view = timed(RESIZE, lambda: views.finish(decoded))
        timed(TOKENIZE, lambda: tokenize(example.captions[0]))
        return view

    for number in range(-1, examples):
        if number == 0:  # discard the warm-up example -1, which imported the libraries
            stages.update({name: Stage(name) for name in stages})
            rows.clear()
        try:
            rows.append(prepared(turns[max(number, 0)]))
        except BadImageError:
            bad += number >= 0
        if rows and (len(rows) == _ROWS or number == examples - 1):
            timed(ASSEMBLE, lambda: np.stack(rows))
            rows.clear()
        bar.update(number >= 0)
    if bad > examples / 2:
        raise too_many_bad(bad, examples, config.max_bad_fraction)
    return list(stages.values())
