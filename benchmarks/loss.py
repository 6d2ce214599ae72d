"""Measures time and memory for the contrastive losses, against their plain definitions.

    python benchmarks/loss.py [--chunk=2048] [--repeats=5] [--topology=v5e:2x4]

Both compute the loss and all gradients in float32. The plain losses (tests/helpers/plain_losses.py)
materialize all logits. Memory is the amount that the compiler reserves per device in addition to
arguments and results; large sizes are compiled but not run. If libtpu is installed, everything is
also compiled for a TPU topology.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # keep libtpu from searching for chips
# NPROC and the second flag: see tests/conftest.py.
os.environ.setdefault("NPROC", "32")
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    )
)
sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "helpers"))

import jax
import jax.numpy as jnp
import numpy as np
import plain_losses
from jax.sharding import Mesh
from machine import device

from dinotxt_jax import sharding
from dinotxt_jax.config import LossConfig
from dinotxt_jax.losses import sigmoid_contrastive_loss, softmax_contrastive_loss
from dinotxt_jax.runtime.compiler_options import compiler_options

NUMBERS = {"softmax": (14.0,), "sigmoid": (14.0, -10.0)}
PLAIN = {"softmax": plain_losses.softmax, "sigmoid": plain_losses.sigmoid}
OURS = {"softmax": softmax_contrastive_loss, "sigmoid": sigmoid_contrastive_loss}
TIMED = ((4096, 512), (8192, 1024))
COMPILED = ((8192, 1024), (32_768, 2048), (65_536, 2048))


def program(loss: Callable, numbers: int, options: dict[str, str] | None = None) -> Callable:
    """Returns a function that computes the loss and all gradients."""
    run = jax.value_and_grad(loss, argnums=tuple(range(2 + numbers)))
    return jax.jit(run, compiler_options=options)


def seconds(kind: str, losses: list[Callable], size: tuple[int, int], repeats: int) -> list[float]:
    """Returns minimum times on the current mesh; alternates losses, so that all see equal load."""
    features = np.random.default_rng(0).normal(size=(2, *size)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    placement = sharding.batch_sharding(jax.sharding.get_mesh())
    arguments = (*jax.device_put(tuple(features), placement), *map(jnp.float32, NUMBERS[kind]))
    options = compiler_options(["float32"])  # as in training
    programs = [program(loss, len(NUMBERS[kind]), options) for loss in losses]
    times = np.zeros((repeats + 1, len(losses)))
    for turn in times:
        for number, run in enumerate(programs):
            start = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            turn[number] = time.perf_counter() - start
    return np.min(times[1:], axis=0).tolist()  # the first turn compiles


def reserved(kind: str, loss: Callable, mesh: Mesh, size: tuple[int, int]) -> tuple[float, float]:
    """Returns GB per device: temporary memory and, if reported, the peak with arguments."""
    features = jax.ShapeDtypeStruct(size, jnp.float32, sharding=sharding.batch_sharding(mesh))
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=sharding.replicated(mesh))
    count = len(NUMBERS[kind])
    with jax.set_mesh(mesh):
        lowered = program(loss, count).lower(features, features, *[number] * count)
        memory = lowered.compile().memory_analysis()
    return memory.temp_size_in_bytes / 1e9, memory.peak_memory_in_bytes / 1e9


def print_times(chunk: int, repeats: int) -> None:
    """Prints the time for both losses, on 1 and 8 devices."""
    print("\n| devices | loss | batch x width | plain, s | in chunks, s | ratio |")
    print("|---|---|---|---|---|---|")
    for devices in (1, 8):
        with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:devices])):
            for kind in OURS:
                both = [PLAIN[kind], functools.partial(OURS[kind], chunk=chunk)]
                for size in TIMED:
                    plain, ours = seconds(kind, both, size, repeats)
                    label = f"{devices} | {kind} | {size[0]} x {size[1]}"
                    print(f"| {label} | {plain:.2f} | {ours:.2f} | {ours / plain:.2f} |")


def print_memory(chunk: int) -> None:
    """Prints the memory per device for both losses, on 1 and 8 devices."""
    print("\n| devices | loss | batch x width | plain, GB | in chunks, GB |")
    print("|---|---|---|---|---|")
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        for kind in OURS:
            ours = functools.partial(OURS[kind], chunk=chunk)
            for size in COMPILED:
                gigabytes = [reserved(kind, loss, mesh, size)[0] for loss in (PLAIN[kind], ours)]
                label = f"{devices} | {kind} | {size[0]} x {size[1]}"
                print(f"| {label} | {gigabytes[0]:.3f} | {gigabytes[1]:.3f} |")


def print_chunks(mesh: Mesh, name: str, chunks: tuple[int, ...], *, peak: bool) -> None:
    """Prints the memory for the largest batch with each chunk, and with the plain loss."""
    rows, width = COMPILED[-1]
    print(f"\n{name}, softmax, {rows} x {width}:\n")
    print(
        "| chunk | temporary, GB | peak with arguments and results, GB |"
        if peak
        else "| chunk | temporary, GB |"
    )
    print("|---|---|---|" if peak else "|---|---|")
    losses = {str(c): functools.partial(OURS["softmax"], chunk=c) for c in chunks}
    for label, loss in (losses | {"plain": PLAIN["softmax"]}).items():
        temporary, whole = reserved("softmax", loss, mesh, (rows, width))
        print(f"| {label} | {temporary:.3f} |" + (f" {whole:.3f} |" if peak else ""))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunk", type=int, default=LossConfig.chunk)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--topology", default="v5e:2x4")
    options = parser.parse_args()
    sys.stdout.reconfigure(line_buffering=True)  # show each line at once, even in a log file
    print(f"{device()}, float32, chunk {options.chunk}")
    print_times(options.chunk, options.repeats)
    print_memory(options.chunk)
    chunks = (512, 1000, 1024, 2048, 4096)
    print_chunks(sharding.make_mesh(), "8 pretend devices", chunks, peak=False)
    if importlib.util.find_spec("libtpu") is None:
        print("\nNothing was compiled for a TPU: libtpu is not installed.")
        return
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(options.topology, platform="tpu").devices
    print_chunks(sharding.make_mesh(devices=devices), options.topology, chunks, peak=True)


if __name__ == "__main__":
    main()
