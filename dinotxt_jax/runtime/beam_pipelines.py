"""Apache Beam pipelines, for clusters (Dataflow, Flink, Spark), whose errors stay one sentence.

Import this module only where a Beam runner is asked for: Beam is the extra `beam`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState
from apache_beam.utils.shared import Shared

from dinotxt_jax.errors import UserError

# Runners put the error of a worker into a text: the sentence ends at the line or before the step.
_SENTENCE = re.compile(r"UserError: (.*?)(?: \[while running|\\n|\n|$)")
_STEP = re.compile(r" \[while running.*", re.DOTALL)


class BeamPipelines:
    """Runs pipelines with one runner.

    Args:
        runner: name of the Beam runner.
        options: further options, as on a command line.

    Raises:
        UserError: the runner or an option cannot be used.
    """

    def __init__(self, runner: str, options: str):
        try:
            self._options = PipelineOptions([f"--runner={runner}", *shlex.split(options)])
            self._options.get_all_options()
            beam.Pipeline(options=self._options)  # looks for the runner and checks its options
        except (ValueError, ImportError, SystemExit) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"--runner={runner} --beam_options={options!r} cannot be used ({reason}), expected "
                "a runner of Apache Beam and options that it knows; correct them."
            ) from error

    def running(self) -> RunningPipeline:
        """Returns a pipeline that runs when the block ends."""
        return RunningPipeline(self._options)

    def run(
        self,
        start: Callable[[], Any],
        action: Callable[[Any, Any], object],
        parts: Iterable[Any],
    ) -> None:
        """Runs an action for parts, as `worker_pool` does, but its results stay on the workers.

        Args:
            start: prepares the state of a process; it is pickled.
            action: takes the state and a part.
            parts: the parts.
        """
        with self.running() as pipeline:
            _ = (
                pipeline
                | "parts" >> beam.Create(list(parts))
                | "spread parts" >> beam.Reshuffle()
                | "work" >> beam.ParDo(_Action(start, action))
            )


class RunningPipeline:
    """A pipeline that runs when the block ends; errors in workers become `UserError` again."""

    def __init__(self, options: PipelineOptions):
        self._pipeline = beam.Pipeline(options=options)

    def __enter__(self) -> beam.Pipeline:
        return self._pipeline

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            return
        try:
            state = self._pipeline.run().wait_until_finish()
        except UserError as failure:
            raise UserError(_STEP.sub("", str(failure)), failure.exit_code) from failure
        except Exception as failure:
            if sentence := _SENTENCE.search(str(failure)):
                raise UserError(sentence[1]) from failure
            raise
        if state != PipelineState.DONE:
            raise UserError(
                f"the pipeline ended in the state {state}, expected {PipelineState.DONE}; look at "
                "the runner's log, then run the same command again to continue."
            )


class WorkerDoFn(beam.DoFn):
    """Prepares a state once per process, as a worker of `worker_pool` does.

    Args:
        start: prepares the state; it is pickled.
    """

    def __init__(self, start: Callable[[], Any]):
        self._start, self._shared = start, Shared()
        self.state: Any = None

    def setup(self) -> None:
        self.state = self._shared.acquire(self._start)


class _Action(WorkerDoFn):
    """Runs an action on a part."""

    def __init__(self, start: Callable[[], Any], action: Callable[[Any, Any], object]):
        super().__init__(start)
        self._action = action

    def process(self, part: Any) -> None:
        self._action(self.state, part)
