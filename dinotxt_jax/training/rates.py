"""Measures speed and resource use: pairs and FLOPs per second, MFU, data waits, memory."""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jax.sharding import AbstractMesh

from dinotxt_jax.runtime.chips import GIB, peak_flops
from dinotxt_jax.runtime.flops import matmul_flops
from dinotxt_jax.training.models import create_model
from dinotxt_jax.training.step import Arrays, Trainer


class ModelFlops:
    """Counts the FLOPs in a step's matrix products, for given batch shapes.

    `flops.matmul_flops` counts a step over the whole batch at once, without rematerialisation: the
    backbone forward, everything else forward and backward, caption rows as given (packed or
    trimmed), full attention matrices. Contrastive loss blocks count as often as they are computed.
    Recomputation by `remat` and accumulation does not count.
    """

    def __init__(self, trainer: Trainer):
        config = dataclasses.replace(
            trainer.config,
            batch_size=trainer.config.pairs_per_step,
            accumulate_steps=1,
            remat="none",
            attention="xla",
        )
        graphdef = nnx.graphdef(create_model(trainer.model, config))
        self._trainer = dataclasses.replace(trainer, config=config, graphdef=graphdef)
        self._state = self._trainer.abstract_state()
        self._known: dict[tuple[Any, ...], float] = {}

    def __call__(self, frozen: Arrays, batch: Mapping[str, jax.Array]) -> float:
        """Returns the `Trainer.train_step` FLOPs for this batch, all devices; runs nothing."""
        shapes = tuple((name, array.shape) for name, array in sorted(batch.items()))
        if shapes not in self._known:
            abstract = jax.tree.map(
                lambda array: jax.ShapeDtypeStruct(
                    array.shape, array.dtype, sharding=array.sharding
                ),
                (frozen, dict(batch)),
            )
            # Trace without a mesh, where the loss would count once per tensor axis shard.
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                self._known[shapes] = matmul_flops(self._trainer.train_step, self._state, *abstract)
        return self._known[shapes]


class Throughput:
    """Measures rates between two reports, for all processes together unless stated otherwise."""

    def __init__(self) -> None:
        devices = jax.devices()
        self._devices = len(devices)
        self._peak = peak_flops(devices[0].device_kind)
        self._restart(time.perf_counter())

    def _restart(self, now: float) -> None:
        self._start = now
        self._cpu = time.process_time()
        self._waited = 0.0
        self._pairs = 0
        self._flops = 0.0

    def add(self, pairs: int, flops: float, waited: float) -> None:
        """Adds a step with the given pairs and FLOPs, which waited `waited` seconds for data."""
        self._pairs += pairs
        self._flops += flops
        self._waited += waited

    def report(self) -> dict[str, float]:
        """Returns the rates since the last report, and the peak memory since the process began.

        `tflops_per_second` and `mfu` are per device. `mfu` is the fraction of the bfloat16 peak; it
        is absent if that peak is unknown. Memory is measured for this process, and for the local
        device with the highest use.
        """
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        flops = self._flops / elapsed / self._devices
        rates = {
            "pairs_per_second": self._pairs / elapsed,
            "tflops_per_second": flops / 1e12,
            **({"mfu": flops / self._peak} if self._peak else {}),
            "data_wait_fraction": self._waited / elapsed,
            "wall_seconds": elapsed,
            "cpu_seconds": time.process_time() - self._cpu,
            **peak_memory(),
        }
        self._restart(now)
        return rates


def peak_memory() -> dict[str, float]:
    """Returns peak memory in GiB.

    `host_memory_gib` is for this process; `device_memory_gib` is the maximum over local devices,
    and is absent if the devices do not report it.
    """
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {
        "host_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB,
    }
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    known_peaks = [peak for peak in peaks if peak is not None]
    return memory | ({"device_memory_gib": max(known_peaks) / GIB} if known_peaks else {})
