"""The table with all faults that the soak injects."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

# `soak_run` must be imported first: it makes the test helpers importable.
from soak_run import CACHE, FILES, LIMIT, RECORDS, Run, last_line, last_step, wait_until

# isort: split
import several
from damage import CHECKPOINT_DAMAGES, empty, empty_all, flip, largest, truncate

from dinotxt_jax.errors import STORAGE, USER

TERMINATED, INTERRUPTED, KILLED = 143, 130, -signal.SIGKILL
# After losing another process, a process exits with 1, or JAX aborts or (rarely) crashes it.
LOST_PARTNER = (1, -signal.SIGABRT, -signal.SIGSEGV)

# A short fault may fail a save that is in progress; the signal may then arrive while the run ends.
SAVED_OR_FAILED = (TERMINATED, STORAGE, -signal.SIGTERM)

Action = Callable[[Run, several.Group], None]
Damage = Callable[[Path], object]


def terminate(run: Run, group: several.Group) -> None:
    """Sends SIGTERM to a random process."""
    run.send(group, signal.SIGTERM)


def nothing(run: Run, group: several.Group) -> None:
    """Does nothing: the run ends without help."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        codes: the allowed exit codes.
        before: damages files before the start.
        during: acts on the training processes.
        undo: repairs the damage that a user would have to repair.
        processes: required number of processes; 0 for any number.
        sources: the kinds of data to which the fault applies.
        loses: number of newest checkpoints that `before` damages.
        waits: whether to wait for a few steps before `during`.
        sentence: whether the run must end with an error sentence.
        flags: additional command-line flags.
    """

    codes: tuple[int, ...] = (TERMINATED,)
    before: Callable[[Run], object] = lambda run: None
    during: Action = terminate
    undo: Callable[[Run], object] = lambda run: None
    processes: int = 0
    sources: Sequence[str] = (FILES, RECORDS, CACHE)
    loses: int = 0
    waits: bool = True
    sentence: bool = False
    flags: Sequence[str] = ()


def damaged_newest(damage: Damage) -> Fault:
    """Returns a fault that damages the newest checkpoint."""
    return Fault(before=lambda run: damage(run.checkpoints()[0]), loses=1)


def refused(
    path: Callable[[Run], Path], damage: Damage, sources: Sequence[str] = Fault.sources
) -> Fault:
    """Returns a fault that damages a file without which the run must refuse to start."""

    def before(run: Run) -> None:
        run.keep(path(run))
        damage(path(run))

    return Fault(
        (USER,),
        before=before,
        during=nothing,
        undo=lambda run: run.restore(path(run)),
        sources=sources,
        waits=False,
        sentence=True,
    )


def cache_damaged(pattern: str, damage: Damage, running: bool = False) -> Fault:
    """Returns a fault that damages a feature cache file, which `precompute` repairs."""

    def act(run: Run) -> None:
        damage(sorted(run.cache.glob(pattern))[-1])

    repair = Fault(
        (USER,),
        during=nothing,
        undo=Run.precompute,
        sources=(CACHE,),
        waits=False,
        sentence=True,
    )
    if running:
        return dataclasses.replace(repair, during=lambda run, group: act(run), waits=True)
    return dataclasses.replace(repair, before=act)


def healed(damage: Callable[[Run], object]) -> Fault:
    """Returns a fault with damage that the run repairs automatically."""
    return Fault(before=damage)


def rewritten(file: Path, change: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    """Rewrites a file with changed lines."""
    file.write_bytes(b"\n".join(change(file.read_bytes().split(b"\n"))))


def limit(group: several.Group, name: int, value: int) -> None:
    """Sets a soft resource limit for all processes; -1 stands for the hard limit."""
    for process in group.processes:
        if process.poll() is None:
            _, hard = resource.prlimit(process.pid, name)
            resource.prlimit(process.pid, name, (hard if value < 0 else value, hard))


def fill_disk(run: Run, group: several.Group) -> None:
    """Limits file sizes to slightly more than the logs, so that checkpoints cannot be written."""
    texts = [*group.logs, run.workdir / "metrics.jsonl"]
    limit(group, resource.RLIMIT_FSIZE, max(file.stat().st_size for file in texts) + 2**15)


def fill_disk_for_a_while(run: Run, group: several.Group) -> None:
    """Frees space after a second; a run that did not save meanwhile continues."""
    fill_disk(run, group)
    time.sleep(1)
    limit(group, resource.RLIMIT_FSIZE, -1)
    terminate(run, group)


def open_no_file(run: Run, group: several.Group) -> None:
    """Prevents the processes from opening files for a second."""
    limit(group, resource.RLIMIT_NOFILE, 3)
    time.sleep(1)
    limit(group, resource.RLIMIT_NOFILE, -1)
    terminate(run, group)


def start_again(run: Run, group: several.Group) -> None:
    """Starts a second run in the same work directory, which must be refused."""
    second = run.start(1, 1)
    if second.finish(LIMIT) != [USER] or "error: " not in second.output(0):
        raise RuntimeError(f"a second run: {last_line(second)}")
    terminate(run, group)


def suspend(run: Run, group: several.Group) -> None:
    """Suspends all processes for two seconds."""
    for number in (signal.SIGSTOP, signal.SIGCONT):
        for process in group.processes:
            process.send_signal(number)
        time.sleep(2)
    terminate(run, group)


def interrupt_twice(run: Run, group: several.Group) -> None:
    """Sends SIGINT twice, like a user who presses Ctrl-C twice."""
    for _ in range(2):
        group.processes[0].send_signal(signal.SIGINT)
        time.sleep(0.2)


def signal_early(number: signal.Signals) -> Action:
    """Returns an action that signals all processes within the first seconds after the start."""

    def act(run: Run, group: several.Group) -> None:
        time.sleep(run.random.uniform(0, 4))
        for process in group.processes:
            process.send_signal(number)

    return act


def kill_while_saving(run: Run, group: several.Group) -> None:
    """Kills the run while a checkpoint folder still has a temporary name."""
    wait_until(group, lambda: any(run.workdir.glob("checkpoints/*tmp*")))
    group.kill()


def kill_worker(run: Run, group: several.Group) -> None:
    """Kills a decoding worker, and waits for further steps."""
    before, process = last_step(group), run.random.choice(group.processes)
    workers = [pid for pid in children(process.pid) if b"spawn_main" in command_line(pid)]
    os.kill(run.random.choice(workers), signal.SIGKILL)
    wait_until(group, lambda: last_step(group) > before + 10)
    terminate(run, group)


def children(process: int) -> list[int]:
    """Returns a process's children."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(pid) for file in lists for pid in file.read_text().split()]


