"""Runs project commands as processes forked from a parent that has imported the libraries.

An interpreter spends seconds on imports before a command does anything; forking a process that
has already imported the libraries takes a few hundredths of a second. Everything else is as in
`python ARGUMENTS`: arguments, folder, environment, streams, signals and exit codes. Tests of
imports need `fresh=True`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
# Libraries read these variables during import, so each set of values needs a separate parent.
_READ_BY_IMPORTS = ("HF_", "JAX_", "PYTHON", "TF_")


def environment(devices: int = 1, **changes: str) -> dict[str, str]:
    """Returns the environment for a command with `devices` simulated devices."""
    kept = [
        flag
        for flag in os.environ.get("XLA_FLAGS", "").split()
        if "xla_force_host_platform_device_count" not in flag
    ]
    count = f"--xla_force_host_platform_device_count={devices}"
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    variables = {"XLA_FLAGS": " ".join([*kept, count]), "PYTHONPATH": path}
    return os.environ | variables | changes


class Process:
    """A forked command, with the `subprocess.Popen` methods that tests need."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path,
    ):
        self._parent = _parent(
            tuple((k, v) for k, v in sorted(env.items()) if k.startswith(_READ_BY_IMPORTS))
        )
        self.pid: int = self._parent.ask(
            {
                "arguments": list(arguments),
                "cwd": str(cwd),
                "env": dict(env),
                "stdout": str(stdout),
                "stderr": str(stderr),
            }
        )
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Returns the exit code, negative for a signal, or None while the process runs."""
        if self.returncode is None:
            self.returncode = self._parent.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Returns the exit code; raises `subprocess.TimeoutExpired` after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL unless the process has ended."""
        self.send_signal(signal.SIGKILL)


def run(
    arguments: Sequence[str],
    *,
    cwd: Path = ROOT,
    env: Mapping[str, str] | None = None,
    timeout: float = 240,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGUMENTS` until it exits.

    Args:
        arguments: `-m`, a module and the module's arguments, or a file and the file's arguments.
        cwd: the working directory.
        env: all environment variables; by default those from `environment()`.
        timeout: seconds after which the process is killed and `subprocess.TimeoutExpired` raised.
        fresh: starts an interpreter instead of a fork.

    Returns:
        The exit code and both streams.
    """
    env = environment() if env is None else env
    if fresh:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=dict(env),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = Process(arguments, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            code = process.wait(timeout)
        except BaseException:
            process.kill()
            raise
        return subprocess.CompletedProcess(
            list(arguments), code, out.read_text(), err.read_text(errors="replace")
        )


class _Parent:
    """The `warm_parent.py` process for one set of environment variables."""

    def __init__(self, variables: Mapping[str, str]):
        others = {k: v for k, v in os.environ.items() if not k.startswith(_READ_BY_IMPORTS)}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("warm_parent.py"))],
            cwd=ROOT,
            env=others | dict(variables),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(self._end)

    def ask(self, request: Mapping[str, Any]) -> Any:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, f"the parent of commands has ended with {self._process.wait(10)}"
        return json.loads(answer)

    def _end(self) -> None:
        self._process.communicate()


@functools.cache
def _parent(variables: tuple[tuple[str, str], ...]) -> _Parent:
    return _Parent(dict(variables))
