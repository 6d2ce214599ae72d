"""Reads are repeated after storage errors that pass, and only after those."""

from __future__ import annotations

import errno
import http.client
import os
import urllib.error
from collections.abc import Callable
from email.message import Message
from pathlib import Path

import pytest

from dinotxt_jax.data.bad_images import BadImageError, MissingImageError
from dinotxt_jax.data.examples import image_bytes
from dinotxt_jax.storage.faults import is_passing, may_be_damaged
from dinotxt_jax.storage.files import read_json
from dinotxt_jax.storage.retries import repeated, retried


def fault(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def http_error(code: int) -> urllib.error.HTTPError:
    return urllib.error.HTTPError("http://a/b", code, "", Message(), None)


def wrapped(error: Exception) -> Exception:
    """Returns the error of a library that says nothing about the storage error it began with."""
    try:
        try:
            raise error
        except Exception:
            raise RuntimeError("incompatible handler")  # noqa: B904 (as Orbax does)
    except RuntimeError as outer:
        return outer


PASSING = {
    "EIO": fault(errno.EIO),
    "ESTALE": fault(errno.ESTALE),
    "EMFILE": fault(errno.EMFILE),
    "ECONNRESET": fault(errno.ECONNRESET),
    "a connection without a number": ConnectionError("ended after 3 of 9 bytes"),
    "HTTP 429": http_error(429),
    "HTTP 503": http_error(503),
    "a reset inside a URL error": urllib.error.URLError(fault(errno.ECONNRESET)),
    "half an answer": http.client.IncompleteRead(b"x", 9),
    "a bucket": ValueError("UNAVAILABLE: Error reading gs://a/b"),
    "a storage error inside a library's": wrapped(fault(errno.EIO)),
    "a local TensorStore": ValueError("INTERNAL: Error reading x [os_error_code='5']"),
}
LASTING = {
    "ENOENT": fault(errno.ENOENT),
    "EACCES": fault(errno.EACCES),
    "ENOSPC": fault(errno.ENOSPC),
    "damage inside a library's error": wrapped(ValueError("DATA_LOSS: checksum mismatch")),
    "HTTP 404": http_error(404),
    "HTTP 403": http_error(403),
    "no such host": urllib.error.URLError("no such host"),
    "a defect": RuntimeError("INTERNAL: a defect"),
    "damage": ValueError("DATA_LOSS: Error reading x: checksum mismatch"),
}


def failing(error: Exception, times: int) -> tuple[Callable[[], str], list[int]]:
    """Returns an action that fails some times before it succeeds, and the list of calls."""
    calls: list[int] = []

    def action() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return action, calls


@pytest.mark.parametrize("name", PASSING)
def test_an_error_that_passes_is_repeated_and_counted(name: str) -> None:
    action, calls = failing(PASSING[name], 2)
    before = repeated()
    assert retried(action) == "done"
    assert len(calls) == 3
    assert repeated() == before + 2
    assert not may_be_damaged(PASSING[name])


@pytest.mark.parametrize("name", LASTING)
def test_a_lasting_error_is_raised_at_once(name: str) -> None:
    action, calls = failing(LASTING[name], 1)
    with pytest.raises(type(LASTING[name])):
        retried(action)
    assert len(calls) == 1
    assert not is_passing(LASTING[name])


def test_an_error_that_stays_is_raised_as_it_is() -> None:
    action, calls = failing(PASSING["EIO"], 99)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        retried(action)
    assert len(calls) == 5


def test_pauses_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("dinotxt_jax.storage.retries.PAUSES", (0.2, 0.8, 3.0, 10.0))
    monkeypatch.setattr("time.sleep", slept.append)
    action, _ = failing(PASSING["EIO"], 4)
    assert retried(action) == "done"
    for pause, around in zip(slept, (0.2, 0.8, 3.0, 10.0), strict=True):
        assert around / 2 <= pause <= around * 1.5


def test_files_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    file.write_text("{}")
    calls: list[object] = []

    def flaky(kind: type) -> Callable[[Path], bytes]:
        original = kind.read_bytes

        def read_bytes(path: Path) -> bytes:
            calls.append(path)
            if len(calls) % 2:
                raise fault(errno.ESTALE)
            return original(path)

        return read_bytes

    monkeypatch.setattr(Path, "read_bytes", flaky(Path))
    assert image_bytes(file, "a") == b"{}"
    assert read_json(file, "an object", "write it again") == {}
    assert len(calls) == 4


def test_storage_that_stays_broken_is_not_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files would otherwise replace good images by others."""

    def broken(path: Path) -> bytes:
        raise fault(errno.EMFILE)

    monkeypatch.setattr(Path, "read_bytes", broken)
    with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
        image_bytes(tmp_path / "a.png", "a")


@pytest.mark.parametrize("name", ["a\0b.png", "a\ud800b.png"])
def test_a_name_that_is_no_path_is_a_bad_image(name: str, tmp_path: Path) -> None:
    with pytest.raises(BadImageError, match="cannot be read: it is not a path"):
        image_bytes(tmp_path / name, name)
    with pytest.raises(MissingImageError):
        image_bytes(tmp_path / "absent.png", "absent.png")
