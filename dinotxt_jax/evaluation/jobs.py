"""Task inputs, task results, and the partial results from which interrupted tasks resume."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from jaxtyping import Float, Shaped

from dinotxt_jax.config import TaskConfig
from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.data.feature_cache import FeatureCache
from dinotxt_jax.inference import Model
from dinotxt_jax.runtime import processes
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file
from dinotxt_jax.storage.retries import retried


class PartialWork:
    """Stores arrays with partial results in a file until the task is finished.

    With several processes, only the first one writes the file.

    Args:
        file: the file path; None stores nothing.
        origin: everything that the work depends on; a file with a different origin is ignored.
        interval: seconds between two writes.
    """

    def __init__(self, file: Address | None, origin: Mapping[str, Any], interval: float = 60.0):
        self._file, self._origin = file, json.dumps(origin, sort_keys=True)
        self._interval, self._saved = interval, time.monotonic()

    def load(self) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Returns arrays saved with the same origin; {} if absent or if processes disagree."""
        if self._file is None:
            return {}
        arrays: dict[str, Shaped[np.ndarray, "..."]] = {}
        if retried(self._file.is_file):
            with np.load(io.BytesIO(retried(self._file.read_bytes))) as stored:
                arrays = dict(stored)
            if str(arrays.pop("origin")) != self._origin:
                arrays = {}
        sizes = processes.gathered([sum(array.nbytes for array in arrays.values()) % 2**31])
        return arrays if (sizes == sizes[0]).all() else {}

    def is_due(self) -> bool:
        """Returns whether this process writes the file with the next `save`."""
        if self._file is None or not processes.is_first():
            return False
        return time.monotonic() - self._saved >= self._interval

    def save(self, arrays: Callable[[], Mapping[str, Any]]) -> None:
        """Stores `arrays()` in the file if `interval` seconds have passed since the last write."""
        if self._file is None or not self.is_due():
            return
        with new_file(self._file) as partial, partial.open("wb") as stream:
            np.savez(stream, **{"origin": np.asarray(self._origin), **arrays()})
        self._saved = time.monotonic()

    def clear(self) -> None:
        """Deletes the file, because the work is finished."""
        if self._file is not None and processes.is_first():
            self._file.unlink(missing_ok=True)


SourceT = TypeVar("SourceT")


class TaskKind(Protocol[SourceT]):
    """The interface for an evaluation task kind.

    Each task module defines one class with this interface, and `evaluation.tasks.KINDS` lists an
    instance under the name that users write in a task's config key `kind`.

    Attributes:
        metrics: names of the metrics that `run` may return.
        encodes_whole_images: whether the task encodes every image once, as `task.data` prepares it,
            so that `precompute` can cache the backbone's tokens. Otherwise it encodes windows.
    """

    metrics: tuple[str, ...]
    encodes_whole_images: bool

    def check(self, section: str, task: TaskConfig, vision: VisionConfig) -> None:
        """Raises `UserError` if settings do not fit the backbone or texts are missing.

        `section`, here and below, names the task's settings on the command line, such as
        "config.tasks.flickr8k".
        """

    def texts(self, section: str, task: TaskConfig) -> list[tuple[str, ...]]:
        """Returns the text lists (templates, words) that the task names and the result depends on.

        Raises:
            UserError: a list cannot be read.
        """

    def image_side(self, task: TaskConfig) -> int:
        """Returns the side of the square images or windows that are encoded, in pixels; 0: none."""

    def open_set(self, section: str, task: TaskConfig) -> SourceT:
        """Opens the examples of a task, limited to `task.max_examples`.

        Raises:
            UserError: the data cannot be used.
        """

    def check_images(self, section: str, task: TaskConfig, source: SourceT) -> None:
        """Raises `UserError` if images in an opened set are not where they should be.

        A command calls this before hours of work begin, unless backbone tokens are cached.
        """

    def contents(self, source: SourceT) -> list[Any]:
        """Returns names and labels (or captions) of all examples, to distinguish data sets."""

    def run(self, job: Job) -> TaskResult:
        """Runs one task.

        Raises:
            UserError: the data cannot be used.
        """


@dataclasses.dataclass(frozen=True)
class Job:
    """One task for one model.

    Attributes:
        model: the model.
        name: task name, for the progress bar.
        task: task settings.
        source: the examples, as returned by the kind's `open_set`.
        batch_size: number of images, image windows or texts encoded at once.
        cache: cached backbone tokens of the task's images, if there are any.
        partial: partial results from an earlier, interrupted run.
        check: called after each batch, by all processes; may raise an exception to end the task.
        title: picture title: model and data.
    """

    model: Model
    name: str
    task: TaskConfig
    source: Any
    batch_size: int
    cache: FeatureCache | None = None
    partial: PartialWork = dataclasses.field(default_factory=lambda: PartialWork(None, {}))
    check: Callable[[], None] = lambda: None
    title: str = ""

    def end_batch(self, arrays: Callable[[], Mapping[str, Any]]) -> None:
        """Called after each batch: saves partial results at intervals, and calls `check`."""
        self.partial.save(arrays)
        self.check()


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """A task's metrics, and everything that they depend on.

    Attributes:
        kind: task kind.
        metrics: name -> value.
        chance: the same names -> score of random guessing, if known.
        protocol: measurement conditions: resolution, templates, counts, dataset fingerprint, ...
        per_class: name and score of each class, in percent (None: the class does not occur).
        prompts: the templates into which class names were inserted.
        draw: draws the result to a path, if a picture exists; all processes must call it.
    """

    kind: str
    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    protocol: Mapping[str, Any]
    per_class: Sequence[tuple[str, float | None]] = ()
    prompts: Sequence[str] = ()
    draw: Callable[[Address], None] | None = None


def named(names: Sequence[str], values: Float[np.ndarray, " c"]) -> list[tuple[str, float | None]]:
    """Pairs class names with values; nan becomes None, which JSON can represent."""
    return [
        (name, None if np.isnan(value) else float(value))
        for name, value in zip(names, values, strict=True)
    ]


def digest(contents: Any) -> str:
    """Returns the SHA-256 digest of anything that JSON can represent."""
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
