"""Checks before training that all processes have the same config, data and model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from dinotxt_jax.config import Config, flatten
from dinotxt_jax.evaluation.tasks import OpenTask
from dinotxt_jax.runtime import processes
from dinotxt_jax.tokenizers import Tokenizer

# Settings that may differ between machines.
_LOCAL = ("backbone", "features", "image_root", "path", "prefetch", "threads", "vocabulary")


def check_same_run(
    config: Config,
    fingerprint: str,
    identity: Mapping[str, Any],
    tokenizer: Tokenizer,
    tasks: Iterable[OpenTask],
) -> None:
    """Raises `UserError` on all processes if any process has another config, data or model.

    Args:
        config: the run's config.
        fingerprint: the backbone's fingerprint.
        identity: the training data's `data_identity`.
        tokenizer: the run's tokenizer.
        tasks: the tasks evaluated during training.
    """
    if not processes.several():
        return
    settings = flatten(dataclasses.asdict(config))
    processes.check_same(
        {
            **{key: value for key, value in settings.items() if key.split(".")[-1] not in _LOCAL},
            "fingerprint": fingerprint,
            "examples": identity["examples"],
            "order of the examples": identity["order"],
            "tokenizer": tokenizer.spec(),
            **{f"the data of {task.name}": task.origin["contents"] for task in tasks},
        }
    )
