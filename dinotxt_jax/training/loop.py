"""Training from a config and a work directory: start or resume, log, evaluate, save, export."""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import logging
from jax.sharding import Mesh
from tqdm import tqdm

from dinotxt_jax import sharding
from dinotxt_jax.config import DTYPE_NAMES, Config, DataConfig, check_image_size
from dinotxt_jax.data.examples import Source, check_images_found
from dinotxt_jax.data.feature_cache import (
    CachedExample,
    FeatureCache,
    cache_description,
    task_folder,
)
from dinotxt_jax.data.pipeline import (
    BadImageMonitor,
    ImageTextExample,
    TrainingIterator,
    make_training_iterator,
)
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.tasks import check_tasks, open_task
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.runtime.termination import EXIT_CODE, Termination
from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.storage.model_directory import load_parts, read_description
from dinotxt_jax.training.agreement import check_same_run
from dinotxt_jax.training.checkpoints import (
    check_workdir,
    claim_workdir,
    restore_state,
    save_state,
)
from dinotxt_jax.training.evaluations import Evaluations, check_evaluations
from dinotxt_jax.training.exports import Exporter
from dinotxt_jax.training.metrics import MetricsWriter, read_metrics
from dinotxt_jax.training.precompute import tasks_with_caches
from dinotxt_jax.training.profiling import StepProfiler, parse_profile
from dinotxt_jax.training.rates import ModelFlops, Throughput
from dinotxt_jax.training.step import Trainer, TrainState, make_trainer
from dinotxt_jax.training.texts import (
    TextRows,
    check_text_rows,
    make_tokenizer,
    save_tokenizer,
)
from dinotxt_jax.visualize import training_curves


def train(config: Config, workdir: Path) -> Path:
    """Trains, or goes on where `workdir`'s newest checkpoint stands, to the last step.

    Several processes must all call it, with a work directory that they share.

    Args:
        config: the run.
        workdir: where everything it writes goes.

    Returns:
        The model directory written at the end, `workdir / "model"`.

    Raises:
        UserError: settings or data that cannot be used, or a work directory of another run;
            nothing has been written then.
        SystemExit: SIGTERM came, to any process; the step it came in is saved (code 143).
    """
    with processes.together():
        run = _Run(config, workdir)
    with jax.set_mesh(run.mesh):
        return run.train()


