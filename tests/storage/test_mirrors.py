"""Files that grow during a run appear in a bucket at intervals, and completely at the end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dinotxt_jax.storage import mirrors
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.mirrors import Mirror


def test_a_local_folder_is_written_directly(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path)
    assert mirror.path == tmp_path
    mirror.copy()
    mirror.close()
    assert tmp_path.is_dir()


def test_files_are_copied_on_request_and_at_the_end(bucket: Address) -> None:
    mirror = Mirror(bucket)
    (mirror.path / "a").mkdir()
    (mirror.path / "a/rows.jsonl").write_text("1\n")
    mirror.copy()
    assert (bucket / "a/rows.jsonl").read_text() == "1\n"
    (mirror.path / "a/rows.jsonl").write_text("1\n2\n")
    mirror.close()
    assert (bucket / "a/rows.jsonl").read_text() == "1\n2\n"
    assert not mirror.path.exists()


def test_files_are_copied_at_intervals(bucket: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    mirror = Mirror(bucket)
    (mirror.path / "rows").write_text("1\n")
    deadline = time.monotonic() + 20
    while not (bucket / "rows").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mirror.close()


def test_a_failed_copy_at_an_interval_is_made_up_for(
    bucket: Address, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mirrors, "EVERY", 0.05)
    upload, failures = mirrors.upload, iter([True])

    def failing(file: Path, address: Address) -> None:
        if next(failures, False):
            raise PermissionError(13, "access is denied", str(address))
        upload(file, address)

    monkeypatch.setattr(mirrors, "upload", failing)
    mirror = Mirror(bucket)
    (mirror.path / "rows").write_text("1\n")
    deadline = time.monotonic() + 20
    while not (bucket / "rows").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mirror.close()
    assert "cannot be written at the moment" in caplog.text
