"""Non-finite losses and gradients: the run stops or skips the step, and saves nothing after it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import several
from small_runs import InterruptedRunError, config, interrupted_at, losses, metrics_of
from stored import stored_tree
from tolerances import SAME_LOSS, assert_same

from dinotxt_jax.config import CheckpointConfig, Config, OptimizerConfig
from dinotxt_jax.errors import DIVERGED, UserError
from dinotxt_jax.storage.arrays import Checkpoints
from dinotxt_jax.storage.model_directory import read_description, write_model_directory
from dinotxt_jax.training.batches import Batch, Batches
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.optimizer import make_optimizer
from dinotxt_jax.training.precompute import precompute


@pytest.fixture(scope="module")
def cached(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Returns the config of a run on cached features, which are floating point."""
    features = tmp_path_factory.mktemp("cached") / "features"
    run = config(tiny_backbone, features=str(features), feature_views=5, log_every=5)
    precompute(run)
    return run


def skipping(run: Config, log_every: int = 5) -> Config:
    """Returns the config of a run that skips non-finite steps, up to three in a row."""
    return dataclasses.replace(run, on_nonfinite="skip", max_nonfinite=3, log_every=log_every)


def broken_at(steps: set[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the first image of the batches for these steps NaN."""
    original = Batches.__next__

    def breaking(batches: Batches) -> Batch:
        batch = original(batches)
        if batches.get_state()["data"]["next_step"] not in steps:
            return batch
        features = batch.arrays["features"]
        return batch._replace(arrays=batch.arrays | {"features": features.at[0].set(jnp.nan)})

    monkeypatch.setattr(Batches, "__next__", breaking)


def test_a_nonfinite_step_stops_the_run_and_nothing_is_saved_after_it(
    cached: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at({7}, monkeypatch)
    with pytest.raises(UserError, match="step 7 has the loss nan and the gradient norm nan") as end:
        train(cached, tmp_path / "run")
    assert end.value.exit_code == DIVERGED
    assert "config.on_nonfinite=skip" in str(end.value)
    checkpoints = Checkpoints(tmp_path / "run/checkpoints", 1)
    assert checkpoints.latest() == 4
    checkpoints.close()
    assert not (tmp_path / "run/model").exists()
    (file,) = (tmp_path / "run/divergence").iterdir()
    report = json.loads(file.read_text())
    assert report["step"] == 7
    assert np.isfinite([report["last_finite_loss"], report["logit_scale"]]).all()
    assert report["learning_rate"] > 0
    assert len({row["key"] for row in report["examples"]}) == 8


def test_a_skipped_step_changes_nothing_but_the_count(
    cached: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps before equal the steps of a run that stops; checkpoints hold the count."""
    run = skipping(cached, log_every=1)
    broken_at({5}, monkeypatch)
    with pytest.raises(UserError, match="step 5 has the loss nan"):
        train(dataclasses.replace(cached, log_every=1), tmp_path / "stop")
    train(run, tmp_path / "whole")
    stopping, skipped = losses(tmp_path / "stop"), losses(tmp_path / "whole")
    for step in range(1, 5):  # another program
        assert skipped[step] == pytest.approx(stopping[step], rel=SAME_LOSS)
    rows = {row["step"]: row for row in metrics_of(tmp_path / "whole")}
    assert rows[5]["loss"] is None
    assert [rows[step]["nonfinite_steps"] for step in (1, 4, 5, 8)] == [0, 0, 1, 1]
    assert rows[6]["logit_scale"] == rows[5]["logit_scale"] != rows[7]["logit_scale"]
    assert rows[6]["learning_rate"] == rows[5]["learning_rate"] != rows[7]["learning_rate"]
    with monkeypatch.context() as patch:
        interrupted_at(7, patch)
        with pytest.raises(InterruptedRunError):
            train(run, tmp_path / "parts")
    train(run, tmp_path / "parts")
    assert metrics_without_times(tmp_path / "parts") == metrics_without_times(tmp_path / "whole")


def metrics_without_times(workdir: Path) -> list[dict[str, Any]]:
    names = ("step", "loss", "logit_scale", "learning_rate", "grad_norm", "nonfinite_steps")
    return [{name: row[name] for name in names} for row in metrics_of(workdir)]


def test_too_many_skipped_steps_in_a_row_stop_the_run(
    cached: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_at({2, 3, 5, 6, 7, 8}, monkeypatch)
    with pytest.raises(UserError, match="step 7 has the loss nan .*, the last of 3 in a row"):
        train(skipping(cached), tmp_path / "run")


def test_checkpoints_of_finite_steps_outlive_a_divergence(
    cached: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    often = dataclasses.replace(cached, log_every=8, checkpoint=CheckpointConfig(every=1, keep=1))
    broken_at(set(range(3, 8)), monkeypatch)
    with pytest.raises(UserError, match="step 3 has"):
        train(often, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run/checkpoints").iterdir()] == ["2"]


@pytest.mark.slow
def test_all_processes_stop_at_a_divergence_with_exit_code_3(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    backbone = tmp_path / "backbone"
    broken_backbone(tiny_backbone, backbone)
    flag = several.config_file(config(backbone, steps=4), tmp_path / "config.py")
    arguments = ["-m", "dinotxt_jax.train", flag, f"--workdir={tmp_path / 'run'}"]
    group = several.start(tmp_path / "logs", 2, 1, arguments)
    assert group.finish() == [DIVERGED, DIVERGED], group.everything()
    assert "error: step 1 has the loss nan" in group.output(0)
    files = {file.name for file in (tmp_path / "run/divergence").iterdir()}
    assert files == {"step_1-process_0.json", "step_1-process_1.json"}
    examples = [json.loads((tmp_path / "run/divergence" / name).read_text()) for name in files]
    assert [len(report["examples"]) for report in examples] == [4, 4]


def broken_backbone(intact: Path, path: Path) -> None:
    """Writes a backbone with one weight that is NaN."""
    arrays = stored_tree(intact)
    arrays["backbone"]["norm"]["scale"] = arrays["backbone"]["norm"]["scale"].at[0].set(jnp.nan)
    write_model_directory(path, read_description(intact), arrays)


def test_gradients_are_clipped_to_the_norm() -> None:
    gradients = {"kernel": jnp.asarray([[3.0, 4.0]]), "bias": jnp.asarray([12.0])}  # norm 13
    axes = {"kernel": ("embed", "mlp"), "bias": ("mlp",)}
    for limit, factor in ((0.0, 1.0), (6.5, 0.5), (20.0, 1.0)):
        optimizer, _ = make_optimizer(OptimizerConfig(clip_norm=limit), 10_000, axes)
        _, state = optimizer.update(gradients, optimizer.init(gradients), gradients)
        (adam,) = (part for part in state_parts(state) if hasattr(part, "mu"))
        for name, gradient in gradients.items():
            assert_same(adam.mu[name], 0.1 * factor * gradient)


def state_parts(state: Any) -> list[Any]:
    """Returns the named tuples in a nested optax state."""
    if hasattr(state, "_fields"):
        return [state]
    return [part for inner in state for part in state_parts(inner)]
