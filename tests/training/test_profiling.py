"""Traces of a few steps: which steps, which folder, and the message for a wrong setting."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from dinotxt_jax.training.profiling import StepProfiler


def run(profiler: StepProfiler, steps: range) -> None:
    """Runs steps with a computation whose name appears in a trace."""
    double = jax.jit(lambda x: 2 * x)
    for number in steps:
        with profiler.step(number):
            value = double(jnp.ones(3))
        profiler.end_step(value)


def steps_in_traces(folder: Path) -> list[set[int]]:
    """Returns the step numbers in each trace in a folder."""
    files = sorted(folder.glob("plugins/profile/*/*.xplane.pb"))
    return [
        {
            int(dict(event.stats)["step_num"])
            for plane in jax.profiler.ProfileData.from_file(str(file)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        }
        for file in files
    ]


def test_the_named_steps_are_traced_counted_from_the_start(tmp_path: Path) -> None:
    profiler = StepProfiler("2:3", tmp_path, 5)
    run(profiler, range(101, 106))
    profiler.close()
    assert steps_in_traces(tmp_path) == [{102, 103}]


def test_a_run_that_ends_before_the_last_of_them_keeps_its_trace(tmp_path: Path) -> None:
    profiler = StepProfiler("2:9", tmp_path, 3)
    run(profiler, range(1, 4))
    profiler.close()
    assert steps_in_traces(tmp_path) == [{2, 3}]


@pytest.mark.parametrize("setting", ["", "7:8"])
def test_only_requested_reachable_steps_are_traced(
    setting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    profiler = StepProfiler(setting, tmp_path, 3)
    run(profiler, range(1, 4))
    profiler.close()
    assert list(tmp_path.iterdir()) == []
    assert ("7:8 traces nothing: only 3 steps remain" in caplog.text) == bool(setting)
