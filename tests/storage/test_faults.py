"""Storage faults: exit codes by cause, and saves that fail in the background."""

from __future__ import annotations

import errno
import os
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dinotxt_jax.errors import STORAGE, USER, UserError
from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.storage.faults import storage_fault

LARGE = {"trainable": {"large": np.random.default_rng(0).normal(size=(1000, 1000))}}


@pytest.mark.parametrize(
    ("number", "code", "advice"),
    [
        (errno.ENOENT, USER, "correct the path"),
        (errno.EACCES, USER, "correct the path"),
        (errno.ENOSPC, STORAGE, "free space there"),
        (errno.EDQUOT, STORAGE, "free space there"),
        (errno.EIO, STORAGE, "run the same command again"),
        (errno.ESTALE, STORAGE, "run the same command again"),
    ],
)
def test_only_faults_that_the_user_must_correct_have_exit_code_2(
    number: int, code: int, advice: str
) -> None:
    fault = storage_fault(OSError(number, os.strerror(number), "a/file"))
    assert fault is not None
    assert fault.exit_code == code
    assert str(fault).startswith(f"a/file: {os.strerror(number)}")
    assert advice in str(fault)


def test_lost_connections_are_storage_faults() -> None:
    fault = storage_fault(ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"))
    assert fault is not None
    assert fault.exit_code == STORAGE


def test_other_errors_are_no_storage_faults() -> None:
    assert storage_fault(ValueError("the shapes do not fit")) is None
    assert storage_fault(RuntimeError("INTERNAL: a defect")) is None
    assert storage_fault(OSError("cannot identify the format")) is None
    assert storage_fault(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None


@pytest.fixture
def small_files() -> Iterator[None]:
    """Lets no file grow above 1 MiB, as a disk with little space does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def poll(checkpoints: Checkpoints) -> None:
    for _ in range(1000):
        checkpoints.check()
        time.sleep(0.01)


@pytest.mark.usefixtures("small_files")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failed_save_is_noticed_without_waiting_for_the_next_one(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    checkpoints.save(1, {"trainable": {"small": np.ones(3)}}, {})
    checkpoints.wait()
    checkpoints.save(2, LARGE, {})
    with pytest.raises(UserError, match="checkpoints/2.*: File too large; free space") as failed:
        poll(checkpoints)
    assert failed.value.exit_code == STORAGE
    checkpoints.close()
    assert checkpoints.latest() == 1


@pytest.mark.usefixtures("small_files")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_fails_at_the_end_is_an_error(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 3)
    checkpoints.save(1, LARGE, {})
    with pytest.raises(UserError, match="File too large"):
        checkpoints.close()


def test_a_folder_of_arrays_that_cannot_be_opened_is_a_fault_of_the_storage() -> None:
    """The words of TensorStore where too many files are open."""
    text = "Failed to open directory: \"/r/d\": Too many open files [os_error_code='24']"
    fault = storage_fault(ValueError(f"RESOURCE_EXHAUSTED: {text}"))
    assert fault is not None
    assert fault.exit_code == STORAGE
