"""Trains from a config in a work directory: starts or resumes, logs, evaluates, saves, exports."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import logging
from jax.sharding import Mesh

from dinotxt_jax import sharding
from dinotxt_jax.config import Config, DataConfig, check, check_image_size
from dinotxt_jax.config.training import NO_TRACKER
from dinotxt_jax.data.examples import Source, check_images_found
from dinotxt_jax.data.feature_cache import FeatureCache, cache_description, task_folder
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.mixture import Mixture, source_parts
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.evaluation.tasks import check_tasks, open_task
from dinotxt_jax.runtime import processes
from dinotxt_jax.runtime.progress import Bar, progress_bar
from dinotxt_jax.runtime.termination import NAMES, Terminated, Termination
from dinotxt_jax.storage.addresses import Address, AddressLike, to_address, to_output
from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.storage.locks import RunLock
from dinotxt_jax.storage.model_arrays import load_parts
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.training.agreement import check_same_run
from dinotxt_jax.training.batches import Batches, ReadingError
from dinotxt_jax.training.checkpoints import (
    check_workdir,
    claim_workdir,
    restore_newest,
    save_state,
)
from dinotxt_jax.training.divergence import Divergence
from dinotxt_jax.training.evaluations import Evaluations
from dinotxt_jax.training.exports import Exporter
from dinotxt_jax.training.goodput import Goodput
from dinotxt_jax.training.metrics import MetricsWriter
from dinotxt_jax.training.pictures import RunPictures
from dinotxt_jax.training.precompute import tasks_with_caches
from dinotxt_jax.training.profiling import StepProfiler
from dinotxt_jax.training.step import Trainer, TrainState, make_trainer
from dinotxt_jax.training.step_metrics import StepMetrics
from dinotxt_jax.training.texts import (
    make_tokenizer,
    save_tokenizer,
)
from dinotxt_jax.training.trackers import Tracker, check_tracker


def train(config: Config, workdir: AddressLike) -> Address:
    """Trains to the last step, resuming from the newest checkpoint in `workdir` if there is one.

    With several processes, all must call this function, with a shared work directory.

    Args:
        config: the run's config.
        workdir: receives everything that the run writes.

    Returns:
        The model directory written at the end, `workdir / "model"`.

    Raises:
        UserError: the settings or the data are invalid, or the work directory belongs to another
            run; nothing has been written in these cases.
        CommonError: too many steps were not finite (exit code 3); all checkpoints are from finite
            steps.
        SystemExit: any process received SIGTERM (code 143) or Ctrl-C (code 130); the last completed
            step was saved.
    """
    with processes.together():
        run = _Run(config, workdir)
    with jax.set_mesh(run.mesh):
        return run.train()


class _Run:
    """A call to `train`; the constructor checks everything before the first file is written."""

    def __init__(self, config: Config, workdir: AddressLike):
        self.begun = time.time()
        check(config, needs=("backbone",))
        check_tracker(config.tracker)
        self.workdir = workdir = to_output(workdir, "--workdir")
        self.mesh: Mesh = sharding.make_mesh(**dataclasses.asdict(config.mesh))
        self.backbone = read_description(config.backbone)
        vision = self.backbone.vision
        check_image_size(config.data.image_size, vision.patch_size)
        check_tasks(config.evaluation, vision, self.mesh, "config.evaluation")
        self.source = open_source(config.data)
        self.config = config = config.for_examples(len(self.source))
        check(config)  # again: the number of steps is known only now, if `epochs` is set
        self.identity = data_identity(self.source, config.data.threads)
        check_workdir(workdir, config, self.backbone.fingerprint, self.identity)
        self.cache = self._open_cache(
            to_address(config.features), config.data, config.feature_views, self.source
        )
        opened = [
            open_task(name, task, "config.evaluation")
            for name, task in config.evaluation.tasks.items()
        ]
        cached = {name for name, _ in tasks_with_caches(config)}
        caches = {
            opened_task.name: self._open_cache(
                task_folder(config.features, opened_task.name),
                opened_task.task.data,
                1,
                opened_task.source,
            )
            for opened_task in opened
            if opened_task.name in cached
        }
        if self.cache is None:
            for part in source_parts(self.source, config.data):
                check_images_found(part.source, part.data, part.section)
        for opened_task in opened:
            if caches.get(opened_task.name) is None:
                opened_task.check_images()
        self.tokenizer = make_tokenizer(config, workdir, self.source)
        self.trainer: Trainer = make_trainer(
            config, self.backbone, self.tokenizer.vocabulary_size, self.mesh
        )
        self.exporter = Exporter(config, self.backbone, self.trainer, self.tokenizer)
        self.evaluations = Evaluations(config, self.exporter, workdir, opened, caches)
        self.termination = Termination()
        self.pictures = RunPictures(config, self.workdir, self.tokenizer)
        self.lock = RunLock(workdir)
        self.checkpoints = Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        self.batches = Batches(
            config,
            self.source,
            self.cache,
            self.tokenizer,
            self.mesh,
            self.termination,
            self._check_storage,
        )

    def _open_cache(
        self, folder: Address, data: DataConfig, views: int, source: Source
    ) -> FeatureCache | None:
        if not self.config.features:
            return None
        expected = cache_description(self.config, data, source, views, self.backbone.fingerprint)
        return FeatureCache(folder, expected)

    def train(self) -> Address:
        """Starts or resumes, runs to the last step, and returns the model directory."""
        check_same_run(
            self.config,
            self.backbone.fingerprint,
            self.identity,
            self.tokenizer,
            self.evaluations.tasks,
        )
        with processes.together():
            if processes.is_first():
                self.workdir.mkdir(parents=True, exist_ok=True)
                self.lock.acquire()
        try:
            return self._run()
        finally:
            self.lock.release()

    def _run(self) -> Address:
        config = self.config
        if isinstance(self.source, Mixture) and processes.is_first():
            pairs = config.steps * config.pairs_per_step
            logging.info("%d steps use\n%s", config.steps, "\n".join(self.source.described(pairs)))
        claim_workdir(self.workdir, config, self.backbone.fingerprint, self.identity)
        if processes.is_first():
            save_tokenizer(self.tokenizer, self.workdir / "tokenizer")
        state = self._start()
        backbone = (
            self._load_backbone() if self.cache is None or self.evaluations.need_backbone else {}
        )
        with self.termination:
            state, exit_code = self._make_steps(state, backbone)
            if exit_code:
                _end_early(int(state.step), exit_code)
            with self.termination.at_once():
                if processes.is_first():
                    self.pictures.draw_curves()
                return self.exporter.write(state, self.workdir / "model")

    def _check_storage(self) -> None:
        """Raises `UserError` if a save has failed or another run has taken the work directory."""
        self.checkpoints.check()
        self.lock.check()

    def _make_steps(self, state: TrainState, backbone: dict[str, Any]) -> tuple[TrainState, int]:
        """Runs to the last step or until a signal; saves the last completed step.

        Returns:
            The final state, and the exit code if a signal ended the run, otherwise 0.
        """
        config, first = self.config, int(state.step)
        frozen = backbone if self.cache is None else {}
        step_function = self.trainer.compiled_step()
        with processes.together():
            writer = MetricsWriter(
                self.workdir, first, None if config.tracker == NO_TRACKER else self._tracker
            )
        goodput = Goodput(self.workdir, self.begun)
        counted = StepMetrics(config, self.trainer, self.tokenizer.context_length)
        divergence = Divergence(self.trainer, self.workdir, self.source)
        profiler = StepProfiler(config.profile, self.workdir / "tensorboard", config.steps - first)
        exit_code = 0

        def evaluate(step: int) -> None:
            check = self.termination.check
            with goodput.spent("evaluating"):
                writer.write(step, self.evaluations.run(step, state, backbone, check))

        try:
            if first and self.evaluations.due(first) and not writer.has_evaluation(first):
                evaluate(first)  # the previous process was interrupted during this evaluation
            with progress_bar(config.steps, first, "step", "training") as bar:
                step_function = bar.compiling(step_function)
                for step in range(first + 1, config.steps + 1):
                    with profiler.step(step):
                        batch = next(self.batches)
                        state, metrics = step_function(state, frozen, batch.arrays)
                    self.batches.started(metrics["loss"])
                    profiler.end_step(metrics)
                    goodput.add("waiting", batch.waited)
                    goodput.made_step()
                    if step == 1:
                        self.pictures.draw_samples(batch)
                    counted.add(frozen, batch)
                    divergence.note(step, batch.indices)
                    if self._is_due(step, config.log_every):
                        values = counted.report(metrics, batch)
                        writer.write(step, values)
                        _show(bar, values)
                        divergence.check(state)
                    bar.update()
                    exit_code = batch.exit_code
                    if exit_code or self._is_due(step, config.checkpoint.every):
                        divergence.check(state)
                        with goodput.spent("saving"):
                            writer.copy()  # so that a run resumed here has all earlier lines
                            self._save(state, self.batches.get_state())
                        goodput.save()
                    if exit_code:
                        break
                    if self.evaluations.due(step):
                        divergence.check(state)
                        evaluate(step)
                        counted.restart()
            self.termination.check()  # for a signal during the last step
        except Terminated as signal:  # the next run repeats an interrupted evaluation
            exit_code = signal.exit_code
            self._save_last(state, self.batches.get_state())
        except ReadingError as error:  # only reading failed, so keep the completed steps
            divergence.check(state)
            if int(state.step) > first:
                self._save_last(state, error.position)
                self.checkpoints.wait()  # several processes end without waiting for each other
                logging.info("step %d is saved", int(state.step))
            raise
        finally:
            # ExitStack runs all callbacks, even if closing a resource fails.
            with contextlib.ExitStack() as closing:
                if not processes.others_may_be_gone():
                    closing.callback(self.checkpoints.close)
                for close in (goodput.save, writer.close, self.batches.close, profiler.close):
                    closing.callback(close)
        return state, exit_code

    def _start(self) -> TrainState:
        """Restores the newest intact checkpoint with data position, or creates an initial state."""
        restored = restore_newest(self.checkpoints, self.trainer.abstract_state())
        if restored is None:
            return self.trainer.create_state()
        state, positions = restored
        logging.info("resuming from step %d in %s", int(state.step), self.workdir)
        self.batches.set_state(positions)
        return state

    def _save(self, state: TrainState, position: dict[str, Any]) -> None:
        positions = position | {
            "seed": self.config.seed,
            "nonfinite_steps": int(state.health.nonfinite_steps),
        }
        save_state(self.checkpoints, state, positions)

    def _save_last(self, state: TrainState, position: dict[str, Any]) -> None:
        """Saves the state when a run ends early, unless this step is already saved."""
        self.checkpoints.wait()
        if self.checkpoints.latest() != int(state.step):
            self._save(state, position)

    def _load_backbone(self) -> dict[str, Any]:
        abstract = {"backbone": self.trainer.abstract["backbone"]}
        return load_parts(self.config.backbone, abstract)

    def _tracker(self, folder: Path) -> Tracker:
        return Tracker(self.config, self.workdir, folder, self.pictures.title)

    def _is_due(self, step: int, every: int) -> bool:
        return step % every == 0 or step == self.config.steps


def _show(bar: Bar, values: Mapping[str, float]) -> None:
    """Shows loss and speed next to the progress bar."""
    bar.set_postfix(loss=f"{values['loss']:.4f}", pairs_s=f"{values['pairs_per_second']:.0f}")


def _end_early(step: int, exit_code: int) -> NoReturn:
    processes.wait()  # launchers may kill the other processes after the first exit
    if processes.is_first():
        print(
            f"ended by {NAMES[exit_code]}; step {step} is saved: run the same command again to "
            "continue",
            file=sys.stderr,
        )
    raise SystemExit(exit_code)
