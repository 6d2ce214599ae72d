"""How long the devices have nothing to do because the next batch is not ready.

Trains two processes with four simulated devices each on cached backbone tokens, so that reading is
fast and the exchange between the processes remains. Prints the share of the time that the devices
of a process waited for a batch (`data_wait_fraction`), and the time of the exchange itself, over
the coordination service and as a computation on the devices.

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
from machine import processor

ROOT = Path(__file__).parent.parent
PROCESSES, DEVICES = 2, 4


def started(arguments: list[str], index: int, port: int) -> subprocess.Popen[str]:
    """Starts one of the processes."""
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
    """Runs all processes to the end; returns what each one printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [started(arguments, index, port) for index in range(PROCESSES)]
    outputs = [process.communicate() for process in running]
    for process, (_, error) in zip(running, outputs, strict=True):
        if process.returncode:
            sys.exit(f"a process ended with {process.returncode}: {error[-2000:]}")
    return [out for out, _ in outputs]


def milliseconds(action: Callable[[], object], rounds: int = 200) -> float:
    """Returns the median time of an action."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(1e3 * (time.perf_counter() - start))
    return float(np.median(times))


def exchanges() -> None:
    """Runs in each process: prints the times of both kinds of exchange."""
    from absl import flags

    from dinotxt_jax import cli

    cli.define_process_flags()
    flags.DEFINE_bool("exchanges", False, "Run this part.")

    def body() -> None:
        from dinotxt_jax.runtime import processes
        from dinotxt_jax.runtime.exchange import Exchange

        exchange, row = Exchange(), [77, 0, 1, 0, "", 0]
        service = milliseconds(lambda: exchange.gathered(row))
        devices = milliseconds(lambda: processes.gathered([77, 0, 0, 1, 0]))
        print(json.dumps({"service": service, "devices": devices}))

    cli.run(body)


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = [
            "--config=configs/quickstart.py",
            f"--config.backbone={folder}/backbone",
            f"--config.features={folder}/features",
            "--config.data.num_scenes=600",
            f"--config.steps={options.steps}",
            "--config.optimizer.warmup_steps=2",
            "--config.log_every=10",
            "--config.evaluation.every=0",
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
        joined_run(["-m", "dinotxt_jax.train", *config, f"--workdir={folder}/run"])
        lines = Path(folder, "run/metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row][1:]  # without compilation
    waits = [row["data_wait_fraction"] for row in rows]
    steps = [row["wall_seconds"] / 10 for row in rows]
    times = json.loads(joined_run([__file__, "--exchanges"])[0].splitlines()[-1])
    print(f"{PROCESSES} processes x {DEVICES} devices on {processor()}, {options.steps} steps")
    print(f"step: {1e3 * np.median(steps):.0f} ms")
    print(
        f"devices waited for a batch: {np.mean(waits):.2%} of the time (at most {max(waits):.2%})"
    )
    print(f"exchange over the coordination service: {times['service']:.2f} ms")
    print(f"exchange on the devices, when they are idle: {times['devices']:.2f} ms")


if __name__ == "__main__":
    if "--exchanges" in sys.argv:
        exchanges()
    else:
        main()
