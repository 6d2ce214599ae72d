"""Checks, before training starts, that all processes in a run agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from dinotxt_jax.config import Config, flatten
from dinotxt_jax.data.examples import Source
from dinotxt_jax.data.feature_cache import cache_description
from dinotxt_jax.evaluation.tasks import OpenTask
from dinotxt_jax.runtime import processes
from dinotxt_jax.tokenizers import Tokenizer

# Settings that may differ between machines.
_LOCAL = ("backbone", "features", "image_root", "path", "prefetch", "threads", "vocabulary")


def check_same_run(
    config: Config,
    fingerprint: str,
    source: Source,
    tokenizer: Tokenizer,
    tasks: Iterable[OpenTask],
) -> None:
    """Raises `UserError` on all processes if any process has another config, data or model.

    Args:
        config: the run's config.
        fingerprint: the fingerprint of the backbone.
        source: the training data; the number of examples and captions spread over them are
            compared.
        tokenizer: the run's tokenizer.
        tasks: the tasks evaluated during training.
    """
    if not processes.several():
        return
    data = cache_description(config, config.data, source, config.feature_views, fingerprint)
    settings = flatten(dataclasses.asdict(config))
    processes.check_same(
        {
            **{key: value for key, value in settings.items() if key.split(".")[-1] not in _LOCAL},
            **{name: data[name] for name in ("fingerprint", "examples", "captions")},
            "tokenizer": tokenizer.spec(),
            **{f"the data of {task.name}": task.origin["contents"] for task in tasks},
        }
    )
