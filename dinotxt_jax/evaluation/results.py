"""What a task comes out with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True)
class TaskResult:
    """A task's figures, and everything that they depend on.

    Attributes:
        kind: of the task.
        metrics: name -> value.
        chance: the same names -> what a model without any idea would score.
        protocol: how it was measured: resolution, templates, counts, dataset fingerprint, ...
        draw: makes a picture of it at a path, where there is one.
    """

    kind: str
    metrics: Mapping[str, float]
    chance: Mapping[str, float]
    protocol: Mapping[str, Any]
    draw: Callable[[Path], None] | None = None
