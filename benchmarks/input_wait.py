"""Measures how long devices are idle because the next batch is not ready.

Trains two processes with four simulated devices each on cached backbone tokens, so that reading is
fast and the exchange between the processes dominates. Prints the fraction of time that devices
waited for a batch, measured by the run itself (`data_wait_fraction` in the first process) and from
traces of both processes (`device_trace`). Also prints how long the exchange takes, over the
coordination service and as a computation on the devices.

With `--delay=S`, the second process takes S seconds longer to read each batch: both measures must
show it, unless S is shorter than a step.

    python benchmarks/input_wait.py
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from device_trace import PREPARATIONS, device_times
from machine import processor

ROOT = Path(__file__).parent.parent
PROCESSES, DEVICES = 2, 4
LOG_EVERY = 10


def started(arguments: list[str], index: int, port: int) -> subprocess.Popen[str]:
    """Starts process `index`."""
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    joined = (f"--coordinator=127.0.0.1:{port}", f"--num_processes={PROCESSES}")
    return subprocess.Popen(
        [sys.executable, *arguments, *joined, f"--process_id={index}"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def joined_run(arguments: list[str]) -> list[str]:
    """Runs all processes to the end; returns each process's output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [started(arguments, index, port) for index in range(PROCESSES)]
    outputs = [process.communicate() for process in running]
    for process, (_, error) in zip(running, outputs, strict=True):
        if process.returncode:
            sys.exit(f"a process exited with {process.returncode}: {error[-2000:]}")
    return [out for out, _ in outputs]


def milliseconds(action: Callable[[], object], rounds: int = 200) -> float:
    """Returns an action's median time in milliseconds."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def exchanges() -> None:
    """Runs in each process: times both kinds of exchange and prints the medians."""
    from absl import flags

    from dinotxt_jax import cli

    cli.define_process_flags()
    flags.DEFINE_bool("exchanges", False, "Only measure the exchanges.")

    def body() -> None:
        from dinotxt_jax.runtime import processes
        from dinotxt_jax.runtime.exchange import Exchange

        exchange, row = Exchange(), [77, 0, 1, 0, "", 0]
        service = milliseconds(lambda: exchange.gathered(row))
        devices = milliseconds(lambda: processes.gathered([77, 0, 0, 1, 0]))
        print(json.dumps({"service": service, "devices": devices}))

    cli.run(body)


def traced(folder: str, delay: float) -> None:
    """Runs in each process: trains, and writes the trace to a separate folder per process."""
    import jax

    from dinotxt_jax import train
    from dinotxt_jax.training.batches import Batches

    start_trace, read = jax.profiler.start_trace, Batches._read

    def start_own_trace(_: object) -> None:
        # Processes on the same machine would all write to the same file. Python calls are not
        # recorded, because that slows the threads that read batches and start steps.
        options = jax.profiler.ProfileOptions()
        options.python_tracer_level = 0
        start_trace(f"{folder}/trace{jax.process_index()}", profiler_options=options)

    def read_late(batches: Batches) -> object:
        time.sleep(delay * (jax.process_index() == 1))
        return read(batches)

    jax.profiler.start_trace = start_own_trace
    Batches._read = read_late
    train.main()


def print_traces(folder: str) -> None:
    """Prints each device's idle fraction, split by cause."""
    print("device: idle by the trace, without a batch (read, agree, place), other")
    for index in range(PROCESSES):
        (file,) = Path(folder, f"trace{index}").glob("plugins/profile/*/*.xplane.pb")
        for device, times in enumerate(device_times(file).values()):
            idle, late = times.idle / times.seconds, times.without_batch / times.seconds
            causes = ", ".join(f"{times.causes[n] / times.seconds:.2%}" for n in PREPARATIONS)
            print(
                f"process {index}, device {device}: {idle:.2%} of {times.seconds:.1f} s "
                f"({times.steps} steps), {late:.2%} ({causes}), {idle - late:.2%}"
            )


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--traced", type=int, default=20, help="number of last steps to trace")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds, in the second process")
    options = parser.parse_args()
    first_traced = options.steps - options.traced + 1
    with tempfile.TemporaryDirectory() as folder:
        config = [
            "--config=configs/quickstart.py",
            f"--config.backbone={folder}/backbone",
            f"--config.features={folder}/features",
            "--config.data.num_scenes=600",
            f"--config.steps={options.steps}",
            "--config.optimizer.warmup_steps=2",
            f"--config.log_every={LOG_EVERY}",
            "--config.evaluation.every=0",
            f"--config.profile={first_traced}:{options.steps}",
        ]
        checkpoint = "tests/goldens/backbones/dinov2_tiny_reg.pth"
        convert = ["weights_convert", checkpoint, "--set", "num_heads=4"]
        for arguments in (
            [*convert, f"--output={folder}/backbone"],
            ["dinotxt_jax.precompute", *config],
        ):
            subprocess.run(
                [sys.executable, "-m", *arguments], cwd=ROOT, check=True, capture_output=True
            )
        part = f"--traced={folder},{options.delay}"
        joined_run([__file__, part, *config, f"--workdir={folder}/run"])
        lines = Path(folder, "run/metrics.jsonl").read_text().splitlines()
        print(f"{PROCESSES} processes x {DEVICES} devices on {processor()}, {options.steps} steps")
        rows = [row for row in map(json.loads, lines) if "loss" in row][1:]  # without compilation
        waits = {row["step"]: row["data_wait_fraction"] for row in rows}
        steps = [row["wall_seconds"] / LOG_EVERY for row in rows]
        late = [wait for step, wait in waits.items() if step > first_traced]
        print(f"step: {1e3 * np.median(steps):.0f} ms")
        print(
            "devices waited for a batch, by the accounting: "
            f"{np.mean(list(waits.values())):.2%} of the time (at most {max(waits.values()):.2%}); "
            f"{np.mean(late):.2%} in the traced steps"
        )
        print_traces(folder)
    times = json.loads(joined_run([__file__, "--exchanges"])[0].splitlines()[-1])
    print(f"exchange over the coordination service: {times['service']:.2f} ms")
    print(f"exchange on the devices, when they are idle: {times['devices']:.2f} ms")


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    if part == "--exchanges":
        exchanges()
    elif part.startswith("--traced=") and "," in part:
        folder, delay = sys.argv.pop(1).removeprefix("--traced=").rsplit(",", 1)
        traced(folder, float(delay))
    else:
        main()
