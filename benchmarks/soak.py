"""Injects faults into a small run at random, and checks that nothing is lost or wrong at the end.

    python benchmarks/soak.py [--minutes=30] [--seed=0]

The run trains a tiny model on drawn photos. Every fault is one start of the run: with a random
number of devices and processes, perhaps after damage to the files, and with an end by a signal, a
full disk or another fault while it trains. Checked are exit codes, the checkpoint from which the
next start continues, tracebacks in the output, and at the end all losses against a run that nobody
disturbed. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from machine import device
from tqdm import tqdm

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import several  # noqa: E402
from damage import CHECKPOINT_DAMAGES, empty_all, flip, largest, truncate  # noqa: E402
from small_runs import config as small_config  # noqa: E402
from small_runs import losses  # noqa: E402
from small_sets import jsonl  # noqa: E402

from dinotxt_jax.config import CheckpointConfig, Config, OptimizerConfig  # noqa: E402
from dinotxt_jax.errors import STORAGE, USER  # noqa: E402
from weights_convert.architecture import Settings  # noqa: E402
from weights_convert.convert import convert  # noqa: E402

STEPS = 5000
TRACEBACK = "Traceback (most recent call last)"
# Processes and devices in each; the batch of 8 divides over all of them.
SHAPES = ((1, 8), (1, 4), (1, 1), (2, 4), (2, 1))
TERMINATED, INTERRUPTED, KILLED = 143, 130, -signal.SIGKILL
LIMIT = 240.0


@dataclasses.dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        codes: the allowed exit codes.
        before: damages the files before a start.
        during: acts on the training processes; by default it tells them to end.
        undo: repairs what the user would have to repair.
        processes: the only number of processes with which it makes sense; 0 for any.
        loses: the number of newest checkpoints that it damages.
        trains: whether the start makes steps before it ends.
    """

    codes: tuple[int, ...] = (TERMINATED,)
    before: Callable[[Soak], None] = lambda soak: None
    during: Callable[[Soak, several.Group], None] = lambda soak, group: soak.send(
        group, signal.SIGTERM
    )
    undo: Callable[[Soak], None] = lambda soak: None
    processes: int = 0
    loses: int = 0
    trains: bool = True


@dataclasses.dataclass
class Outcome:
    """The starts with one kind of fault.

    Attributes:
        times: number of starts.
        codes: exit codes, with the number of processes.
        repeated: steps that the next start made again, summed.
    """

    times: int = 0
    codes: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    repeated: int = 0


