"""What a task is given, what it comes out with, and how interrupted work goes on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from dinotxt_jax.config import TaskConfig
from dinotxt_jax.data.feature_cache import FeatureCache
from dinotxt_jax.inference import Model
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.files import new_file


class PartialWork:
    """Arrays that stand for the part of a task which is done, in a file while it is not finished.

    Of several processes the first one writes it.

    Args:
        file: where; None keeps nothing.
        origin: what the work depends on; a file of something else is not read.
        interval: seconds between two writes.
    """

    def __init__(self, file: Path | None, origin: Mapping[str, Any], interval: float = 60.0):
        self._file, self._origin = file, json.dumps(origin, sort_keys=True)
        self._interval, self._saved = interval, time.monotonic()

    def load(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """What was saved of the same work; nothing if there is none, or not for all processes."""
        if self._file is None:
            return {}
        arrays: dict[str, Shaped[np.ndarray, "..."]] = {}
        if self._file.is_file():
            with np.load(self._file) as stored:
                arrays = dict(stored)
            if str(arrays.pop("origin")) != self._origin:
                arrays = {}
        sizes = processes.gathered([sum(array.nbytes for array in arrays.values()) % 2**31])
        return arrays if (sizes == sizes[0]).all() else {}

    def save(self, arrays: Callable[[], Mapping[str, Any]]) -> None:
        """Replaces what is stored by `arrays()`, if the last time is long enough ago."""
        if self._file is None or not processes.is_first():
            return
        if time.monotonic() - self._saved < self._interval:
            return
        with new_file(self._file) as partial, partial.open("wb") as stream:
            np.savez(stream, **{"origin": np.asarray(self._origin), **arrays()})
        self._saved = time.monotonic()

    def clear(self) -> None:
        """The work is finished."""
        if self._file is not None and processes.is_first():
            self._file.unlink(missing_ok=True)


SourceT = TypeVar("SourceT")


class TaskKind(Protocol[SourceT]):
    """One kind of evaluation task.

    A module defines one such class, and `evaluation.tasks.KINDS` lists an object of it under the
    name that users write in the config key `kind` of a task.

    Attributes:
        metrics: names of the figures that `run` may return.
        encodes_whole_images: whether the task encodes every image once, as `task.data` prepares it,
            so that `precompute` can cache the backbone's tokens. Otherwise it encodes windows.
    """

    metrics: tuple[str, ...]
    encodes_whole_images: bool

    def check(self, section: str, task: TaskConfig, patch_size: int) -> None:
        """Raises `UserError` for settings that are wrong whatever the data holds.

        `section`, here and below, is the name of the task's settings on the command line, such as
        "config.tasks.flickr8k".
        """

    def texts(self, section: str, task: TaskConfig) -> list[tuple[str, ...]]:
        """The lists of texts that the task names (templates, words), which its result depends on.

        Raises:
            UserError: a list that cannot be read.
        """

    def image_side(self, task: TaskConfig) -> int:
        """Side of the square images or windows that enter the encoder, pixels."""

    def open_set(self, section: str, task: TaskConfig) -> SourceT:
        """Opens the examples of a task, `task.max_examples` of them.

        Raises:
            UserError: data that cannot be used.
        """

    def check_images(self, section: str, task: TaskConfig, source: SourceT) -> None:
        """Raises `UserError` if the images of an opened set are not where they should be.

        A command calls this before its first hour of work, unless backbone tokens are cached.
        """

    def contents(self, source: SourceT) -> list[Any]:
        """Names and labels (or captions) of all examples: they tell two data sets apart."""

    def run(self, job: Job) -> TaskResult:
        """Runs a task of this kind.

        Raises:
            UserError: data that cannot be used.
        """


@dataclasses.dataclass(frozen=True)
class Job:
    """One task of one model.

    Attributes:
        model: the model.
        name: of the task, for the progress bar.
        task: what to do.
        source: its examples, as the kind's `open_set` gives them.
        batch_size: images, windows of images, or texts, encoded at once.
        cache: backbone tokens of the task's images, if there are any.
        partial: what was done of it before.
    """

    model: Model
    name: str
    task: TaskConfig
    source: Any
    batch_size: int
    cache: FeatureCache | None = None
    partial: PartialWork = dataclasses.field(default_factory=lambda: PartialWork(None, {}))


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """A task's figures, and everything that they depend on.

    Attributes:
        kind: of the task.
        metrics: name -> value.
        chance: the same names -> what a model without any idea would score, where that is known.
        protocol: how it was measured: resolution, templates, counts, dataset fingerprint, ...
        per_class: name and figure of each class, in percent (None: it does not occur).
        prompts: the templates that class names were put into.
        draw: makes a picture of it at a path, where there is one; all processes must call it.
    """

    kind: str
    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    protocol: Mapping[str, Any]
    per_class: Sequence[tuple[str, float | None]] = ()
    prompts: Sequence[str] = ()
    draw: Callable[[Path], None] | None = None


def named(names: Sequence[str], values: Float[np.ndarray, " c"]) -> list[tuple[str, float | None]]:
    """Figures of classes with their names; nan becomes None, which JSON has a word for."""
    return [
        (name, None if np.isnan(value) else float(value))
        for name, value in zip(names, values, strict=True)
    ]


def digest(contents: Any) -> str:
    """sha256 of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
