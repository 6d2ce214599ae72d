"""Reads from a JAX CPU trace when each device is busy, and why it is idle.

The CPU backend's traces have no line per device. Threads serve any device, and record events with
the device (`device_ordinal`) and the execution (`run_id`): an event from the start of a program
until it is complete ("ThunkExecutor::Execute (wait for completion)"), and an event for each
operation, which names the program (`hlo_module`). A device that waits for other devices inside a
collective operation counts as busy. `training.batches` records when the training loop waits for a
batch, and when the batch thread reads, agrees on and places a batch.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np
from jax.profiler import ProfileData

WAIT = "wait for a batch"
PREPARATIONS = ("read a batch", "agree on a batch", "place a batch")

# Disjoint intervals in nanoseconds, ascending: [n 2], starts and ends.
Intervals = np.ndarray


@dataclasses.dataclass(frozen=True)
class DeviceTime:
    """How a device spends the time from the start of the first traced step to the end of the last.

    Attributes:
        steps: number of traced steps.
        seconds: total time.
        idle: seconds in which the device executes nothing.
        without_batch: seconds of `idle` in which the training loop waits for a batch.
        causes: seconds of `without_batch` in which a batch is read, agreed on and placed.
    """

    steps: int
    seconds: float
    idle: float
    without_batch: float
    causes: dict[str, float]


def device_times(file: Path, program: str = "jit_train_step") -> dict[int, DeviceTime]:
    """Returns each device's times in a trace from a single process.

    Args:
        file: an `xplane.pb`.
        program: name of the compiled step.

    Raises:
        ValueError: the trace does not contain this program.
    """
    runs: dict[int, dict[str, list[tuple[float, float]]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    step_runs: set[str] = set()
    spans_by_name: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    for line in ProfileData.from_file(str(file)).find_plane_with_name("/host:CPU").lines:
        for event in line.events:
            if event.name == WAIT or event.name in PREPARATIONS:
                spans_by_name[event.name].append((event.start_ns, event.end_ns))
                continue
            stats = dict(event.stats)
            if "run_id" not in stats or "device_ordinal" not in stats:
                continue
            run = str(stats["run_id"])
            runs[int(stats["device_ordinal"])][run].append((event.start_ns, event.end_ns))
            if stats.get("hlo_module") == program:
                step_runs.add(run)
    if not step_runs:
        raise ValueError(f"{file} has no execution of {program}")
    waits = united(spans_by_name[WAIT])
    result = {}
    for device, executions in sorted(runs.items()):
        steps = united([span for run in step_runs for span in executions.get(run, [])])
        busy = united([span for spans in executions.values() for span in spans])
        idle = gaps(busy, steps[0, 0], steps[-1, 1])
        without_batch = common(idle, waits)
        result[device] = DeviceTime(
            steps=sum(run in executions for run in step_runs),
            seconds=1e-9 * (steps[-1, 1] - steps[0, 0]),
            idle=length(idle),
            without_batch=length(without_batch),
            causes={
                name: length(common(without_batch, united(spans_by_name[name])))
                for name in PREPARATIONS
            },
        )
    return result


def united(spans: list[tuple[float, float]]) -> Intervals:
    """Merges overlapping intervals."""
    merged: list[list[float]] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return np.asarray(merged, float).reshape(-1, 2)


def gaps(busy: Intervals, start: float, end: float) -> Intervals:
    """Returns the intervals between `start` and `end` that `busy` does not cover."""
    inside = common(busy, np.asarray([[start, end]]))
    edges = np.concatenate([[start], inside.ravel(), [end]]).reshape(-1, 2)
    return edges[edges[:, 1] > edges[:, 0]]


def common(first: Intervals, second: Intervals) -> Intervals:
    """Returns the intersection of two interval lists."""
    pairs = [(max(a, c), min(b, d)) for a, b in first for c, d in second if max(a, c) < min(b, d)]
    return united(pairs)


def length(intervals: Intervals) -> float:
    """Returns the total length in seconds."""
    return 1e-9 * float((intervals[:, 1] - intervals[:, 0]).sum())