class Soak:
    """A run in a folder, the faults that it met, and the problems that were found."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.random = folder, random.Random(seed)
        self.workdir, self.photos = folder / "run", folder / "photos"
        self.index = self.photos / "index.jsonl"
        self.saved = folder / "saved"
        self.photos.mkdir(parents=True)
        photos = jsonl(self.photos, broken=0)
        self.data = dataclasses.replace(photos, threads=2, prefetch=8, max_bad_fraction=0.0)
        convert(
            [ROOT / "tests/goldens/backbones/dinov2_tiny_reg.pth"],
            folder / "backbone",
            settings=Settings(num_heads=4),
            show_progress=False,
        )
        self.outcomes: dict[str, Outcome] = collections.defaultdict(Outcome)
        self.problems: list[str] = []
        self.starts = 0

    @property
    def config(self) -> Config:
        """The config of the run; it never ends by itself."""
        return small_config(
            self.folder / "backbone",
            steps=STEPS,
            data=self.data,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2),
            checkpoint=CheckpointConfig(every=5, keep=3),
        )

    def start(self, processes: int, devices: int, workdir: Path | None = None) -> several.Group:
        """Starts the run."""
        self.starts += 1
        flag = several.config_file(self.config, self.folder / "config.py")
        arguments = ["-m", "dinotxt_jax.train", flag, f"--workdir={workdir or self.workdir}"]
        return several.start(self.folder / f"logs/{self.starts}", processes, devices, arguments)

    def send(self, group: several.Group, number: signal.Signals) -> None:
        """Sends a signal to one of the processes."""
        self.random.choice(group.processes).send_signal(number)

    def step(self) -> int:
        """Returns the last step in the metrics."""
        return max(losses(self.workdir), default=0) if self.workdir.exists() else 0

    def checkpoints(self) -> list[Path]:
        """Returns the complete checkpoints, the newest first."""
        saved = [p for p in self.workdir.glob("checkpoints/*") if p.name.isdigit()]
        return sorted(saved, key=lambda path: -int(path.name))

    def round(self, name: str, fault: Fault) -> None:
        """Starts the run with one fault, and checks how it ends."""
        shapes = [s for s in SHAPES if fault.processes in (0, s[0])]
        before = self.step()
        intact = [int(path.name) for path in self.checkpoints()][fault.loses :]
        fault.before(self)
        group = self.start(*self.random.choice(shapes))
        try:
            if fault.trains:
                self.wait_for_steps(group, before)
                fault.during(self, group)
            codes = group.finish(LIMIT)
        except Exception as error:
            group.kill()
            self.problems.append(f"{name}: {error!r}")
            codes = []
        fault.undo(self)
        self.check(name, fault, group, codes, intact)
        outcome = self.outcomes[name]
        outcome.times += 1
        outcome.codes.update(codes)
        resumed = resumed_from(group)
        outcome.repeated += max(0, before - resumed) if resumed is not None else 0

    def wait_for_steps(self, group: several.Group, before: int) -> None:
        """Waits until the run has made a few steps."""
        resumed = None
        wanted, deadline = self.random.randint(1, 4), time.monotonic() + LIMIT
        while resumed is None or last_step(group) < resumed + wanted:
            resumed = resumed_from(group) if before else 0
            if any(process.poll() is not None for process in group.processes):
                raise RuntimeError(f"the run ended before a step: {last_line(group)}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no step within {LIMIT} seconds")
            time.sleep(0.02)

    def check(
        self, name: str, fault: Fault, group: several.Group, codes: list[int], intact: list[int]
    ) -> None:
        """Records a wrong exit code, a traceback, a missing sentence or a lost checkpoint."""
        output = group.everything()
        if TRACEBACK in output:
            self.problems.append(f"{name}: a traceback: {output[output.index(TRACEBACK) :][:4000]}")
        if not set(codes) <= set(fault.codes):
            self.problems.append(f"{name}: exit codes {codes}: {last_line(group)}")
        if not fault.trains and "error: " not in output:
            self.problems.append(f"{name}: no sentence: {last_line(group)}")
        resumed = resumed_from(group)
        if fault.trains and intact and (resumed is None or resumed < intact[0]):
            self.problems.append(f"{name}: continued from {resumed}, saved was {intact[0]}")

    def compare(self) -> tuple[int, float]:
        """Trains undisturbed on eight devices to the same step.

        Returns:
            The number of compared steps, and the largest relative difference of a loss.
        """
        actual, last = losses(self.workdir), self.step()
        group = self.start(1, 8, self.folder / "undisturbed")
        while max(losses(self.folder / "undisturbed"), default=0) < last:
            if group.processes[0].poll() is not None:
                raise RuntimeError(group.everything())
            time.sleep(0.1)
        self.send(group, signal.SIGTERM)
        group.finish(LIMIT)
        expected = losses(self.folder / "undisturbed")
        missing = [step for step in range(1, last + 1) if step not in actual]
        if missing:
            self.problems.append(f"steps without metrics: {missing}")
        return last, max(abs(actual[s] / expected[s] - 1) for s in actual if s <= last)

    # The faults.

    def keep(self, path: Path) -> None:
        """Copies a file or folder, for `restore`."""
        self.saved.mkdir(exist_ok=True)
        copy = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, self.saved / path.name)

    def restore(self, path: Path) -> None:
        """Puts back a kept file or folder."""
        if path.is_dir():
            shutil.rmtree(path)
        shutil.move(self.saved / path.name, path)

    def limit(self, group: several.Group, name: int, value: int) -> None:
        """Lowers a resource limit of the processes, as far as it is soft."""
        for process in group.processes:
            _, hard = resource.prlimit(process.pid, name)
            resource.prlimit(process.pid, name, (value, hard))

    def fill_disk(self, group: several.Group) -> None:
        """Lets no file grow beyond the size of the logs, so that no checkpoint can be written."""
        files = [*group.logs, self.workdir / "metrics.jsonl"]
        largest_text = max(file.stat().st_size for file in files)
        self.limit(group, resource.RLIMIT_FSIZE, largest_text + 2**15)

    def start_again(self, group: several.Group) -> None:
        """Starts a second run in the same work directory, which is refused."""
        second = self.start(1, 1)
        if second.finish(LIMIT) != [USER] or "error: " not in second.output(0):
            self.problems.append(f"a second run: {last_line(second)}")
        self.send(group, signal.SIGTERM)

    def suspend(self, group: several.Group) -> None:
        """Stops the processes for two seconds."""
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for process in group.processes:
                process.send_signal(number)
            time.sleep(2)
        self.send(group, signal.SIGTERM)

    def send_twice(self, group: several.Group) -> None:
        """Presses Ctrl-C twice."""
        for _ in range(2):
            group.processes[0].send_signal(signal.SIGINT)
            time.sleep(0.2)


def resumed_from(group: several.Group) -> int | None:
    """Returns the step from which the run continued."""
    found = re.findall(r"resuming from step (\d+)", group.output(0))
    return int(found[-1]) if found else None


def last_step(group: several.Group) -> int:
    """Returns the last step in the progress bar."""
    return max(map(int, re.findall(rf"\| (\d+)/{STEPS} ", group.output(0))), default=0)


def last_line(group: several.Group) -> str:
    """Returns the last line of the first process's output."""
    return ["", *group.output(0).strip().splitlines()][-1]


