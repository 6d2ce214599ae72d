"""Measures how much the finite check slows a step, and how long checkpoint checksums take.

    python benchmarks/reliability.py [--batch=64] [--rounds=15]

The step is the same as in benchmarks/train_step.py with cached features. Steps with and without the
check alternate in the same process; the ratio between their medians is printed. Checksums are
computed over the whole training state.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from machine import device
from train_step import BACKBONE, LONGEST, VOCABULARY, drawn_text, step_config

from dinotxt_jax import sharding
from dinotxt_jax.storage.checksums import checksums
from dinotxt_jax.training import step as step_module
from dinotxt_jax.training.step import TrainState, make_trainer


def steppers(batch_size: int) -> tuple[TrainState, dict[str, Callable[[], None]]]:
    """Returns a training state, and functions by name that run a step and wait for it."""
    mesh = sharding.make_mesh()
    config = step_config("float32", batch_size)
    features = np.random.default_rng(0).normal(size=(batch_size, 197, 192)).astype(np.float32)
    batch = sharding.global_batch({"features": features, **drawn_text(batch_size, LONGEST)}, mesh)

    def stepper() -> Callable[[], None]:
        """Compiles a step with a new trainer, since JAX would reuse the program otherwise."""
        trainer = make_trainer(config, BACKBONE, VOCABULARY, mesh)
        state = trainer.create_state()
        program = trainer.compiled_step().lower(state, {}, batch).compile()
        programs.append(program.as_text())

        def take() -> None:
            nonlocal state
            state, metrics = program(state, {}, batch)
            jax.block_until_ready(metrics)

        take()
        return take

    programs: list[str] = []
    checked = stepper()
    original = step_module.applied
    step_module.applied = lambda health, updated, before: updated
    unchecked = stepper()
    step_module.applied = original
    if programs[0] == programs[1]:
        raise RuntimeError("both programs are the same: the check was not left out")
    state = make_trainer(config, BACKBONE, VOCABULARY, mesh).create_state()
    return state, {"with the check": checked, "without": unchecked}


def seconds(function: Callable[[], Any]) -> float:
    """Returns the duration of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    print(f"{device()}, float32\n")
    state, steps = steppers(options.batch)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(options.rounds):
        # The order alternates, so that drifts in the machine's speed cancel.
        for name in list(steps)[:: 1 if number % 2 else -1]:
            times[name].append(seconds(steps[name]))
    plain = float(np.median(times["without"]))
    print("| step | median, s | ratio |\n|---|---|---|")
    for name, values in times.items():
        print(f"| {name} | {np.median(values):.4f} | {np.median(values) / plain:.4f} |")
    saved = {"trainable": state.trainable, "optimizer": state.optimizer}
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(saved)) / 1e9
    first = seconds(lambda: checksums(saved))
    later = min(seconds(lambda: checksums(saved)) for _ in range(5))
    print("\n| checksums of a training state | GB | first time, s | later, s | GB/s |")
    print("|---|---|---|---|---|")
    print(f"| | {size:.2f} | {first:.2f} | {later:.3f} | {size / later:.2f} |")


if __name__ == "__main__":
    main()
