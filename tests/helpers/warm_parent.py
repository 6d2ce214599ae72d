"""A process that has imported the libraries and forks one child for each command.

`commands.py` starts it. Requests are JSON lines on standard input, answers JSON lines on standard
output. A child gets separate arguments, folder, environment and streams, runs the module as
`__main__`, and exits like an interpreter: exit handlers, threads, traceback and exit code.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
import warnings
from pathlib import Path
from typing import Any

# Entry points are excluded: they define flags, which only the command's own process may have.
LIBRARIES = (
    "absl.app",
    "dinotxt_jax.cli",
    "dinotxt_jax.evaluation.report",
    "dinotxt_jax.inference",
    "dinotxt_jax.planning.run",
    "dinotxt_jax.training.loop",
    "dinotxt_jax.visualize",
    "matplotlib.pyplot",
    "weights_convert.convert",
)


def main() -> None:
    """Answers requests until standard input ends; in a child, runs the command instead."""
    import_libraries()
    # Garbage collection in a child would touch all objects from the parent and copy the memory.
    gc.collect()
    gc.freeze()
    while line := sys.stdin.readline():
        request = json.loads(line)
        if "poll" in request:
            answer = poll(request["poll"])
        else:
            with warnings.catch_warnings():
                # BLAS has threads and recreates them in a child.
                warnings.simplefilter("ignore", DeprecationWarning)
                answer = os.fork()
            if answer == 0:
                return become(request)
        print(json.dumps(answer), flush=True)
    return None


def import_libraries() -> None:
    """Imports all libraries, and checks that no JAX backend has started threads."""
    for name in LIBRARIES:
        importlib.import_module(name)
    from jax._src import xla_bridge

    if xla_bridge._backends:
        sys.exit("an import has started a backend of JAX, so that no child could use it")


def poll(process: int) -> int | None:
    """Returns the exit code of a child, negative for a signal, or None while it runs."""
    ended, status = os.waitpid(process, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def become(request: dict[str, Any]) -> None:
    """Turns this child into the command `python ARGUMENTS`."""
    replace_streams(request["stdout"], request["stderr"])
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    program, *arguments = request["arguments"]
    if any(argument.startswith("--num_processes") for argument in arguments):
        share_compiled_programs()
    if program == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = arguments
        sys.modules.pop(arguments[0], None)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(program).resolve().parent)
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


def share_compiled_programs() -> None:
    """Lets joined processes read the programs that the first of them has cached.

    On CPUs the key of a program in JAX's cache differs between joined processes, and only the
    first process writes to the cache: without this, the others would always compile.
    """
    from jax._src import cache_key

    cache_key._hash_accelerator_config = cache_key._hash_devices


def replace_streams(stdout: str, stderr: str) -> None:
    """Redirects input from /dev/null and output to files; equal paths share one file."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(stdout, flags), 1)
    if stderr == stdout:
        os.dup2(1, 2)
    else:
        os.dup2(os.open(stderr, flags), 2)


if __name__ == "__main__":
    main()