class _Run:
    """One call of `train`: everything is checked here before the first file is written."""

    def __init__(self, config: Config, workdir: Path):
        _check(config)
        self.config, self.workdir = config, workdir
        self.mesh: Mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
        self.readers = sharding.batch_readers(self.mesh)
        self.backbone = read_description(config.backbone)
        patch_size = self.backbone.vision.patch_size
        check_image_size(config.data, patch_size)
        check_tasks(config.evaluation, patch_size, self.mesh, "config.evaluation")
        check_workdir(workdir, config, self.backbone.fingerprint)
        check_evaluations(config.evaluation)
        self.source = open_source(config.data)
        self.cache = self._open_cache(
            Path(config.features), config.data, config.feature_views, self.source
        )
        opened = [
            open_task(name, task, "config.evaluation")
            for name, task in config.evaluation.tasks.items()
        ]
        cached = {name for name, _ in tasks_with_caches(config)}
        caches = {
            one.name: self._open_cache(
                task_folder(config.features, one.name), one.task.data, 1, one.source
            )
            for one in opened
            if one.name in cached
        }
        if self.cache is None:
            check_images_found(self.source, config.data)
        for one in opened:
            if caches.get(one.name) is None:
                one.check_images()
        self.tokenizer = make_tokenizer(config, workdir, self.source)
        self.trainer: Trainer = make_trainer(
            config, self.backbone, self.tokenizer.vocabulary_size, self.mesh
        )
        self.texts = TextRows(
            config, self.trainer.model.text, self.tokenizer, self.source, self.mesh
        )
        self.exporter = Exporter(config, self.backbone, self.trainer, self.tokenizer)
        self.evaluations = Evaluations(config, self.exporter, workdir, opened, caches)
        self.batches = self._open_batches()
        self.bad_images = BadImageMonitor(config.data.max_bad_fraction, len(self.source))
        self.ends = False  # told to, with the step that is being made
        if config.pairs_per_step > len(self.source) and processes.is_first():
            logging.warning(
                "the %d pairs of a step exceed the %d examples, so that a batch holds images "
                "several times and sets them against each other; lower config.batch_size",
                config.pairs_per_step,
                len(self.source),
            )

    def _open_cache(
        self, folder: Path, data: DataConfig, views: int, source: Source
    ) -> FeatureCache | None:
        if not self.config.features:
            return None
        expected = cache_description(self.config, data, source, views, self.backbone.fingerprint)
        return FeatureCache(folder, expected)

    def _open_batches(self) -> TrainingIterator:
        config, tokenize = self.config, self.tokenizer.encode
        make_example = (
            ImageTextExample(self.source, config.data, tokenize)
            if self.cache is None
            else CachedExample(self.cache, self.source, tokenize)
        )
        return make_training_iterator(
            self.source,
            make_example,
            batch_size=config.pairs_per_step,
            seed=config.seed,
            parts=next(
                parts for parts, group in self.readers.items() if jax.process_index() in group
            ),
            part_count=sharding.batch_parts(self.mesh),
            threads=config.data.threads,
            prefetch=config.data.prefetch,
            workers=config.data.workers if self.cache is None else 0,
        )

    def train(self) -> Path:
        """Starts or resumes, runs to the last step, and returns the model directory."""
        config = self.config
        check_same_run(
            config, self.backbone.fingerprint, self.source, self.tokenizer, self.evaluations.tasks
        )
        claim_workdir(self.workdir, config, self.backbone.fingerprint)
        if processes.is_first():
            save_tokenizer(self.tokenizer, self.workdir / "tokenizer")
        checkpoints = Checkpoints(self.workdir / "checkpoints", config.checkpoint.keep)
        state = self._start(checkpoints)
        whole = (
            self._load_backbone() if self.cache is None or self.evaluations.need_backbone else {}
        )
        with Termination() as self.termination:
            state = self._make_steps(state, whole, checkpoints)
        if self.ends:
            _end_early(int(state.step))
        if processes.is_first():
            self._draw_curves()
        return self.exporter.write(state, self.workdir / "model")

    def _make_steps(
        self, state: TrainState, whole: dict[str, Any], checkpoints: Checkpoints
    ) -> TrainState:
        """All steps that are left, or those until this is told to end; the last one is saved."""
        config, first = self.config, int(state.step)
        frozen = whole if self.cache is None else {}
        step_function = self.trainer.compiled_step()
        writer = MetricsWriter(self.workdir, first)
        throughput, flops = Throughput(), ModelFlops(self.trainer)
        profiler = StepProfiler(config.profile, self.workdir / "tensorboard", config.steps - first)
        try:
            if first and self.evaluations.due(first) and not writer.has_evaluation(first):
                # Interrupted while at it.
                writer.write(first, self.evaluations.run(first, state, whole))
            with progress_bar(config.steps, first, "step", "training") as bar:
                for step in range(first + 1, config.steps + 1):
                    with profiler.step(step):
                        batch = self._next_batch()
                        state, metrics = step_function(state, frozen, batch)
                    profiler.end_step(metrics)
                    throughput.add(config.pairs_per_step, flops(frozen, batch), self.waited)
                    if step % config.log_every == 0 or step == config.steps:
                        self._report(step, metrics, writer, throughput, bar)
                    bar.update()
                    if self.ends or self._is_due(step, config.checkpoint.every):
                        self._save(checkpoints, state)
                    if self.ends:
                        break
                    if self.evaluations.due(step):
                        writer.write(step, self.evaluations.run(step, state, whole))
                        throughput = Throughput()
        finally:
            profiler.close()
            self.batches.close()
            writer.close()
            if not processes.others_may_be_gone():
                checkpoints.close()
        return state

    def _start(self, checkpoints: Checkpoints) -> TrainState:
        """The newest checkpoint's state, with data position and counters set; or a fresh one."""
        newest = checkpoints.latest()
        if newest is None:
            return self.trainer.create_state()
        logging.info("resuming from step %d in %s", newest, self.workdir)
        state, positions = restore_state(checkpoints, newest, self.trainer.abstract_state())
        self.batches.set_state(positions["data"])
        self.bad_images.set_state(positions["bad_images"])
        return state

    def _save(self, checkpoints: Checkpoints, state: TrainState) -> None:
        positions = {
            "data": self.batches.get_state(),
            "bad_images": self.bad_images.get_state(),
            "seed": self.config.seed,
        }
        save_state(checkpoints, state, positions)

    def _load_backbone(self) -> dict[str, Any]:
        wanted = {"backbone": self.trainer.abstract["backbone"]}
        return load_parts(self.config.backbone, wanted)

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.steps

    def _next_batch(self) -> dict[str, jax.Array]:
        """The next global batch on the mesh, its token rows packed or trimmed."""
        started = time.perf_counter()
        needed = skipped = 0
        failure: UserError | None = None
        try:
            batch = next(self.batches)
            needed, arrange = self.texts.prepare(batch["tokens"])
            skipped = int(batch["skipped"].sum())
        except UserError as error:
            failure = error
        self.waited = time.perf_counter() - started  # for data, not for other processes
        # What all processes must agree on: the shape of rows, when bad images end the run, and
        # whether one of them was told to end.
        everywhere = processes.gathered(
            [needed, skipped, failure is not None, self.termination.requested]
        )
        if everywhere[:, 2].any():
            processes.agree(failure)
        needed = int(everywhere[:, 0].max())
        self.ends = bool(everywhere[:, 3].any())
        self.skipped = self._counted(
            sum(int(everywhere[group[0], 1]) for group in self.readers.values())
        )
        image = "image" if self.cache is None else "features"
        return sharding.global_batch(arrange(needed) | {image: batch[image]}, self.mesh)

    def _counted(self, skipped: int) -> int:
        """The bad images so far, with so many in this batch."""
        try:
            return self.bad_images.update(self.config.pairs_per_step, skipped)
        except UserError as error:
            raise processes.CommonError(str(error)) from error

    def _report(
        self,
        step: int,
        metrics: dict[str, jax.Array],
        writer: MetricsWriter,
        throughput: Throughput,
        bar: tqdm,
    ) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        rates = throughput.report()
        writer.write(step, values | self.texts.report() | rates | {"bad_images": self.skipped})
        bar.set_postfix(loss=f"{values['loss']:.4f}", pairs_s=f"{rates['pairs_per_second']:.0f}")

    def _draw_curves(self) -> None:
        """Writes curves.png; a run does not end in an error for want of matplotlib."""
        try:
            training_curves(
                read_metrics(self.workdir / "metrics.jsonl"), self.workdir / "curves.png"
            )
        except UserError as error:
            logging.warning("no curves.png: %s", error)


