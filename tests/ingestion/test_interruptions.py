"""Ingestions that are killed, repeated, damaged or meet failing storage lose nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from pathlib import Path

import commands
import pytest
from ingested import contents, settings

from dinotxt_jax.config import DataConfig, IngestionConfig
from dinotxt_jax.data.array_records import ArrayRecordSource
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.run import ingest
from dinotxt_jax.storage.faults import storage_fault


class FailingSource:
    """A source on a disk that fails at example 22."""

    def __init__(self, data: DataConfig):
        self._source = open_source(data)
        self.captions, self.key = self._source.captions, self._source.key

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        if index == 22:
            raise OSError(errno.EIO, "the disk is gone", "disk")
        return self._source[index]


def children(pid: int) -> list[int]:
    """Returns the processes that a process has started."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    result: list[int] = []
    for task in tasks:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
            result += map(int, (task / "children").read_text().split())
    return result


def killed_run(out: Path, workers: int) -> list[int]:
    """Starts the command, kills it after two shards, and returns the processes it had started."""
    process = commands.Process(
        [
            *("-m", "dinotxt_jax.ingest", f"--output={out}", "--config.data.source=scenes"),
            *("--config.data.num_scenes=300", "--config.data.image_size=32"),
            *("--config.shard_size=10", f"--config.workers={workers}"),
        ],
        cwd=out.parent,
        env=commands.environment(DINOTXT_CACHE=str(out.parent / "cache")),
        stdout=out.parent / "log",
        stderr=out.parent / "errors",
    )
    deadline = time.monotonic() + 120
    while len(list(out.glob("parts/*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, (out.parent / "errors").read_text()
    started = children(process.pid)
    process.kill()
    process.wait(10)
    assert not (out / "manifest.json").exists()
    return started


def test_a_killed_run_continues_and_writes_the_same_bytes(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed_run(killed, workers=1)
    with pytest.raises(UserError, match=r"holds an ingestion that has not finished, expected man"):
        ArrayRecordSource(killed)
    finished = min(killed.glob("parts/*.json"))
    written = finished.stat().st_mtime_ns
    (killed / ".partial-00000000-pairs-00009-of-00030.array_record").write_bytes(b"cut")
    data = DataConfig(num_scenes=300, image_size=32)
    for out in (killed, tmp_path / "whole"):
        config = IngestionConfig(data=data, shard_size=10, workers=1)
        assert ingest(config, str(out))["counts"]["records"] == 300
    assert contents(killed) == contents(tmp_path / "whole")
    assert finished.stat().st_mtime_ns == written


@pytest.mark.slow
def test_worker_processes_end_with_a_killed_run(tmp_path: Path) -> None:
    started = killed_run(tmp_path / "out", workers=2)
    assert len(started) >= 2
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in started):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_second_run_repairs_what_was_damaged_and_rewrites_nothing_else(
    mixed: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, config = tmp_path / "out", settings(mixed, deduplicate="pair")
    ingest(config, str(out))
    before = contents(out)
    shards = sorted(out.glob("*.array_record"))
    content = bytearray(shards[1].read_bytes())
    content[-1] ^= 1
    shards[1].write_bytes(bytes(content))
    shards[2].unlink()
    (out / "parts" / "00003.json").write_text("{}")
    (out / "parts" / "00004.json").write_text("cut")
    times = {file: file.stat().st_mtime_ns for file in (shards[0], shards[5])}
    ingest(config, str(out))
    assert contents(out) == before
    assert {file: file.stat().st_mtime_ns for file in times} == times
    assert "pairs-00001-of-00006.array_record does not have the recorded size" in caplog.text
    assert "00003.json has the fields , expected" in caplog.text
    assert "00004.json is not JSON" in caplog.text


def test_too_many_bad_examples_end_the_run_which_continues_with_a_higher_limit(
    mixed: DataConfig, tmp_path: Path
) -> None:
    strict = DataConfig(**(vars(mixed) | {"max_bad_fraction": 0.05}))
    with pytest.raises(UserError) as raised:
        ingest(settings(strict), str(tmp_path / "out"))
    assert "3 of 40 examples cannot be stored (for instance example 20 (020.img): " in str(
        raised.value
    )
    assert "expected at most config.data.max_bad_fraction = 0.05" in str(raised.value)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert ingest(settings(mixed), str(tmp_path / "out"))["counts"]["quarantined"] == 4


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_failing_storage_ends_the_run_and_loses_nothing(
    workers: int, mixed: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(mixed, workers=workers)
    monkeypatch.setattr("dinotxt_jax.ingestion.run.open_source", FailingSource)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        ingest(config, str(tmp_path / "out"))
    assert storage_fault(raised.value).exit_code == 74  # type: ignore[union-attr]
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    for out in ("out", "whole"):
        ingest(config, str(tmp_path / out))
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_second_run_at_the_same_time_is_refused(mixed: DataConfig, tmp_path: Path) -> None:
    from dinotxt_jax.storage.locks import RunLock

    (tmp_path / "out").mkdir()
    lock = RunLock(tmp_path / "out")
    lock.acquire()
    try:
        with pytest.raises(UserError, match=rf"in use by another run \(process {os.getpid()}"):
            ingest(settings(mixed), str(tmp_path / "out"))
    finally:
        lock.release()
