"""A training run for the soak: creates the files, starts processes, and parses their output."""

from __future__ import annotations

import dataclasses
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

import several  # noqa: E402
from small_runs import config as small_config  # noqa: E402
from small_runs import losses  # noqa: E402
from small_sets import jsonl  # noqa: E402

from dinotxt_jax.config import CheckpointConfig, Config, OptimizerConfig  # noqa: E402
from dinotxt_jax.data.array_records import write_array_record  # noqa: E402
from dinotxt_jax.data.jsonl import JsonlSource  # noqa: E402
from weights_convert.convert import convert  # noqa: E402
from weights_convert.settings import Settings  # noqa: E402

STEPS = 5000
# Seconds after which a start counts as hanging.
LIMIT = 240.0
# The kinds of data that a run may read.
FILES, RECORDS, CACHE = "image files", "ArrayRecord", "feature cache"


class Run:
    """A tiny run that does not finish within the soak, and the folder with all files that it reads.

    Args:
        folder: receives all files.
        source: `FILES`, `RECORDS` or `CACHE`; the examples are the same.
        shapes: the allowed (processes, devices per process).
        draw: the random generator for all choices.
    """

    def __init__(
        self, folder: Path, source: str, shapes: Sequence[tuple[int, int]], draw: random.Random
    ):
        self.folder, self.source, self.shapes, self.random = folder, source, shapes, draw
        self.workdir, self.photos = folder / "run", folder / "photos"
        self.index = self.photos / "index.jsonl"
        self.records = folder / "photos.array_record"
        self.cache = folder / "features"
        self._starts = 0
        self.photos.mkdir(parents=True)
        data = jsonl(self.photos, broken=0)
        if source == RECORDS:
            photos = JsonlSource(self.index)
            write_array_record(self.records, (photos[i] for i in range(len(photos))))
            data = dataclasses.replace(data, source="array_record", path=str(self.records))
        convert(
            [ROOT / "tests/goldens/backbones/dinov2_tiny_reg.pth"],
            folder / "backbone",
            settings=Settings(num_heads=4),
            show_progress=False,
        )
        self.config: Config = small_config(
            folder / "backbone",
            steps=STEPS,
            data=dataclasses.replace(data, threads=2, prefetch=8, max_bad_fraction=0.0),
            features=str(self.cache) if source == CACHE else "",
            feature_views=2,
            optimizer=OptimizerConfig(learning_rate=1e-4, warmup_steps=2),
            checkpoint=CheckpointConfig(every=5, keep=3),
        )
        if source == CACHE:
            self.precompute()

    def start(
        self,
        processes: int,
        devices: int,
        flags: Sequence[str] = (),
        workdir: Path | None = None,
        command: str = "train",
    ) -> several.Group:
        """Starts training, or `precompute` without a work directory."""
        self._starts += 1
        flag = several.config_file(self.config, self.folder / "config.py")
        arguments = ["-m", f"dinotxt_jax.{command}", flag, *flags]
        if command == "train":
            arguments.append(f"--workdir={workdir or self.workdir}")
        return several.start(self.folder / f"logs/{self._starts}", processes, devices, arguments)

    def precompute(self) -> None:
        """Writes or repairs the feature cache."""
        group = self.start(1, 8, command="precompute")
        if group.finish(LIMIT) != [0]:
            raise RuntimeError(f"precompute: {group.everything()}")

    def step(self) -> int:
        """Returns the last step in the metrics."""
        return max(losses(self.workdir), default=0) if self.workdir.exists() else 0

    def checkpoints(self) -> list[Path]:
        """Returns the checkpoint folders, newest first."""
        saved = [path for path in self.workdir.glob("checkpoints/*") if path.name.isdigit()]
        return sorted(saved, key=lambda path: -int(path.name))

    def keep(self, path: Path) -> None:
        """Copies a file or folder, for `restore`."""
        saved = self.folder / "saved"
        saved.mkdir(exist_ok=True)
        copy: Callable[[Path, Path], object] = shutil.copytree if path.is_dir() else shutil.copy2
        copy(path, saved / path.name)

    def restore(self, path: Path) -> None:
        """Restores a file or folder that `keep` copied."""
        if path.is_dir():
            shutil.rmtree(path)
        shutil.move(self.folder / "saved" / path.name, path)

    def send(self, group: several.Group, number: signal.Signals) -> None:
        """Sends a signal to a random process."""
        self.random.choice(group.processes).send_signal(number)

    def wait_for_steps(self, group: several.Group, has_checkpoint: bool) -> None:
        """Waits until the processes have made 1 to 4 steps since the start."""
        steps = self.random.randint(1, 4)

        def has_made_them() -> bool:
            start = resumed_from(group) if has_checkpoint else 0
            return start is not None and last_step(group) >= start + steps

        wait_until(group, has_made_them)


def wait_until(group: several.Group, condition: Callable[[], bool]) -> None:
    """Waits for a condition; raises an error if a process exits first, or after `LIMIT` seconds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        if any(process.poll() is not None for process in group.processes):
            raise RuntimeError(f"the run has ended: {last_line(group)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"the condition was not met within {LIMIT:.0f} seconds")
        time.sleep(0.01)


def resumed_from(group: several.Group) -> int | None:
    """Returns the step from which the run resumed, or None for a new run."""
    steps = re.findall(r"resuming from step (\d+)", group.output(0))
    return int(steps[-1]) if steps else None


def last_step(group: several.Group) -> int:
    """Returns the last step in the progress bar."""
    return max(map(int, re.findall(rf"\| (\d+)/{STEPS} ", group.output(0))), default=0)


def last_line(group: several.Group) -> str:
    """Returns the last line of the first process's output."""
    return ["", *group.output(0).strip().splitlines()][-1]
