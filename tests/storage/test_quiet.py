"""Removes log lines and events of Orbax, and no others."""

from __future__ import annotations

import logging
import sys
import types

import pytest

from dinotxt_jax.storage import quiet


def record(path: str, level: int, message: str) -> logging.LogRecord:
    try:
        raise ValueError("full")
    except ValueError:
        return logging.LogRecord("absl", level, path, 1, message, (), sys.exc_info())


def test_of_orbax_only_a_failed_removal_is_logged_and_without_traceback() -> None:
    removal = record("/x/orbax/deleter.py", logging.ERROR, "Failed to remove checkpoint")
    assert quiet._is_wanted(removal)
    assert removal.exc_info is None
    assert not quiet._is_wanted(record("/x/orbax/metadata.py", logging.ERROR, "Failed to parse"))
    assert not quiet._is_wanted(record("/x/orbax/deleter.py", logging.INFO, "removed it"))


def test_records_of_others_stay_as_they_are() -> None:
    ours = record("/x/dinotxt_jax/loop.py", logging.INFO, "step 3 is saved")
    assert quiet._is_wanted(ours)
    assert ours.exc_info is not None
    lost = record("/x/asyncio/base_events.py", logging.ERROR, "Task exception was never retrieved")
    assert quiet._is_not_about_a_read(lost)


@pytest.mark.parametrize(
    ("owner", "error", "hidden"),
    [
        (None, RuntimeError("Event loop is closed"), True),
        (None, RuntimeError("something else"), False),
        ("an object of the user", RuntimeError("Event loop is closed"), False),
        (print, AttributeError("'_UnixSelectorEventLoop' object has no attribute '_ssock'"), True),
        (print, AttributeError("'Loader' object has no attribute 'file'"), False),
    ],
)
def test_only_events_of_failed_reads_are_hidden(
    owner: object, error: Exception, hidden: bool
) -> None:
    event = types.SimpleNamespace(object=owner, exc_value=error)
    assert quiet._is_about_a_read(event) == hidden  # type: ignore[arg-type]


def test_a_coroutine_of_the_user_is_not_hidden() -> None:
    async def mine() -> None:
        """Does nothing."""

    coroutine = mine()
    event = types.SimpleNamespace(object=coroutine, exc_value=ValueError("x"))
    assert not quiet._is_about_a_read(event)  # type: ignore[arg-type]
    coroutine.close()
