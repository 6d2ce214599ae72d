"""Injects random faults into small runs, and checks that nothing is lost or wrong at the end.

    python benchmarks/soak.py [--minutes=30] [--seed=0] [--only=TEXT]

Three runs train the same tiny model on the same generated photos: from image files on eight
devices, from ArrayRecord and from a feature cache on 1 to 8 devices in one or two processes. For
each fault, a run is started, possibly after damaging files, and then disturbed while it trains: by
a signal, a full disk or another fault. The soak checks exit codes, the checkpoint from which the
next start continues, and that the output contains no traceback. At the end, it compares all losses
with undisturbed runs: they must be bit-identical on the same devices, and agree within float32
rounding on others. Linux only.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from machine import device
from soak_faults import FAULTS, Fault
from soak_run import CACHE, FILES, LIMIT, RECORDS, Run, last_line, resumed_from
from tqdm import tqdm

# isort: split
import several
from small_runs import losses

TRACEBACK = "Traceback (most recent call last)"
# (processes, devices per process); the batch size 8 is divisible by all device counts.
SAME, ANY = ((1, 8),), ((1, 8), (1, 4), (1, 1), (2, 4), (2, 1))


@dataclasses.dataclass
class Outcome:
    """Counts over all starts with the same kind of fault.

    Attributes:
        times: number of starts.
        codes: exit code -> number of processes.
        repeated: total number of steps that had to be repeated.
    """

    times: int = 0
    codes: collections.Counter[int] = dataclasses.field(default_factory=collections.Counter)
    repeated: int = 0


class Soak:
    """The runs, the faults injected so far, and the problems found."""

    def __init__(self, folder: Path, seed: int):
        self.random = random.Random(seed)
        self.runs = [
            Run(folder / f"run{number}", source, shapes, self.random)
            for number, (source, shapes) in enumerate([(FILES, SAME), (RECORDS, ANY), (CACHE, ANY)])
        ]
        self.outcomes: dict[str, Outcome] = collections.defaultdict(Outcome)
        self.last: dict[Run, Outcome] = {}
        self.problems: list[str] = []
        for run in self.runs:  # some faults damage a checkpoint, which requires an older checkpoint
            train_until(run, run.workdir, 10)

    def round(self, name: str) -> None:
        """Starts a run, injects a fault, and checks how the run ends."""
        fault = FAULTS[name]
        run, shape = self.choice(fault)
        before, intact = run.step(), [int(path.name) for path in run.checkpoints()][fault.loses :]
        try:
            fault.before(run)
        except OSError as error:  # an earlier fault left the files in a wrong state
            self.problems.append(f"{name}, {run.source}: {error!r}")
            return
        group, codes = run.start(*shape, flags=fault.flags), list[int]()
        try:
            if fault.waits:
                run.wait_for_steps(group, bool(run.checkpoints()))
            fault.during(run, group)
            codes = group.finish(LIMIT)
            fault.undo(run)
        except Exception as error:
            group.kill()
            output = group.everything()[-4000:]
            self.problems.append(f"{name}, {run.source}, {shape}: {error!r}\n{output}")
        self.check(f"{name}, {run.source}, {shape}", fault, group, codes, intact)
        outcome = self.outcomes[name]
        outcome.times += 1
        outcome.codes.update(codes)
        if (resumed := resumed_from(group)) is not None:
            # Damaged checkpoints make this start repeat steps; unsaved exits make the next start
            # repeat steps, so these count for the previous fault.
            cause = outcome if fault.loses else self.last.get(run, outcome)
            cause.repeated += max(0, before - resumed)
        self.last[run] = outcome

    def choice(self, fault: Fault) -> tuple[Run, tuple[int, int]]:
        """Chooses a run to which the fault applies, and its (processes, devices)."""
        possible = [
            (run, shapes)
            for run in self.runs
            if run.source in fault.sources
            and (shapes := [s for s in run.shapes if fault.processes in (0, s[0])])
        ]
        run, shapes = self.random.choice(possible)
        return run, self.random.choice(shapes)

    def check(
        self, name: str, fault: Fault, group: several.Group, codes: list[int], intact: list[int]
    ) -> None:
        """Records wrong exit codes, tracebacks, missing error sentences and lost checkpoints."""
        output = group.everything()
        if TRACEBACK in output:
            self.problems.append(f"{name}: a traceback: {output[output.index(TRACEBACK) :][:4000]}")
        if not set(codes) <= set(fault.codes):
            self.problems.append(f"{name}: exit codes {codes}: {last_line(group)}")
        if fault.sentence and "error: " not in output:
            self.problems.append(f"{name}: no error sentence: {last_line(group)}")
        resumed = resumed_from(group)
        if fault.waits and intact and (resumed is None or resumed < intact[0]):
            self.problems.append(f"{name}: continued from {resumed}, expected {intact[0]}")

    def differences(self) -> list[str]:
        """Trains without faults on eight devices, and compares the losses at all steps.

        Returns:
            A sentence for each run with the largest difference.
        """
        sentences = []
        files, records, cache = self.runs
        undisturbed = {
            FILES: train_until(files, files.folder / "whole", max(files.step(), records.step())),
            CACHE: train_until(cache, cache.folder / "whole", cache.step()),
        }
        for run in self.runs:
            actual, last = losses(run.workdir), run.step()
            expected = undisturbed[CACHE if run.source == CACHE else FILES]
            if missing := [step for step in range(1, last + 1) if step not in actual]:
                self.problems.append(f"{run.source}: steps without metrics: {missing}")
            largest = max(abs(actual[step] / expected[step] - 1) for step in actual)
            bound = 0.0 if run.shapes == SAME else 1e-6
            if not largest <= bound:
                self.problems.append(f"{run.source}: losses differ by {largest:.1e}")
            sentences.append(f"{run.source}, {last} steps: losses differ by at most {largest:.1e}")
        return sentences


def train_until(run: Run, workdir: Path, last: int) -> dict[int, float]:
    """Trains on eight devices without faults until step `last`; returns step -> loss."""
    group = run.start(1, 8, workdir=workdir)
    while not workdir.exists() or max(losses(workdir), default=0) < last:
        if group.processes[0].poll() is not None:
            raise RuntimeError(group.everything())
        time.sleep(0.1)
    run.send(group, signal.SIGTERM)
    group.finish(LIMIT)
    return losses(workdir)


def main() -> None:
    """Prints the fault table, and exits with 1 if anything was lost or wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only faults with this text in the name")
    options = parser.parse_args()
    names = [name for name in FAULTS if options.only in name]
    with tempfile.TemporaryDirectory() as folder:
        soak, deck = Soak(Path(folder), options.seed), list[str]()
        started = time.monotonic()
        with tqdm(total=round(options.minutes * 60), unit="s", desc="faults") as bar:
            while time.monotonic() - started < options.minutes * 60:
                deck = deck or soak.random.sample(names, len(names))
                known = len(soak.problems)
                soak.round(deck.pop())
                for problem in soak.problems[known:]:
                    tqdm.write(problem)
                bar.set_postfix_str(f"{sum(o.times for o in soak.outcomes.values())} faults")
                bar.update(min(round(time.monotonic() - started), bar.total) - bar.n)
        sentences = soak.differences()
    print_table(soak, sentences, options)
    sys.exit(bool(soak.problems))


def print_table(soak: Soak, sentences: list[str], options: argparse.Namespace) -> None:
    """Prints the faults as a Markdown table, and the loss differences."""
    print(f"{device()}; {options.minutes:g} minutes, seed {options.seed}\n")
    print("| fault | times | exit codes | steps repeated |\n|---|---|---|---|")
    for name in filter(soak.outcomes.__contains__, FAULTS):
        outcome = soak.outcomes[name]
        codes = ", ".join(map(str, sorted(outcome.codes)))
        print(f"| {name} | {outcome.times} | {codes} | {outcome.repeated} |")
    total = sum(outcome.times for outcome in soak.outcomes.values())
    print(f"\n{total} faults of {len(soak.outcomes)} kinds, {len(soak.problems)} problems")
    print("\n".join([*sentences, *soak.problems]))


if __name__ == "__main__":
    main()
