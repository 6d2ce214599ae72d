"""Starts, synchronises and ends several processes that compute together.

Every process runs the same program on its local devices. All processes must call computations on
the mesh, and the functions here that say so, in the same order. The first process writes all
files, except arrays, where each process writes its shards.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Int, Shaped

from dinotxt_jax import errors
from dinotxt_jax.errors import UserError

# Seconds to wait until a network file system shows files that another machine wrote.
PATIENCE = 60.0
# The first process waits this long before it exits, because that kills processes that found the
# same error.
_GRACE = 3.0


class CommonError(UserError):
    """An error that all processes raise, so that all can exit normally."""


def start(
    coordinator: str | None, count: int | None, index: int | None, heartbeat_timeout: int
) -> None:
    """Connects this process with the others, if there are any, before any computation.

    Does nothing if `count` is 1, or if nothing is given and no launcher is found (Slurm, Open MPI,
    an indexed Kubernetes job, a TPU VM).

    Args:
        coordinator: the first process's HOST:PORT.
        count: number of processes.
        index: this process's index.
        heartbeat_timeout: seconds after which a silent process counts as lost.

    Raises:
        UserError: inconsistent settings, or the other processes cannot be reached.
    """
    flags = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
    missing = [name for name, value in flags.items() if value is None]
    _check(coordinator, count, index, heartbeat_timeout)
    launcher = _launcher(os.environ)
    if count == 1 or (len(missing) == len(flags) and launcher is None):
        return
    if missing and launcher is None:
        present = ", ".join(f"{name}={flags[name]}" for name in flags if name not in missing)
        raise UserError(
            f"{present} is given without {' and '.join(missing)}, and there is no launcher that "
            "sets it (Slurm, Open MPI, an indexed Kubernetes job, a TPU VM); give all three, or "
            "none for a single process."
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # The service only notes SIGTERM, for Orbax. A signal during the start would be lost, before
    # `Termination` handles signals; without the service it ends the process.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method=None if missing else "deactivate",
            heartbeat_timeout_seconds=heartbeat_timeout,
        )
    except (RuntimeError, ValueError) as error:
        where = f"as {launcher} says" if missing else f"at {coordinator}"
        raise UserError(
            f"the processes could not connect {where} ({_first_line(error)}); start all of them "
            "within five minutes, if necessary with --coordinator=HOST:PORT, --num_processes and "
            "--process_id, or give --num_processes=1 for a single process."
        ) from error


def _check(
    coordinator: str | None, count: int | None, index: int | None, heartbeat_timeout: int
) -> None:
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 2**16:
            raise UserError(
                f"--coordinator={coordinator} is not HOST:PORT; give the first process's host and "
                "a free port of it, for example 10.0.0.1:8476."
            )
    if count is not None and count < 1:
        raise UserError(f"--num_processes={count} is not positive; set it to 1 or more.")
    if index is not None and (index < 0 or (count is not None and index >= count)):
        last = "" if count is None else f" to {count - 1} (--num_processes={count})"
        raise UserError(
            f"--process_id={index} is not a number from 0{last}; give each process a "
            "different number."
        )
    if heartbeat_timeout < 1:
        raise UserError(f"--heartbeat_timeout={heartbeat_timeout} is not positive; give seconds.")


def _launcher(environment: Mapping[str, str]) -> str | None:
    """Returns the name of the launcher that started several processes, from the environment."""
    if "SLURM_STEP_NODELIST" in environment:
        # A shell inside a multi-task allocation is a step with a single task.
        name = "SLURM_STEP_NUM_TASKS"
        if _count(environment, name if name in environment else "SLURM_NTASKS") > 1:
            return "Slurm"
    if _count(environment, "OMPI_COMM_WORLD_SIZE") > 1:
        return "Open MPI"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return "Kubernetes"
    # JAX sets jax_platforms when it finds TPU chips.
    if "tpu" in (getattr(jax.config, "jax_platforms", "") or "").split(","):
        return "the TPU VM"
    return None


def _count(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "1")
    if not text.isdecimal():
        raise UserError(f"{name}={text} is not a number; correct or unset it.")
    return int(text)


def several() -> bool:
    """Returns whether there is more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process writes files and shows progress."""
    return not several() or jax.process_index() == 0


def gathered(values: Sequence[int]) -> Int[np.ndarray, "p n"]:
    """Gathers small integers, equally many per process; all processes must call it."""
    row = np.asarray(values, np.int32)
    return np.asarray(multihost_utils.process_allgather(row)) if several() else row[None]


def wait() -> None:
    """Waits until all processes have called this."""
    gathered([0])


def gathered_texts(text: str) -> list[str]:
    """Gathers one text per process; all processes must call it."""
    return [data.decode() for data in _gathered_bytes(text.encode())]


def gathered_arrays(
    arrays: Mapping[str, Shaped[np.ndarray, "..."]],
) -> list[dict[str, Shaped[np.ndarray, "..."]]]:
    """Gathers arrays from the host, with any names, shapes and dtypes, of every process.

    All processes must call it.
    """
    stream, named = io.BytesIO(), dict[str, Any](arrays)
    np.savez(stream, **named)
    everywhere = []
    for data in _gathered_bytes(stream.getvalue()):
        with np.load(io.BytesIO(data)) as stored:
            everywhere.append(dict(stored))
    return everywhere


def _gathered_bytes(data: bytes) -> list[bytes]:
    if not several():
        return [data]
    lengths = gathered([len(data)])[:, 0]
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    everywhere = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:length].tobytes() for row, length in zip(everywhere, lengths, strict=True)]


def first_says(flag: bool) -> bool:
    """Returns the first process's value; all processes must call it."""
    return bool(gathered([flag])[0, 0])


