"""Runs on a mixture of sources: metrics, exact resume, cached tokens, and epochs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_caches import open_cache
from small_runs import InterruptedRunError, config, interrupted_at, losses, metrics_of
from small_sets import jsonl

from dinotxt_jax import UserError
from dinotxt_jax.config import Config, DataConfig
from dinotxt_jax.config.sources import MixtureConfig
from dinotxt_jax.data.feature_cache import CachedExample
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.training.checkpoints import check_workdir
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.precompute import precompute


def mixed(backbone: Path, folder: Path, workdir: str = "", **changes: object) -> Config:
    """Returns a run on 40 scenes and the files in `folder`, of which one in `jsonl` is bad."""
    files = jsonl(folder, 1)
    mixture = {
        "drawn": MixtureConfig(num_scenes=40, weight=3, max_caption_length=60),
        "files": MixtureConfig(source="jsonl", path=files.path, weight=1),
    }
    data = DataConfig(mixture=mixture, image_size=56, threads=2, prefetch=16, max_bad_fraction=0.5)
    return config(backbone, data=data, **changes)


def test_a_run_on_a_mixture_counts_filtered_examples_and_resumes_exactly(
    tiny_backbone: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = mixed(tiny_backbone, tmp_path)
    caplog.set_level("INFO")
    train(run, tmp_path / "whole")
    assert "drawn: 40 examples, 75.00% of the pairs, 1.2 passes" in caplog.text
    with monkeypatch.context() as patch:
        interrupted_at(7, patch)
        with pytest.raises(InterruptedRunError):
            train(run, tmp_path / "parts")
    train(run, tmp_path / "parts")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    counts = [row["filtered_examples"] for row in metrics_of(tmp_path / "whole")]
    assert counts == sorted(counts)
    assert [row["filtered_examples"] for row in metrics_of(tmp_path / "parts")] == counts
    other = dataclasses.replace(run.data.mixture["files"], path=str(tmp_path / "elsewhere"))
    _check_change(run, tmp_path / "whole", other)
    with pytest.raises(UserError, match=r"config\.data\.mixture\.files\.weight \(1 there, 2 here"):
        _check_change(run, tmp_path / "whole", dataclasses.replace(other, weight=2))


def _check_change(run: Config, workdir: Path, files: MixtureConfig) -> None:
    """Checks whether the run in a work directory continues with other settings for one source."""
    import json

    stored = json.loads((workdir / "run.json").read_text())
    mixture = {**run.data.mixture, "files": files}
    changed = dataclasses.replace(run, data=dataclasses.replace(run.data, mixture=mixture))
    check_workdir(workdir, changed, stored["fingerprint"], stored["data"])


def test_cached_tokens_of_a_mixture_belong_to_the_examples_that_training_would_use(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    run = mixed(tiny_backbone, tmp_path, features=str(tmp_path / "features"))
    precompute(run)
    source = open_source(run.data)

    def tokenize(text: str) -> np.ndarray:
        return np.frombuffer(text[:4].encode(), np.uint8)

    cached = CachedExample(open_cache(run), source, run.data, tokenize)
    direct = ImageTextExample(source, run.data, tokenize)
    replaced = {"skipped": 0, "filtered": 0}
    for index in range(len(source)):
        draw = Draw(0, index, 0, run.seed)
        expected, actual = direct(draw), cached(draw)
        for name in ("index", "tokens", "skipped", "filtered"):
            np.testing.assert_array_equal(actual[name], expected[name])
        for name in replaced:
            replaced[name] += int(actual[name])
    assert replaced["skipped"] == 1
    assert replaced["filtered"] > 0
    more = dataclasses.replace(run.data.mixture["drawn"], weight=9)
    other = {**run.data.mixture, "drawn": more}
    open_cache(dataclasses.replace(run, data=dataclasses.replace(run.data, mixture=other)))
    longer = {**other, "drawn": dataclasses.replace(more, max_caption_length=61)}
    with pytest.raises(UserError, match="holds tokens for other settings or data: mixture"):
        open_cache(dataclasses.replace(run, data=dataclasses.replace(run.data, mixture=longer)))


def test_epochs_set_the_number_of_steps(tiny_backbone: Path, tmp_path: Path) -> None:
    data = DataConfig(num_scenes=20, image_size=56, threads=2)
    run = config(tiny_backbone, steps=50_000, epochs=1.5, batch_size=8, data=data)
    train(run, tmp_path / "run")
    assert len(losses(tmp_path / "run")) == 4  # 30 pairs
    late = dataclasses.replace(
        run, optimizer=dataclasses.replace(run.optimizer, warmup_steps=4), epochs=1.6
    )
    with pytest.raises(UserError, match=r"warmup_steps is 4, expected fewer than config\.steps=4"):
        train(late, tmp_path / "late")
    assert not (tmp_path / "late").exists()