def command_line(process: int) -> bytes:
    """Returns a process's command line."""
    return Path(f"/proc/{process}/cmdline").read_bytes()


def flip_in_photo(records: Path) -> None:
    """Inverts a byte inside the first PNG image; padding between records would have no effect."""
    content = bytearray(records.read_bytes())
    content[content.index(b"IDAT") + 100] ^= 0xFF
    records.write_bytes(bytes(content))


def abandoned(run: Run) -> Path:
    """Returns the path where a killed export leaves a temporary folder."""
    return run.workdir / f".model.{socket.gethostname()}-0123abcd.partial"


def check_removed(path: Path) -> None:
    """Raises an error if the run has not removed a file or folder."""
    if path.exists():
        raise RuntimeError(f"{path.name} is still there")


def metrics(run: Run) -> Path:
    return run.workdir / "metrics.jsonl"


def workdir_file(name: str) -> Callable[[Run], Path]:
    return lambda run: run.workdir / name


FAULTS: dict[str, Fault] = {
    "kill -9": Fault((KILLED,), during=lambda run, group: group.kill(), processes=1),
    "kill -9 during start-up": Fault(
        (KILLED,), during=signal_early(signal.SIGKILL), processes=1, waits=False
    ),
    "kill -9 while a checkpoint is written": Fault(
        (KILLED,), during=kill_while_saving, processes=1
    ),
    "kill -9 of one of two processes": Fault(
        (KILLED, *LOST_PARTNER),
        during=lambda run, group: run.send(group, signal.SIGKILL),
        processes=2,
    ),
    "kill -9 of a decoding worker": Fault(
        during=kill_worker, sources=(FILES, RECORDS), flags=("--config.data.workers=2",)
    ),
    "SIGTERM": Fault(),
    "SIGTERM during start-up": Fault(
        (TERMINATED, -signal.SIGTERM, *LOST_PARTNER),
        during=signal_early(signal.SIGTERM),
        waits=False,
    ),
    "Ctrl-C": Fault(
        (INTERRUPTED,), during=lambda run, group: run.send(group, signal.SIGINT), processes=1
    ),
    "Ctrl-C twice": Fault((INTERRUPTED, -signal.SIGINT), during=interrupt_twice, processes=1),
    "suspended for two seconds": Fault(during=suspend),
    "disk full": Fault((STORAGE,), during=fill_disk, processes=1, sentence=True),
    "disk full, two processes": Fault((STORAGE,), during=fill_disk, processes=2),
    "disk full for a second": Fault(SAVED_OR_FAILED, during=fill_disk_for_a_while),
    "no file can be opened for a second": Fault(SAVED_OR_FAILED, during=open_no_file),
    "a second run in the work directory": Fault(during=start_again),
    **{f"newest checkpoint: {name}": damaged_newest(d) for name, d in CHECKPOINT_DAMAGES.items()},
    "all checkpoints damaged": refused(workdir_file("checkpoints"), empty_all),
    "run.json truncated": refused(workdir_file("run.json"), truncate),
    "run.json missing": healed(lambda run: (run.workdir / "run.json").unlink()),
    "a tokenizer file truncated": refused(lambda run: largest(run.workdir / "tokenizer"), truncate),
    # A run from a feature cache does not read the backbone's arrays.
    "backbone: a byte flipped": refused(
        lambda run: largest(run.folder / "backbone/arrays"), flip, (FILES, RECORDS)
    ),
    "backbone: all files empty": refused(
        lambda run: run.folder / "backbone/arrays", empty_all, (FILES, RECORDS)
    ),
    "backbone: model.json truncated": refused(
        lambda run: run.folder / "backbone/model.json", truncate
    ),
    "index reordered": refused(
        lambda run: run.index,
        lambda file: rewritten(file, lambda rows: rows[::-1]),
        (FILES, CACHE),
    ),
    "index: a line lost": refused(
        lambda run: run.index, lambda file: rewritten(file, lambda rows: rows[1:]), (FILES, CACHE)
    ),
    "index: a line garbled": refused(
        lambda run: run.index,
        lambda file: rewritten(file, lambda rows: [b"\xff{", *rows[1:]]),
        (FILES, CACHE),
    ),
    "a photo truncated": refused(lambda run: run.photos / "17.png", truncate, (FILES,)),
    "a photo missing": refused(lambda run: run.photos / "42.png", Path.unlink, (FILES,)),
    "a record damaged": refused(lambda run: run.records, flip_in_photo, (RECORDS,)),
    "ArrayRecord truncated": refused(lambda run: run.records, truncate, (RECORDS,)),
    "cache: a byte flipped": cache_damaged("*-s00000.npy", flip),
    "cache: a shard truncated": cache_damaged("*-s00000.npy", truncate),
    "cache: a shard missing": cache_damaged("*-s00000.npy", Path.unlink),
    "cache: checksums flipped": cache_damaged("*.sums.npy", flip),
    "cache: a shard emptied during the run": cache_damaged("*-s00000.npy", empty, running=True),
    "metrics: a line garbled": healed(
        lambda run: rewritten(metrics(run), lambda rows: [*rows[:-1], b"\xff{", *rows[-1:]])
    ),
    "metrics: the last line cut": healed(
        lambda run: metrics(run).open("ab").write(b'{"step": 1, "lo')
    ),
    "a dead run's lock": healed(
        lambda run: (run.workdir / ".lock").write_text(
            json.dumps({"id": "0", "host": "elsewhere", "pid": 1, "since": "yesterday"})
        )
    ),
    "a killed export's folder": dataclasses.replace(
        healed(lambda run: abandoned(run).mkdir()), undo=lambda run: check_removed(abandoned(run))
    ),
}
