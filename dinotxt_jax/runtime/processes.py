"""Several processes that compute together: how they start, agree with each other, and end.

Every process runs the same program on its own devices. What is computed on the mesh, and what
agrees processes (all functions here that say so), must be called by all of them in the same order.
Files are written by the first process, except arrays, of which each writes its own parts.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding
from jaxtyping import Int

from dinotxt_jax import errors
from dinotxt_jax.errors import UserError

# Seconds that a network file system may take to show what another machine wrote.
PATIENCE = 60.0
# Others that have found the same error end before the first process does: it takes them with it.
_GRACE = 3.0


class CommonError(UserError):
    """An error that all processes raise, so that they can end in order."""


def start(
    coordinator: str | None, count: int | None, index: int | None, heartbeat_timeout: int
) -> None:
    """Joins this process with others, if there are others; must come before any computation.

    Where nothing is given and no launcher is found (Slurm, Open MPI, an indexed Kubernetes job, a
    TPU VM), or `count` is 1, this does nothing.

    Args:
        coordinator: HOST:PORT of the first process.
        count: number of processes. index: of this one.
        heartbeat_timeout: seconds after which a process that does not answer counts as lost.

    Raises:
        UserError: settings that do not go together, or the others cannot be reached.
    """
    given = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
    missing = [name for name, value in given.items() if value is None]
    _check(coordinator, count, index, heartbeat_timeout)
    launcher = _launcher(os.environ)
    if count == 1 or (len(missing) == len(given) and launcher is None):
        return
    if missing and launcher is None:
        present = ", ".join(f"{name}={given[name]}" for name in given if name not in missing)
        raise UserError(
            f"{present} is given without {' and '.join(missing)}, and there is no launcher that "
            "says it (Slurm, Open MPI, an indexed Kubernetes job, a TPU VM); give all three, or "
            "none for a single process."
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
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
            f"the processes could not be joined {where} ({_first_line(error)}); start all of them "
            "within five minutes, with --coordinator=HOST:PORT, --num_processes and --process_id "
            "if need be, or give --num_processes=1 for a single one."
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
            f"--process_id={index} is not a number from 0{last}; give every process its own."
        )
    if heartbeat_timeout < 1:
        raise UserError(f"--heartbeat_timeout={heartbeat_timeout} is not positive; give seconds.")


def _launcher(environment: Mapping[str, str]) -> str | None:
    """What started several processes, as far as the environment tells."""
    if "SLURM_STEP_NODELIST" in environment:
        # A shell inside an allocation of several tasks is a step of one.
        tasks = environment.get("SLURM_STEP_NUM_TASKS", environment.get("SLURM_NTASKS", "1"))
        if int(tasks) > 1:
            return "Slurm"
    if int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1:
        return "Open MPI"
    if {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys():
        return "Kubernetes"
    # JAX sets this where it finds TPU chips.
    if "tpu" in (getattr(jax.config, "jax_platforms", "") or "").split(","):
        return "the TPU VM"
    return None


def several() -> bool:
    """Whether this process has others beside it."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this process writes files and shows progress."""
    return not several() or jax.process_index() == 0


def gathered(values: Sequence[int]) -> Int[np.ndarray, "p n"]:
    """Equally many small numbers of every process; all processes must call it."""
    row = np.asarray(values, np.int32)
    return np.asarray(multihost_utils.process_allgather(row)) if several() else row[None]


def wait() -> None:
    """Goes on when all processes have come here."""
    gathered([0])


def gathered_texts(text: str) -> list[str]:
    """A text of every process; all processes must call it."""
    if not several():
        return [text]
    encoded = np.frombuffer(text.encode(), np.uint8)
    lengths = gathered([len(encoded)])[:, 0]
    padded = np.zeros(max(lengths), np.uint8)
    padded[: len(encoded)] = encoded
    everywhere = np.asarray(multihost_utils.process_allgather(padded))
    return [
        row[:length].tobytes().decode() for row, length in zip(everywhere, lengths, strict=True)
    ]


def first_says(flag: bool) -> bool:
    """What the first process thinks; all processes must call it."""
    return bool(gathered([flag])[0, 0])


def agree(failure: UserError | None) -> None:
    """Raises the failures of all processes as a `CommonError`; all processes must call it."""
    if not several():
        if failure is not None:
            raise failure
        return
    sentences = gathered_texts("" if failure is None else str(failure))
    if failure is not None:
        raise CommonError(str(failure)) from failure
    for index, sentence in enumerate(sentences):
        if sentence:
            raise CommonError(f"process {index} cannot go on: {sentence}")


def check_same(values: Mapping[str, Any]) -> None:
    """Raises `UserError` on all processes that names where one of them differs from the first.

    Args:
        values: by what the user calls them; anything that JSON can hold.
    """
    if not several():
        return
    first, *others = map(json.loads, gathered_texts(json.dumps(values)))
    for index, other in enumerate(others, start=1):
        different = [key for key in first.keys() | other.keys() if first.get(key) != other.get(key)]
        if different:
            found = ", ".join(
                f"{key} {other.get(key)!r} (process 0: {first.get(key)!r})"
                for key in sorted(different)
            )
            raise CommonError(f"process {index} has {found}; give all processes the same.")


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A block in which either all processes succeed, or all end with a `CommonError`.

    Nothing in it may need another process.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    agree(failure)


def check_shared(file: Path) -> None:
    """Raises `UserError` on all processes if one does not see a file that the first one wrote."""
    with together():
        deadline = time.monotonic() + PATIENCE
        while not file.exists():
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {jax.process_index()} does not see {file}, which process 0 wrote; "
                    "give all processes a folder that they share (a network file system)."
                )
            time.sleep(0.2)


def placed(rows: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every process holds whole on the devices of all; each keeps its parts."""
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])


def on_host(array: Any) -> np.ndarray:
    """All elements of an array, of which other processes may hold parts.

    All processes must call it if it is spread over them.
    """
    if isinstance(array, jax.Array) and not array.is_fully_addressable:
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    return np.asarray(array)


def others_may_be_gone() -> bool:
    """Whether an error is being raised of which not all processes know: nobody waits for them."""
    error = sys.exception()
    return several() and error is not None and not isinstance(error, CommonError)


def exit_without_waiting(error: UserError) -> NoReturn:
    """`errors.exit_with`; does not wait for processes that may not know of the error."""
    if several() and not isinstance(error, CommonError):
        print(f"error: {error}", file=sys.stderr)
        if is_first():
            time.sleep(_GRACE)
        leave(2)
    errors.exit_with(error)


# How XLA, NCCL and the coordination service call a process that is gone. Their names alone would be
# too little: NCCL can also run out of memory.
_LOST = re.compile(
    r"\bpeer\b|heartbeat|coordination service"
    r"|(gloo|nccl).*(closed|reset|refused|timed? ?out|abort|remote|network error)",
    re.IGNORECASE | re.DOTALL,
)


def exit_after(error: Exception) -> NoReturn:
    """Ends one of several processes on an error that is none of the user's."""
    # Which kind it is depends on whether a program was being started or its result awaited.
    if isinstance(error, (RuntimeError, ValueError)) and _LOST.search(str(error)):
        print(
            f"error: process {jax.process_index()} of {jax.process_count()} lost another one "
            f"({_first_line(error)}); see what that one said, then run the same command on all "
            "again: it goes on from the newest checkpoint.",
            file=sys.stderr,
        )
    else:
        traceback.print_exception(error)
    leave(1)


def leave(code: int) -> NoReturn:
    """Ends this process at once, where JAX would wait for the others; they notice that it left."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")[:200]
