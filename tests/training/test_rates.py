"""Rates of a run: FLOPs of the model alone, MFU, and the time window of the rates."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import jax
import meshes
import numpy as np
import pytest

from dinotxt_jax import sharding
from dinotxt_jax.runtime.chips import peak_flops
from dinotxt_jax.training import rates
from dinotxt_jax.training.rates import ModelFlops, Throughput, peak_memory
from dinotxt_jax.training.step import Trainer


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Patches the clock to return 0, 4 and 6 seconds."""
    times = iter([0.0, 4.0, 6.0])
    monkeypatch.setattr(rates.time, "perf_counter", lambda: next(times))


@pytest.mark.usefixtures("clock")
def test_rates_are_of_the_time_since_the_last_report() -> None:
    throughput = Throughput()
    throughput.add(100, 24e12, 1.0)
    throughput.add(100, 8e12, 0.0)
    first = throughput.report()
    assert (first["pairs_per_second"], first["data_wait_fraction"]) == (50.0, 0.25)
    assert first["tflops_per_second"] == 8.0 / jax.device_count()
    throughput.add(30, 0.0, 2.0)
    second = throughput.report()
    assert (second["pairs_per_second"], second["data_wait_fraction"]) == (15.0, 1.0)
    assert second["tflops_per_second"] == 0.0


def test_mfu_is_the_part_of_the_peak_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "mfu" not in Throughput().report()  # the peak for these CPUs is unknown
    monkeypatch.setattr(rates, "peak_flops", lambda _: 4e12)
    throughput = Throughput()
    monkeypatch.setattr(throughput, "_start", time.perf_counter() - 2.0)
    throughput.add(1, 16e12, 0.0)
    assert throughput.report()["mfu"] == pytest.approx(2.0 / jax.device_count(), rel=0.05)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA GB200", 2250e12),
        ("TPU v6 lite", 918e12),
        ("TPU v6e", 918e12),
        ("TPU v5p", 459e12),
        ("TPU7x", 1153.5e12),
        ("cpu", None),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peak_rates_are_found_by_device_name(kind: str, expected: float | None) -> None:
    assert peak_flops(kind) == expected


def batch(trainer: Trainer, length: int) -> dict[str, jax.Array]:
    """Returns zeros in the shapes of a cached-feature batch with `length` tokens per caption."""
    pairs, width = trainer.config.pairs_per_step, trainer.model.vision.dim
    rows = {
        "features": np.zeros((pairs, 5, width), np.float32),
        "tokens": np.zeros((pairs, length), np.int32),
    }
    return sharding.global_batch(rows, trainer.mesh)


def test_longer_captions_cost_three_forward_passes_of_the_text_transformer() -> None:
    trainer = meshes.trainer("8x1")
    flops, text = ModelFlops(trainer), trainer.model.text
    with jax.set_mesh(trainer.mesh):
        longer = flops({}, batch(trainer, 12)) - flops({}, batch(trainer, 8))
    assert longer == 3 * (text.flops(16, 12) - text.flops(16, 8)) > 0


def test_recomputation_is_not_counted() -> None:
    trainer = meshes.trainer("8x1")
    config = dataclasses.replace(trainer.config, batch_size=8, accumulate_steps=2, remat="full")
    again = dataclasses.replace(trainer, config=config)
    with jax.set_mesh(trainer.mesh):
        assert ModelFlops(again)({}, batch(again, 12)) == ModelFlops(trainer)(
            {}, batch(trainer, 12)
        )


def test_work_does_not_depend_on_the_mesh() -> None:
    result = set()
    for name in ("8x1", "2x4", "2x2x2"):
        trainer = meshes.trainer(name)
        with jax.set_mesh(trainer.mesh):
            result.add(ModelFlops(trainer)({}, batch(trainer, 12)))
    assert len(result) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="not Linux")
def test_host_memory_is_the_processes_peak() -> None:
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    assert peak_memory()["host_memory_gib"] == pytest.approx(peak / 2**20, rel=0.02)
