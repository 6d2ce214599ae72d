"""How fast a run is and what it needs: pairs and FLOPs a second, MFU, waiting, memory."""

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
    """FLOPs that the matrix products of a step need, by the shapes of its batch.

    Counted by `flops.matmul_flops` in the step as it is for the whole batch at once and without
    rematerialisation: backbone forward, the rest forward and backward, rows of captions as they are
    (packed or trimmed), all of every attention matrix. The blocks of the contrastive loss count as
    often as they are computed. What `remat` and accumulation compute again does not count.
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
        """Those of `Trainer.train_step` on a batch like this, over all devices; none is run."""
        shapes = tuple((name, array.shape) for name, array in sorted(batch.items()))
        if shapes not in self._known:
            abstract = jax.tree.map(
                lambda array: jax.ShapeDtypeStruct(
                    array.shape, array.dtype, sharding=array.sharding
                ),
                (frozen, dict(batch)),
            )
            # On a mesh the loss would count once for each part of the tensor axis.
            with jax.sharding.use_abstract_mesh(AbstractMesh((), ())):
                self._known[shapes] = matmul_flops(self._trainer.train_step, self._state, *abstract)
        return self._known[shapes]


class Throughput:
    """Rates between two reports; of the whole run unless something else is said."""

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
        """One step of so many pairs and FLOPs that waited `waited` seconds for its data."""
        self._pairs += pairs
        self._flops += flops
        self._waited += waited

    def report(self) -> dict[str, float]:
        """The rates since the last report, and the most memory since the process began.

        `tflops_per_second` is of a device, and so is `mfu`, its part of the peak in bfloat16, where
        that is known; memory is of this process and of the device of it that needed most.
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
    """GiB: `host_memory_gib` of this process, `device_memory_gib` where devices say theirs."""
    unit = 1 if sys.platform == "darwin" else 1024
    memory = {
        "host_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB,
    }
    peaks = [
        (device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()
    ]
    known = [peak for peak in peaks if peak is not None]
    return memory | ({"device_memory_gib": max(known) / GIB} if known else {})