def rewritten(file: Path, change: Callable[[list[bytes]], Iterable[bytes]]) -> None:
    """Changes the lines of a file."""
    file.write_bytes(b"\n".join(change(file.read_bytes().split(b"\n"))))


def damaged_newest(damage: Callable[[Path], object]) -> Fault:
    """Returns damage to the newest of several checkpoints."""
    return Fault(before=lambda soak: damage(soak.checkpoints()[0]) and None, loses=1)


def refused(
    path: Callable[[Soak], Path], damage: Callable[[Path], object], trains: bool = False
) -> Fault:
    """Returns damage to a file that the run cannot do without, and that the user repairs."""

    def damage_it(soak: Soak) -> None:
        soak.keep(path(soak))
        damage(path(soak))

    def undo(soak: Soak) -> None:
        soak.restore(path(soak))

    if trains:
        during = lambda soak, group: damage_it(soak)  # noqa: E731
        return Fault((USER, TERMINATED), during=during, undo=undo)
    return Fault((USER,), before=damage_it, undo=undo, trains=False)


def healed(damage: Callable[[Soak], object]) -> Fault:
    """Returns damage that the run gets over by itself."""
    return Fault(before=lambda soak: damage(soak) and None)


FAULTS: dict[str, Fault] = {
    "kill -9": Fault((KILLED,), during=lambda soak, group: group.kill(), processes=1),
    "kill -9 of one of two processes": Fault(
        (KILLED, 1, -signal.SIGABRT),
        during=lambda soak, group: soak.send(group, signal.SIGKILL),
        processes=2,
    ),
    "SIGTERM": Fault(),
    "Ctrl-C": Fault(
        (INTERRUPTED,), during=lambda soak, group: soak.send(group, signal.SIGINT), processes=1
    ),
    "Ctrl-C twice": Fault((INTERRUPTED, -signal.SIGINT), during=Soak.send_twice, processes=1),
    "suspended for two seconds": Fault(during=Soak.suspend),
    "disk full": Fault((STORAGE,), during=Soak.fill_disk, processes=1),
    # A process ends with 1 if another one has left first.
    "disk full, two processes": Fault((STORAGE, 1), during=Soak.fill_disk, processes=2),
    "a second run in the work directory": Fault(during=Soak.start_again),
    **{f"newest checkpoint: {name}": damaged_newest(d) for name, d in CHECKPOINT_DAMAGES.items()},
    "all checkpoints damaged": refused(lambda soak: soak.workdir / "checkpoints", empty_all),
    "run.json truncated": refused(lambda soak: soak.workdir / "run.json", truncate),
    "a tokenizer file truncated": refused(
        lambda soak: largest(soak.workdir / "tokenizer"), truncate
    ),
    "backbone: a byte flipped": refused(
        lambda soak: largest(soak.folder / "backbone/arrays"), flip
    ),
    "index reordered": refused(
        lambda soak: soak.index, lambda file: rewritten(file, lambda rows: rows[::-1])
    ),
    "index: a line lost": refused(
        lambda soak: soak.index, lambda file: rewritten(file, lambda rows: rows[1:])
    ),
    "index: a line garbled": refused(
        lambda soak: soak.index,
        lambda file: rewritten(file, lambda rows: [b"\xff{", *rows[1:]]),
    ),
    "metrics: a line garbled": healed(
        lambda soak: rewritten(
            soak.workdir / "metrics.jsonl", lambda rows: [*rows[:-1], b"\xff{", *rows[-1:]]
        )
    ),
    "metrics: the last line cut": healed(
        lambda soak: (soak.workdir / "metrics.jsonl").open("ab").write(b'{"step": 1, "lo')
    ),
    "a dead run's lock": healed(
        lambda soak: (soak.workdir / ".lock").write_text(
            json.dumps({"id": "0", "host": "elsewhere", "pid": 1, "since": "yesterday"})
        )
    ),
    "a killed export's folder": healed(lambda soak: (soak.workdir / ".model.0.partial").mkdir()),
}


