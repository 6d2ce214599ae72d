"""Removes what libraries print about errors that they raise as well: our sentences report them."""

from __future__ import annotations

import gc
import logging
import sys
import types
import warnings
from collections.abc import Callable
from typing import TypeVar

from dinotxt_jax.storage.faults import chain
from dinotxt_jax.storage.retries import retried

ResultT = TypeVar("ResultT")


def quieten() -> None:
    """Keeps only one kind of message of Orbax: that an old checkpoint could not be removed.

    Otherwise Orbax logs every file it opens, and its errors with tracebacks. It also reads all
    arrays at the same time and raises the first error; the other reads fail or end unheard.
    """
    logging.getLogger("orbax").setLevel(logging.ERROR)
    logging.getLogger("fsspec").setLevel(logging.WARNING)  # each file that it opens
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    logging.getLogger("absl").addFilter(_is_wanted)
    logging.getLogger("asyncio").addFilter(_is_not_about_a_read)
    hook = sys.unraisablehook
    sys.unraisablehook = lambda event: None if _is_about_a_read(event) else hook(event)


# Errors of saves in the background, as Orbax logs them. With several processes, Orbax raises them
# only after waiting 20 minutes for the others, which meanwhile wait for this process.
failed_saves: list[BaseException] = []


def _is_wanted(record: logging.LogRecord) -> bool:
    if "/orbax/" not in record.pathname:
        return True
    if record.exc_info and record.exc_info[1] and "background save thread" in record.getMessage():
        failed_saves.append(record.exc_info[1])
    record.exc_info = None
    return record.levelno > logging.WARNING and "remove" in str(record.msg)


def _is_not_about_a_read(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    about_a_read = "/orbax/" in message or "OCDBT database" in message
    return not (about_a_read and "was never retrieved" in message)


def _is_about_a_read(event: sys.UnraisableHookArgs) -> bool:
    if isinstance(event.object, types.CoroutineType):
        return "/orbax/" in event.object.cr_code.co_filename
    text = str(event.exc_value)
    if event.object is None:  # a read has ended after its loop was closed
        return isinstance(event.exc_value, RuntimeError) and text == "Event loop is closed"
    # A loop that found no free file descriptor.
    return "EventLoop' object has no attribute '_ssock'" in text


def read(action: Callable[[], ResultT]) -> ResultT:
    """Reads with Orbax, repeatedly as in `retried`; a failure raises its error and prints nothing.

    The remaining tasks of a failed read warn when they are freed, so they are freed here. The error
    loses its traceback, whose frames would keep them.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        try:
            return retried(action)
        except Exception as error:
            for link in chain(error):
                link.__traceback__ = None
            gc.collect()
            raise
