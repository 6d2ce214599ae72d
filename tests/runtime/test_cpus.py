"""The CPUs of a process: affinity, and the limits of control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dinotxt_jax.config import DataConfig
from dinotxt_jax.config.sources import MixtureConfig
from dinotxt_jax.data.parallelism import decoding_threads, decoding_workers, training_threads
from dinotxt_jax.runtime import cpus


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 64 CPUs and no limit; returns the folder of its control groups."""
    monkeypatch.setattr(cpus, "_CGROUPS", tmp_path)
    monkeypatch.setattr(cpus, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_control_groups_the_affinity_counts(machine: Path) -> None:
    assert cpus.available_cpus() == 64


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 64),
        ({"a/b": "max 100000"}, 64),
        ({"a/b": "250000 100000"}, 3),
        ({"a": "200000 100000", "a/b": "max 100000"}, 2),
        ({"": "800000 100000", "a": "1600000 100000"}, 8),
        ({"a/b": "1000 100000"}, 1),
    ],
)
def test_the_lowest_limit_of_the_groups_counts(
    machine: Path, limits: dict[str, str], count: int
) -> None:
    write(machine / "membership", "0::/a/b\n")
    for group, text in limits.items():
        write(machine / group / "cpu.max", text + "\n")
    assert cpus.available_cpus() == count


def test_version_1_of_control_groups_is_read(machine: Path) -> None:
    write(machine / "membership", "4:memory:/m\n2:cpu,cpuacct:/a\n0::/\n")
    write(machine / "cpu,cpuacct/a/cpu.cfs_quota_us", "-1\n")
    write(machine / "cpu,cpuacct/a/cpu.cfs_period_us", "100000\n")
    assert cpus.available_cpus() == 64
    write(machine / "cpu,cpuacct/a/cpu.cfs_quota_us", "350000\n")
    assert cpus.available_cpus() == 4


@pytest.mark.parametrize(
    ("count", "threads", "disk", "workers"),
    [(1, 16, 2, 0), (2, 16, 2, 0), (7, 16, 7, 0), (8, 16, 8, 2), (112, 112, 112, 28)],
)
def test_default_threads_and_workers_follow_the_cpus(
    monkeypatch: pytest.MonkeyPatch,
    machine: Path,
    count: int,
    threads: int,
    disk: int,
    workers: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(count), raising=False)
    assert (decoding_threads(-1), decoding_workers(-1)) == (threads, workers)
    assert (decoding_threads(0), decoding_workers(0)) == (0, 0)
    part = MixtureConfig(source="jsonl", path="gs://bucket/pairs.jsonl")
    local, mixed = DataConfig(path="pairs"), DataConfig(mixture={"a": MixtureConfig(), "b": part})
    assert (training_threads(local), training_threads(mixed)) == (disk, threads)
    assert training_threads(DataConfig(path="pairs", threads=3)) == 3
    assert (decoding_threads(5), decoding_workers(3)) == (5, 3)
