"""Several models on one page: figures, the best ones, published ones, and what differs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import with_tokenizer

from dinotxt_jax import UserError
from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig
from dinotxt_jax.evaluation.comparison import (
    MAIN_METRICS,
    compare_models,
    comparison_html,
    comparison_markdown,
    named_models,
)
from dinotxt_jax.evaluation.tasks import KINDS, prepared_as_model
from dinotxt_jax.storage.preprocessing import Preprocessing

WINDOWS = {"protocol": "slide", "resolution": "short side 512, window 384, stride 192"}
ADE20K = {"images": 2000, "classes": 150, "templates": 80}


def result(mean_iou: float, **protocol: object) -> dict:
    return {
        "kind": "segmentation",
        "metrics": {"mean_iou": mean_iou, "pixel_accuracy": 50.0},
        "protocol": {**WINDOWS, **ADE20K, **protocol},
        "published": "ade20k_150",
        "dtype": "float32",
        "preprocessing": {"crop": 224},
    }


def test_the_page_marks_the_best_and_names_what_differs() -> None:
    results = {
        "ours": {"ade": result(20.04, features="plain")},
        "theirs": {"ade": result(10.0, features="value")},
    }
    page = comparison_markdown("Title", results)
    assert "| ours | 20.0* |" in page
    assert "| theirs | 10.0 |" in page
    assert "| published: dino.txt (DINOv2 ViT-L/14) (DINOv3 report, table 16) | 19.2 |" in page
    assert "| features | plain | value |" in page
    assert "Shared by all models: protocol slide, " in page
    assert "pixels crop 224" in page
    assert "25.06" not in page  # of another protocol
    assert "20.0*" in comparison_html("Title", results)


def test_every_kind_has_metrics_that_stand_for_it() -> None:
    assert MAIN_METRICS.keys() == KINDS.keys()
    for name, metrics in MAIN_METRICS.items():
        assert set(metrics) <= set(KINDS[name].metrics)


def test_models_are_named_and_different() -> None:
    assert named_models(["a=x/y", "runs/b/model"]) == {"a": "x/y", "b_model": "runs/b/model"}
    with pytest.raises(UserError, match="--model=z/y has the name 'y'"):
        named_models(["x/y", "z/y"])
    with pytest.raises(UserError, match="no model is given"):
        named_models([])


def test_images_are_prepared_as_each_model_expects() -> None:
    task = TaskConfig(data=DataConfig(augmentation="center_crop"), preparation="model")
    pixels = Preprocessing(resize=300, crop=280, rule="squash_bilinear")
    data = prepared_as_model(task, pixels, "config.tasks.a").data
    assert (data.image_size, data.resize, data.augmentation) == (280, 300, "squash_bilinear")
    with pytest.raises(UserError, match="config.tasks.a.preparation is model, but .* by naflex"):
        prepared_as_model(task, Preprocessing(rule="naflex"), "config.tasks.a")


def test_models_are_evaluated_once_and_compared(tiny_dinotxt: Path, tmp_path: Path) -> None:
    model = with_tokenizer(tiny_dinotxt, tmp_path / "model", ("a red circle", "a blue square"))
    data = DataConfig(num_scenes=24, split="test", augmentation="squash", threads=2)
    task = TaskConfig(data=data, preparation="model", max_examples=8)
    config = EvaluationConfig(tasks={"scenes": task}, batch_size=8)
    files = compare_models([f"a={model}", f"b={model}"], config, tmp_path / "out")
    assert [file.name for file in files] == ["comparison.md", "comparison.html"]
    stored = json.loads((tmp_path / "out/a/results.json").read_text())
    assert stored["scenes"]["task"]["data"]["image_size"] == 56
    before = (tmp_path / "out/b/results.json").stat().st_mtime_ns
    compare_models([f"a={model}", f"b={model}"], config, tmp_path / "out")
    assert (tmp_path / "out/b/results.json").stat().st_mtime_ns == before
