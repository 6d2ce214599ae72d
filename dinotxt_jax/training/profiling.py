"""Traces a few steps for xprof: a timeline for every device and thread."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax
from absl import logging

from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.mirrors import Mirror


def parse_profile(setting: str) -> range:
    """Parses `config.profile`, "FIRST:LAST" (inclusive), or "" for no steps."""
    if not setting:
        return range(0)
    first, last = map(int, setting.split(":"))
    return range(first, last + 1)


class StepProfiler:
    """Traces the steps in `config.profile`, counted from this process's first step.

    Args:
        setting: `config.profile`.
        folder: receives `plugins/profile/...`, where xprof and TensorBoard look for traces.
        steps: number of remaining steps.
    """

    def __init__(self, setting: str, folder: Address, steps: int):
        self._traced, self._folder = parse_profile(setting), folder
        self._mirror: Mirror | None = None
        self._seen, self._running = 0, False
        if self._traced and steps < self._traced[0] and processes.is_first():
            logging.warning(
                "config.profile=%s traces nothing: only %d steps remain", setting, steps
            )

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Context for a step: loading the batch, and starting the computation."""
        self._seen += 1
        if self._seen in self._traced and not self._running:
            self._mirror = Mirror(self._folder)
            jax.profiler.start_trace(self._mirror.path)
            self._running = True
        with jax.profiler.StepTraceAnnotation("train", step_num=number):
            yield

    def end_step(self, result: object) -> None:
        """Ends the trace after the last traced step, once the devices have computed that step."""
        if self._running and self._seen == self._traced[-1]:
            jax.block_until_ready(result)
            self.close()

    def close(self) -> None:
        """Writes a trace that is still running when the run ends before the last traced step."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        if self._mirror is not None:
            self._mirror.close()
        if processes.is_first():
            logging.info(
                "traced %d steps; see them with: pip install xprof; xprof --logdir=%s",
                min(self._seen - self._traced[0] + 1, len(self._traced)),
                self._folder,
            )
