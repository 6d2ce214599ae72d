"""Several processes with a few simulated devices each, joined over the loopback interface."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import commands

from dinotxt_jax.config import Config, EvaluationConfig

ROOT = commands.ROOT
_JOINED = str(ROOT / "tests/helpers/joined.py")
# Per process; a machine with few cores may be busy with other work.
LIMIT = 400.0


@dataclasses.dataclass
class Group:
    """Processes that were started together.

    Attributes:
        processes: the processes, ordered by process number.
        logs: one file per process with both output streams.
    """

    processes: list[commands.Process]
    logs: list[Path]

    def finish(self, limit: float = LIMIT) -> list[int]:
        """Waits for all processes and returns the exit codes; kills them after `limit` seconds."""
        try:
            return [process.wait(limit) for process in self.processes]
        finally:
            self.kill()

    def kill(self) -> None:
        """Kills the processes that are still running."""
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(LIMIT)

    def output(self, index: int) -> str:
        """Returns the output of one process."""
        return self.logs[index].read_text(errors="replace")

    def everything(self) -> str:
        """Returns the output of all processes, for failure messages."""
        return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')}" for log in self.logs)


def start(
    folder: Path,
    count: int,
    devices: int,
    arguments: Sequence[str],
    process_arguments: Sequence[Sequence[str]] = (),
) -> Group:
    """Runs `python ARGUMENTS` in `count` processes with `devices` simulated devices each.

    Args:
        folder: receives the process output.
        count: number of processes; a single process gets none of the flags that join processes.
        devices: number of devices per process.
        arguments: arguments for all processes; `-m` and a module, or a file.
        process_arguments: further arguments for each process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    group = Group([], [])
    for index in range(count):
        joined = [
            f"--coordinator=127.0.0.1:{port}",
            f"--num_processes={count}",
            f"--process_id={index}",
            "--heartbeat_timeout=20",
        ]
        own = process_arguments[index] if process_arguments else ()
        log = folder / f"process{index}.log"
        log.touch()  # a test may read it before the process writes
        group.processes.append(
            commands.Process(
                [*arguments, *own, *(joined if count > 1 else ())],
                cwd=ROOT,
                env=commands.environment(devices),
                stdout=log,
                stderr=log,
            )
        )
        group.logs.append(log)
    return group


def config_file(config: Config | EvaluationConfig, file: Path) -> str:
    """Returns the flag that passes this config to a command."""
    kind = type(config).__name__
    values = json.dumps(json.dumps(dataclasses.asdict(config)))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(
        "import json\n"
        f"from dinotxt_jax.config import {kind}, from_dict, to_config_dict\n"
        f"VALUES = {values}\n"
        "def get_config():\n"
        f"    return to_config_dict(from_dict({kind}, json.loads(VALUES)))\n"
    )
    return f"--config={file}"


def joined(folder: Path, part: str, count: int, devices: int) -> Group:
    """Runs a part of `joined.py` in `count` processes with `devices` simulated devices each."""
    arguments = [_JOINED, f"--folder={folder}", f"--part={part}"]
    return start(folder / "logs", count, devices, arguments)


def found_by(group: Group, folder: Path) -> list[dict[str, Any]]:
    """Returns the results from each process; asserts that none has failed."""
    codes = group.finish()
    assert set(codes) == {0}, group.everything()
    return [json.loads((folder / f"found{i}.json").read_text()) for i in range(len(codes))]
