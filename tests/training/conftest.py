"""Runs of equal settings share their compiled step, and the count of its FLOPs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dinotxt_jax.config import CheckpointConfig, Config, DataConfig, EvaluationConfig
from dinotxt_jax.training import rates
from dinotxt_jax.training.step import Trainer


def _settings_of_steps(config: Config) -> Config:
    """The config without settings that no step depends on."""
    return dataclasses.replace(
        config,
        backbone="",
        checkpoint=CheckpointConfig(),
        data=DataConfig(),
        evaluation=EvaluationConfig(),
        feature_views=1,
        features="",
        include_backbone=True,
        log_every=1,
        profile="",
    )


def _key(trainer: Trainer) -> tuple[Any, ...]:
    """Everything that a step is a function of, next to its arguments."""
    config = repr(_settings_of_steps(trainer.config))
    return config, repr(trainer.model), repr(trainer.preprocessing), trainer.mesh


@pytest.fixture(scope="session", autouse=True)
def shared_steps() -> Iterator[None]:
    """Traces and compiles the step of equal runs once: a run and its resumed parts, for example."""
    compiled_step, matmul_flops = Trainer.compiled_step, rates.matmul_flops
    steps: dict[tuple[Any, ...], Callable[..., Any]] = {}
    flops: dict[tuple[Any, ...], float] = {}

    def shared_step(trainer: Trainer) -> Callable[..., Any]:
        key = _key(trainer)
        if key not in steps:
            steps[key] = compiled_step(trainer)
        return steps[key]

    def shared_flops(train_step: Any, *arguments: Any) -> float:
        key = (*_key(train_step.__self__), repr(arguments))
        if key not in flops:
            flops[key] = matmul_flops(train_step, *arguments)
        return flops[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "compiled_step", shared_step)
        patch.setattr(rates, "matmul_flops", shared_flops)
        yield
