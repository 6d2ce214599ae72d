"""Shares the compiled step and a finished run between tests."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import Mesh
from small_runs import HELD_OUT, config

from dinotxt_jax import sharding
from dinotxt_jax.config import (
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    TaskConfig,
)
from dinotxt_jax.training import step_metrics
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.pictures import RunPictures
from dinotxt_jax.training.rates import ModelFlops
from dinotxt_jax.training.step import Trainer

_PICTURES = {name: getattr(RunPictures, name) for name in ("draw_curves", "draw_samples")}


def _settings_of_steps(config: Config) -> Config:
    """Returns the config without the settings that do not affect a step."""
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
    """Returns everything that determines the result of a step, besides the arguments."""
    config = repr(_settings_of_steps(trainer.config))
    return config, repr(trainer.model), repr(trainer.preprocessing), trainer.mesh


@pytest.fixture(scope="session", autouse=True)
def shared_steps() -> Iterator[None]:
    """Traces and compiles the step once for equal runs, for example a run and resumed parts."""
    compiled_step = Trainer.compiled_step
    steps: dict[tuple[Any, ...], Callable[..., Any]] = {}

    def shared_step(trainer: Trainer) -> Callable[..., Any]:
        key = _key(trainer)
        if key not in steps:
            steps[key] = compiled_step(trainer)
        return steps[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "compiled_step", shared_step)
        yield


@contextlib.contextmanager
def _two_devices() -> Iterator[None]:
    """Lets runs without `config.mesh` use two of the eight devices, which halves their time."""
    make_mesh = sharding.make_mesh

    def small_mesh(*sizes: int, devices: Any = None, **named: int) -> Mesh:
        # Only `train` passes all settings by name.
        if devices is None and named == dataclasses.asdict(MeshConfig()):
            devices = jax.devices()[:2]
        return make_mesh(*sizes, devices=devices, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "make_mesh", small_mesh)
        yield


@pytest.fixture(autouse=True)
def two_devices() -> Iterator[None]:
    """Applies `_two_devices` to every test of training."""
    with _two_devices():
        yield


@pytest.fixture(autouse=True)
def without_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the runs of most tests the pictures and counting FLOPs; `finished` has both."""
    for name in _PICTURES:
        monkeypatch.setattr(RunPictures, name, lambda *_: None)
    monkeypatch.setattr(step_metrics, "ModelFlops", lambda _: lambda *_: 1e9)


@pytest.fixture
def with_pictures(without_extras: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws the pictures nevertheless."""
    for name, original in _PICTURES.items():
        monkeypatch.setattr(RunPictures, name, original)


@pytest.fixture(scope="session")
def finished(
    shared_steps: None, tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Returns the work directory of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    evaluation = EvaluationConfig(
        tasks={"scenes": TaskConfig(data=HELD_OUT)}, every=4, batch_size=8
    )
    with _two_devices(), pytest.MonkeyPatch.context() as patch:
        for name, original in _PICTURES.items():
            patch.setattr(RunPictures, name, original)
        patch.setattr(step_metrics, "ModelFlops", ModelFlops)
        train(config(tiny_backbone, evaluation=evaluation), workdir)
    return workdir