def _end_early(step: int) -> NoReturn:
    processes.wait()  # a launcher may end the others when the first of them has ended
    if processes.is_first():
        print(
            f"told to end (SIGTERM); step {step} is saved, the same command goes on from it",
            file=sys.stderr,
        )
    raise SystemExit(EXIT_CODE)


def _check(config: Config) -> None:
    """What can be known to be wrong from the numbers alone."""
    positive = {
        "config.steps": config.steps,
        "config.batch_size": config.batch_size,
        "config.accumulate_steps": config.accumulate_steps,
        "config.log_every": config.log_every,
        "config.loss.chunk": config.loss.chunk,
        "config.checkpoint.every": config.checkpoint.every,
        "config.checkpoint.keep": config.checkpoint.keep,
        "config.feature_views": config.feature_views,
    }
    for name, value in positive.items():
        if value < 1:
            raise UserError(f"{name}={value} is not positive; set it to 1 or more.")
    if config.head.patch_tokens < 0:
        raise UserError(
            f"config.head.patch_tokens={config.head.patch_tokens} is negative; set it to 0 for all "
            "or to their number."
        )
    parse_profile(config.profile)
    check_text_rows(config)
    for name, dtype in dataclasses.asdict(config.precision).items():
        if name != "frozen_products" and dtype not in DTYPE_NAMES:
            raise UserError(
                f"config.precision.{name}={dtype!r} is unknown; choose {' or '.join(DTYPE_NAMES)}."
            )
    if not config.backbone:
        raise UserError(
            "config.backbone is empty, expected the model directory of the frozen backbone; make "
            "one with python -m weights_convert and set --config.backbone=DIR."
        )