def main() -> None:
    """Prints the table of faults, and exits with 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        soak = Soak(Path(folder) / "soak", options.seed)
        deck: list[str] = []
        with tqdm(total=options.minutes * 60, unit="s", desc="faults") as bar:
            while time.monotonic() - started < options.minutes * 60:
                if not deck:
                    deck = soak.random.sample(list(FAULTS), len(FAULTS))
                # Damage to checkpoints needs two of them.
                name = deck.pop() if len(soak.checkpoints()) > 1 else "SIGTERM"
                soak.round(name, FAULTS[name])
                bar.set_postfix_str(f"{soak.starts} starts, step {soak.step()}")
                bar.update(min(time.monotonic() - started, bar.total) - bar.n)
                if soak.problems:
                    tqdm.write(soak.problems[-1])
        steps, difference = soak.compare()
    print(f"{device()}; {soak.starts} starts in {options.minutes:.0f} minutes, seed {options.seed}")
    print("\n| fault | times | exit codes | steps repeated |\n|---|---|---|---|")
    for name, outcome in sorted(soak.outcomes.items()):
        codes = ", ".join(map(str, sorted(outcome.codes)))
        print(f"| {name} | {outcome.times} | {codes} | {outcome.repeated} |")
    total = sum(outcome.times for outcome in soak.outcomes.values())
    print(f"\n{total} faults of {len(soak.outcomes)} kinds, {len(soak.problems)} problems; {steps}")
    print(f"steps, whose losses differ by at most {difference:.1e} from an undisturbed run.")
    sys.exit(bool(soak.problems))


if __name__ == "__main__":
    main()
