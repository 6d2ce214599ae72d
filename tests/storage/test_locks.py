"""The lock of a work directory: one run at a time, and dead owners are replaced."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinotxt_jax import UserError
from dinotxt_jax.storage import locks
from dinotxt_jax.storage.addresses import Address, create
from dinotxt_jax.storage.locks import NAME, RunLock


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "RENEW_EVERY", 0.1)
    monkeypatch.setattr(locks, "STALE_AFTER", 1.0)


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket")


def owned_by(folder: Address, **owner: object) -> None:
    (folder / NAME).write_text(json.dumps({"id": "other", "since": "noon", **owner}))


def test_a_second_run_is_refused_and_may_start_after_the_first(folder: Address) -> None:
    first, second = RunLock(folder), RunLock(folder)
    first.acquire()
    message = rf"is in use by another run \(process {os.getpid()} on {socket.gethostname()}, since"
    with pytest.raises(UserError, match=message):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    assert not (folder / NAME).exists()


def test_the_lock_of_a_dead_process_is_taken_over_at_once(folder: Address) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owned_by(folder, host=socket.gethostname(), pid=dead.pid, started="1")
    started = time.monotonic()
    lock = RunLock(folder)
    lock.acquire()
    assert time.monotonic() - started < 0.5
    lock.release()


def test_a_reused_process_number_is_not_the_owner(folder: Address) -> None:
    owned_by(folder, host=socket.gethostname(), pid=os.getpid(), started="1")
    started = time.monotonic()
    lock = RunLock(folder)
    lock.acquire()
    assert time.monotonic() - started < 0.5  # without waiting for a renewal
    assert json.loads((folder / NAME).read_text())["started"] != "1"
    lock.release()


def test_a_process_that_ended_but_is_not_reaped_is_dead(folder: Address) -> None:
    zombie = subprocess.Popen([sys.executable, "-c", ""])
    started = locks._started(zombie.pid)
    deadline = time.monotonic() + 10
    while locks._started(zombie.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    owned_by(folder, host=socket.gethostname(), pid=zombie.pid, started=started)
    lock = RunLock(folder)
    lock.acquire()
    lock.release()
    assert zombie.wait() == 0


def test_a_lock_that_another_waiting_run_took_over_is_respected(
    folder: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    owned_by(folder, host="elsewhere", pid=1)
    winner, original = RunLock(folder), RunLock._is_alive

    def overtaken(lock: RunLock, owner: dict) -> bool:
        alive = original(lock, owner)
        if not alive and lock is not winner:
            winner.acquire()
        return alive

    monkeypatch.setattr(RunLock, "_is_alive", overtaken)
    with pytest.raises(UserError, match="in use by another run"):
        RunLock(folder).acquire()
    winner.check()
    winner.release()


@pytest.mark.parametrize("text", ['{"id": "other", "host": "elsewhere", "pid": 1}', "", "[]"])
def test_a_lock_from_another_host_is_taken_over_when_nobody_renews_it(
    text: str, folder: Address
) -> None:
    (folder / NAME).write_text(text)
    lock = RunLock(folder)
    lock.acquire()
    assert json.loads((folder / NAME).read_text())["host"] == socket.gethostname()
    lock.release()


def test_a_lock_from_another_host_that_is_renewed_is_respected(
    folder: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = RunLock(folder)
    with monkeypatch.context() as patch:
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        owner.acquire()
    with pytest.raises(UserError, match="on elsewhere"):
        RunLock(folder).acquire()
    owner.release()


def test_a_lock_that_cannot_be_read_does_not_hide_why_a_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(path: Path) -> str:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    lock = RunLock(tmp_path)
    lock.acquire()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", failing)
        lock.release()
    assert (tmp_path / ".lock").exists()


def test_a_run_whose_lock_was_taken_ends(folder: Address) -> None:
    """As after a long suspension, during which the lock seemed stale."""
    lock = RunLock(folder)
    lock.acquire()
    lock.check()
    owned_by(folder, host="elsewhere", pid=7)
    time.sleep(0.5)
    with pytest.raises(UserError, match="in use by another run .process 7 on elsewhere"):
        lock.check()
    lock.release()
    assert (folder / NAME).exists()


def test_a_lock_that_a_repeated_request_finds_is_the_own_one(
    folder: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first request has created it, but its answer was lost."""

    def created_twice(address: Address, text: str) -> None:
        create(address, text)
        raise FileExistsError(errno.EEXIST, "it exists already", str(address))

    monkeypatch.setattr(locks, "create", created_twice)
    lock = RunLock(folder)
    lock.acquire()
    lock.release()
    assert not (folder / NAME).exists()
