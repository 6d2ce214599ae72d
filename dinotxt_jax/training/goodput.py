"""Goodput: the fraction of wall time that a run spends in steps, over all starts and resumes."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

from absl import logging

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import read_json, write_text

GOODPUT_FILE = "goodput.json"
STEPS = "steps"
# Time outside of steps: "starting" lasts until the end of the first step, including compilation;
# "waiting" for examples; "saving" starts a save and waits for the previous save; "evaluating"; and
# "lost", from the last record of an ended process to the next start, includes repeated steps.
OTHERS = ("starting", "waiting", "saving", "evaluating", "lost")


class Goodput:
    """Adds up a run's wall time by kind and stores the sums in `goodput.json`.

    With several processes, only the first process measures and writes.

    Args:
        workdir: the work directory.
        begun: `time.time()` when this process began to work on the run.
    """

    def __init__(self, workdir: Address, begun: float):
        self._file, self._begun = workdir / GOODPUT_FILE, begun
        earlier = read_goodput(workdir) if processes.is_first() else {}
        self._starts = earlier.get("starts", 0) + 1
        self._earlier: dict[str, float] = dict(earlier.get("seconds", {}))
        self._seconds = dict.fromkeys(OTHERS, 0.0)
        if earlier:
            self._seconds["lost"] = max(begun - earlier["until"], 0.0)
        self._is_started = False

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Counts the time in the `with` block; ignored before the first step is complete."""
        start = time.time()
        try:
            yield
        finally:
            self.add(kind, time.time() - start)

    def add(self, kind: str, seconds: float) -> None:
        """Counts seconds as `kind`; ignored before the first step is complete."""
        if self._is_started:
            self._seconds[kind] += seconds

    def made_step(self) -> None:
        """Records a completed step; the first call counts all time so far as "starting"."""
        if not self._is_started:
            self._is_started = True
            self._seconds["starting"] = time.time() - self._begun

    def save(self) -> None:
        """Writes the sums so far to `goodput.json`."""
        if not processes.is_first():
            return
        now = time.time()
        here = dict(self._seconds)
        counted = sum(here.values()) - here["lost"]
        here[STEPS] = max(now - self._begun - counted, 0.0)
        totals = {
            kind: round(self._earlier.get(kind, 0.0) + here[kind], 3) for kind in (STEPS, *OTHERS)
        }
        record = {"starts": self._starts, "until": now, "seconds": totals}
        write_text(self._file, json.dumps(record, indent=1) + "\n")


def read_goodput(workdir: Address) -> dict[str, Any]:
    """Reads `goodput.json`; returns {} if the file is missing or damaged."""
    file = workdir / GOODPUT_FILE
    try:
        stored = read_json(file, "the goodput of a run", "remove it") if file.exists() else {}
    except UserError as error:
        logging.warning("the goodput starts again: %s", error)
        return {}
    seconds = stored.get("seconds")
    numbers = [stored.get("starts"), stored.get("until")]
    if not isinstance(seconds, dict) or set(seconds) != {STEPS, *OTHERS}:
        return {}
    if not all(isinstance(value, int | float) for value in [*numbers, *seconds.values()]):
        return {}
    return stored


def described_goodput(record: Mapping[str, Any]) -> str:
    """Formats a non-empty record from `read_goodput` as a line of text."""
    seconds = record["seconds"]
    total = max(sum(seconds.values()), 1e-9)
    others = ", ".join(f"{kind} {seconds[kind] / total:.1%}" for kind in OTHERS)
    starts = f"{record['starts']} start{'s' if record['starts'] > 1 else ''}"
    return f"{seconds[STEPS] / total:.1%} of {total / 3600:.2f} h in steps ({others}; {starts})"