def agree(failure: UserError | None) -> None:
    """Raises `CommonError` on all processes if any has a failure; all processes must call it."""
    if not several():
        if failure is not None:
            raise failure
        return
    sentences = gathered_texts("" if failure is None else str(failure))
    codes = gathered([0 if failure is None else failure.exit_code])[:, 0]
    raise_common(failure, list(zip(sentences, codes.tolist(), strict=True)))


def raise_common(failure: UserError | None, failures: Sequence[tuple[str, int]]) -> None:
    """Raises `CommonError` if any process has a failure.

    Args:
        failure: the failure of this process, or None.
        failures: sentence and exit code of each process; the sentence is empty without a failure.
    """
    if failure is not None:
        raise CommonError(str(failure), failure.exit_code) from failure
    for index, (sentence, code) in enumerate(failures):
        if sentence:
            raise CommonError(f"process {index} stopped: {sentence}", code)


def check_same(values: Mapping[str, Any]) -> None:
    """Raises `UserError` on all processes if any process has other values than the first.

    Args:
        values: JSON values by the names that the user knows.
    """
    if not several():
        return
    first, *others = map(json.loads, gathered_texts(json.dumps(values)))
    for index, other in enumerate(others, start=1):
        different = [key for key in first.keys() | other.keys() if first.get(key) != other.get(key)]
        if different:
            differences = ", ".join(
                f"{key} {other.get(key)!r} (process 0: {first.get(key)!r})"
                for key in sorted(different)
            )
            raise CommonError(
                f"process {index} has {differences}; start all processes with equal settings."
            )


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block in which either all processes succeed or all raise `CommonError`.

    The block must not communicate with other processes.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    agree(failure)


class _File(Protocol):
    """A file whose existence can be asked for."""

    def exists(self) -> bool: ...


def check_shared(file: _File) -> None:
    """Raises `UserError` on all processes unless all see a file that the first process wrote."""
    with together():
        deadline = time.monotonic() + PATIENCE
        while not file.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {jax.process_index()} does not see {file}, which process 0 wrote; "
                    "give all processes a folder that they share (a network file system, or a "
                    "bucket)."
                )
            time.sleep(0.2)


def placed(rows: np.ndarray, sharding: Sharding) -> jax.Array:
    """Shards rows that every process holds completely; each process keeps its shards."""
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def on_host(array: Any) -> np.ndarray:
    """Returns all elements of an array, gathering shards from other processes.

    All processes must call it if the array is sharded over them.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def others_may_be_gone() -> bool:
    """Returns whether an error is being handled after which other processes may not answer.

    Then this process must not wait for them: they do not know of the error, or one of them has
    stopped writing a checkpoint that the others still wait for.
    """
    error = sys.exception()
    return several() and error is not None and not _is_common(error)


def _is_common(error: BaseException) -> bool:
    return isinstance(error, CommonError) and error.exit_code != errors.STORAGE


def exit_without_waiting(error: UserError) -> NoReturn:
    """Like `errors.exit_with`, without waiting for processes that may not know about the error."""
    if several() and not _is_common(error):
        errors.report(str(error))
        if is_first():
            time.sleep(_GRACE)
        leave(error.exit_code)
    errors.exit_with(error)


# Messages about a lost process from XLA, NCCL and the coordination service. The names alone would
# match too much: NCCL can also run out of memory.
_LOST = re.compile(
    r"\bpeer\b|heartbeat|coordination service"
    r"|(gloo|nccl).*(closed|reset|refused|timed? ?out|abort|remote|network error)",
    re.IGNORECASE | re.DOTALL,
)


def exit_after(error: Exception) -> NoReturn:
    """Ends one of several processes after an error that is not a `UserError`."""
    # The type depends on whether a program was being started or a result awaited.
    if isinstance(error, (RuntimeError, ValueError)) and _LOST.search(str(error)):
        errors.report(
            f"process {jax.process_index()} of {jax.process_count()} lost another process "
            f"({_first_line(error)}); read that process's output, then run the same command on all "
            "again: it continues from the newest checkpoint."
        )
    else:
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
    leave(1)


def leave(code: int) -> NoReturn:
    """Ends this process at once, without JAX's wait for the others, which will notice."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # its file may be on a full disk
            stream.flush()
    os._exit(code)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:200]
