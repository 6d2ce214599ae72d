"""A lock that keeps a second run out of a work directory, also on network disks and in buckets.

The lock is a file with the owner's name, whose modification time the owner renews every few
seconds (in a bucket, the object is written again). It does not rely on the locks of the file
system, which not every network shows to other hosts, nor on equal clocks: a lock is stale if it is
not renewed while somebody waits for it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, create, is_remote
from dinotxt_jax.storage.retries import retried

NAME = ".lock"
# Seconds between two renewals, and without one until a lock counts as stale.
RENEW_EVERY = 5.0
STALE_AFTER = 60.0


class RunLock:
    """The lock for one work directory, held from `acquire` to `release`.

    Args:
        folder: the work directory, which must exist.
    """

    def __init__(self, folder: Address):
        self._folder, self._file = folder, folder / NAME
        self._id, self._text = uuid.uuid4().hex, ""
        self._stop = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self) -> None:
        """Takes the lock; waits up to a minute to see whether a present owner is alive.

        Raises:
            UserError: another run holds the lock.
        """
        owner = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid()}
        owner |= {"started": _started(os.getpid()), "since": time.strftime("%F %T %z")}
        self._text = json.dumps(owner)
        while not self._create():
            other = self._owner()
            if other is None:
                continue  # released meanwhile
            if self._is_alive(other):
                raise self._held_by(other)
            if self._owner() == other:  # another waiting run may have taken it over first
                self._file.unlink(missing_ok=True)
        self._thread.start()

    def check(self) -> None:
        """Raises `UserError` if another run has taken the lock, after this one seemed dead."""
        if self._lost:
            raise self._held_by(self._owner() or {})

    def release(self) -> None:
        """Gives the lock back; if the storage fails, the next run finds that this one has ended."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        with contextlib.suppress(OSError):  # would hide why the run ends
            owner = retried(self._owner)
            if owner is not None and owner.get("id") == self._id:
                self._file.unlink(missing_ok=True)

    def _create(self) -> bool:
        # A repeated request may find the lock that the first one has created, so the owner decides.
        with contextlib.suppress(FileExistsError):
            if not self._file.exists():  # not every server that speaks a bucket's protocol looks
                create(self._file, self._text)
        owner = self._owner()
        return owner is not None and owner.get("id") == self._id

    def _owner(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(self._file.read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            return {}  # damaged: nobody can be asked, so only the heartbeat counts
        return owner if isinstance(owner, dict) else {}

    def _is_alive(self, owner: dict[str, Any]) -> bool:
        if owner.get("host") == socket.gethostname() and isinstance(owner.get("pid"), int):
            return _is_running(owner["pid"], owner.get("started"))
        logging.info("waiting to see whether the run on %s is alive", owner.get("host", "?"))
        deadline = time.monotonic() + STALE_AFTER
        first = self._modified()
        while time.monotonic() < deadline:
            time.sleep(min(1.0, RENEW_EVERY / 4))
            modified = self._modified()
            if modified is None:
                return False
            if modified != first:
                return True
        return False

    def _modified(self) -> float | None:
        with contextlib.suppress(FileNotFoundError):
            return self._file.stat().st_mtime
        return None

    def _renew(self) -> None:
        while not self._stop.wait(RENEW_EVERY):
            owner = None
            with contextlib.suppress(OSError):  # may pass
                owner = self._owner()
                if owner is not None and owner.get("id") == self._id:
                    self._touch()
                    continue
            if owner is not None:
                self._lost = True
                return

    def _touch(self) -> None:
        if is_remote(self._file):
            self._file.write_text(self._text)
        else:
            os.utime(self._file)

    def _held_by(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"{self._folder} is in use by another run (process {owner.get('pid', 'unknown')} on "
            f"{owner.get('host', 'an unknown host')}, since {owner.get('since', 'unknown')}); end "
            "that run first, or take another folder."
        )


class LockState(NamedTuple):
    """Who holds the lock of a work directory.

    Attributes:
        owner: the process and the host, for messages.
        is_alive: whether the process is known to run (this host) or renewed the lock within the
            last minute by this host's clock (other hosts).
    """

    owner: str
    is_alive: bool


def lock_state(folder: Address) -> LockState | None:
    """Returns who holds the lock of a work directory, without waiting; None if nobody does."""
    lock = RunLock(folder)
    owner, modified = lock._owner(), lock._modified()
    if owner is None or modified is None:
        return None
    host, pid = owner.get("host", "an unknown host"), owner.get("pid", "unknown")
    if host == socket.gethostname() and isinstance(pid, int):
        alive = _is_running(pid, owner.get("started"))
    else:
        alive = time.time() - modified < STALE_AFTER
    return LockState(f"process {pid} on {host}", alive)


def _started(pid: int) -> str:
    """Returns the start time of a process, which tells reused process numbers apart.

    Empty for a process that has ended, also before its parent has asked for the exit code.
    """
    with contextlib.suppress(OSError):
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if state in "XZ" else fields[18]
    return ""


def _is_running(pid: int, started: str | None) -> bool:
    if _started(os.getpid()):
        return _started(pid) == started
    try:
        os.kill(pid, 0)  # no /proc: sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
