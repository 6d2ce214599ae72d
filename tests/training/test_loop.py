"""Complete runs on synthetic scenes: learning, exact resume, caching, and work directories."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from piece_files import trained_model
from PIL import Image
from small_runs import (
    HELD_OUT,
    InterruptedRunError,
    config,
    interrupted_at,
    losses,
    metrics_of,
)
from tolerances import SAME_LOSS, assert_same

import dinotxt_jax as dt
from dinotxt_jax import UserError
from dinotxt_jax.config import (
    DataConfig,
    EvaluationConfig,
    HeadTrainingConfig,
    LossConfig,
    MeshConfig,
    PrecisionConfig,
    TaskConfig,
    TextTrainingConfig,
    TokenizerConfig,
)
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.training import texts
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.metrics import read_metrics
from dinotxt_jax.training.precompute import precompute


def test_a_run_writes_the_documented_files(finished: Path) -> None:
    rows = read_metrics(finished / "metrics.jsonl")
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == list(range(1, 9))
    promised = ("loss", "logit_scale", "learning_rate", "grad_norm", "pairs_per_second")
    measured = ("data_wait_fraction", "tflops_per_second", "host_memory_gib")
    for key in (*promised, *measured, "bad_images"):
        assert all(isinstance(row[key], int | float) for row in steps), key
    assert {row["tflops_per_second"] > 0 for row in steps} == {True}
    assert {row["text_tokens_computed_fraction"] for row in steps} == {1.0}
    assert {row["text_flops_saved"] for row in steps} == {0.0}
    assert 0 <= steps[-1]["data_wait_fraction"] <= 1
    results = [row for row in rows if "scenes/mean_recall" in row]
    assert [row["step"] for row in results] == [4, 8]
    for picture in ("curves.png", "samples.png"):
        assert Image.open(finished / picture).size[0] > 600
    assert list((finished / "tensorboard").glob("events*"))


def test_the_final_model_is_read_by_load(finished: Path, tiny_backbone: Path) -> None:
    model = dt.load(finished / "model")
    tokens = model.tokenizer(["a red circle", "a red circle", "a blue star"])
    features = np.asarray(model.encode_text(tokens, normalize=True))
    assert_same(features[0], features[1])
    assert features.shape == (3, 128)
    images = np.zeros((2, 56, 56, 3), np.float32)
    assert model.encode_image(images).shape == (2, 128)
    assert model.encode_patches(images).patch_tokens.shape == (2, 4, 4, 64)
    inside, alone = dt.load_backbone(finished / "model"), dt.load_backbone(tiny_backbone)
    np.testing.assert_array_equal(inside(images).class_token, alone(images).class_token)


@pytest.mark.slow
def test_without_blocks_and_pooling_the_class_token_alone_learns_a_language(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    lit = HeadTrainingConfig(num_blocks=0, pooling="none")
    run = config(tiny_backbone, steps=4, head=lit, profile="2:3")
    workdir = train(run, tmp_path / "lit").parent
    assert len(list((workdir / "tensorboard").glob("plugins/profile/*/*.xplane.pb"))) == 1
    model, backbone = dt.load(workdir / "model"), dt.load_backbone(tiny_backbone)
    images = np.random.default_rng(0).normal(size=(2, 56, 56, 3)).astype(np.float32)
    out = backbone(images)
    assert_same(model.encode_image(images), out.class_token)
    patches = model.encode_patches(images).patch_tokens
    assert_same(patches.reshape(2, 16, 64), out.patch_tokens)
    assert model.encode_text(model.tokenizer(["a red circle"])).shape == (1, 64)
    train(run, workdir)  # resuming a finished run


@pytest.mark.slow
def test_a_run_with_the_pieces_of_a_file_learns_and_exports_them(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.model").write_bytes(trained_model("bpe", byte_fallback=True, vocab_size=400))
    settings = TokenizerConfig("sentencepiece", str(tmp_path / "a.model"), context_length=64)
    text = TextTrainingConfig(width=32, depth=2, num_heads=2, pack=True)
    packed = config(tiny_backbone, tokenizer=settings, text=text)
    plain = dataclasses.replace(packed, text=dataclasses.replace(text, pack=False))
    train(packed, tmp_path / "packed")
    train(plain, tmp_path / "plain")
    for step, loss in losses(tmp_path / "plain").items():
        assert losses(tmp_path / "packed")[step] == pytest.approx(loss, rel=SAME_LOSS)
    model = dt.load(tmp_path / "packed/model")
    assert model.description.tokenizer == model.tokenizer.spec()
    assert model.tokenizer.decode(model.tokenizer.encode("A red ☕")) == "a red ☕"
    train(packed, tmp_path / "packed")  # resuming a finished run


def test_evaluating_the_final_model_equals_the_last_steps_evaluation(
    finished: Path, tmp_path: Path
) -> None:
    tasks = EvaluationConfig(tasks={"scenes": TaskConfig(data=HELD_OUT)}, batch_size=8)
    evaluate(str(finished / "model"), tasks, tmp_path / "report")
    results = json.loads((tmp_path / "report/results.json").read_text())
    last = read_metrics(finished / "metrics.jsonl")[-1]
    for key, value in results["scenes"]["metrics"].items():
        assert last[f"scenes/{key}"] == pytest.approx(value, abs=1e-9)


def test_running_the_finished_command_again_trains_nothing(
    finished: Path, tiny_backbone: Path
) -> None:
    before = losses(finished)
    train(config(tiny_backbone), finished)
    assert losses(finished) == before


def test_a_run_started_in_parts_equals_one_in_whole(
    finished: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is interrupted between checkpoints: steps after the newest one are repeated."""
    calls = interrupted_at(7, monkeypatch)
    with pytest.raises(InterruptedRunError):
        train(config(tiny_backbone), tmp_path / "run")
    assert max(losses(tmp_path / "run")) == 6
    train(config(tiny_backbone), tmp_path / "run")
    assert len(calls) == 7 + 4  # six steps and the interruption, then resumed from step 4
    assert losses(tmp_path / "run") == losses(finished)


def test_training_from_cached_features_equals_running_the_backbone(
    finished: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """One cached view: equal as long as it lasts (5 steps are an epoch)."""
    evaluation = EvaluationConfig(
        tasks={"scenes": TaskConfig(data=HELD_OUT)}, every=4, batch_size=8
    )
    cached = config(
        tiny_backbone,
        features=str(tmp_path / "features"),
        feature_views=1,
        evaluation=evaluation,
    )
    precompute(cached)
    train(cached, tmp_path / "run")
    actual, expected = losses(tmp_path / "run"), losses(finished)
    for step in range(1, 6):
        assert actual[step] == pytest.approx(expected[step], rel=SAME_LOSS)
    assert actual[7] != pytest.approx(expected[7], rel=SAME_LOSS)
    results = [row for row in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" not in row]
    assert [row["step"] for row in results] == [4, 8]


@pytest.mark.slow
def test_trimming_rows_changes_nothing(
    finished: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trimmed = config(tiny_backbone)
    trimmed = dataclasses.replace(trimmed, text=dataclasses.replace(trimmed.text, trim=16))
    interrupted_at(7, monkeypatch)
    with pytest.raises(InterruptedRunError):
        train(trimmed, tmp_path / "run")
    actual, expected = losses(tmp_path / "run"), losses(finished)
    for step in range(1, 7):
        assert actual[step] == pytest.approx(expected[step], rel=SAME_LOSS)


def test_packed_captions_change_nothing_also_resumed_cached_and_on_another_mesh(
    finished: Path, tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches need more rows than planned: one row on each device, for two captions."""
    monkeypatch.setattr(texts, "planned_rows", lambda *_: 1)
    packed = config(
        tiny_backbone,
        text=TextTrainingConfig(width=32, depth=2, num_heads=2, pack=True),
        features=str(tmp_path / "features"),
        feature_views=5,
        mesh=MeshConfig(fsdp=2, tensor=2),
    )
    precompute(packed)
    interrupted_at(7, monkeypatch)
    with pytest.raises(InterruptedRunError):
        train(packed, tmp_path / "run")
    train(packed, tmp_path / "run")
    actual, expected = losses(tmp_path / "run"), losses(finished)
    assert sorted(actual) == sorted(expected)
    for step in range(1, 9):
        assert actual[step] == pytest.approx(expected[step], rel=SAME_LOSS)
    rows = metrics_of(tmp_path / "run")
    assert 1 in {row["packing_overflows"] for row in rows}
    for row in rows:
        overflow = row["packing_overflows"]
        assert row["text_tokens_computed_fraction"] == (1.0 if overflow else 0.5)
        assert (row["text_flops_saved"] > 0) == (not overflow)


def test_a_model_that_names_its_backbone(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work directory is given relative to the current folder."""
    monkeypatch.chdir(tmp_path)
    model = train(config(tiny_backbone, include_backbone=False), Path("run"))
    description = json.loads((model / "model.json").read_text())
    assert Path(description["backbone_path"]) == tiny_backbone.resolve()
    assert dt.load(model).encode_image(np.zeros((1, 56, 56, 3), np.float32)).shape == (1, 128)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": ""}, "config.backbone is empty"),
        ({"steps": 0}, "config.steps is 0, expected a number from 1"),
        ({"loss": LossConfig(chunk=0)}, "config.loss.chunk is 0, expected a number from 1"),
        ({"batch_size": 9}, "batch_size=9 does not divide over the 2 parts"),
        ({"features": "nowhere"}, "nowhere holds no features.json"),
        ({"data": DataConfig(image_size=60)}, "data.image_size is 60, .* of 14, .* 56 or 70"),
        ({"precision": PrecisionConfig(compute="bf16")}, "config.precision.compute is 'bf16', ex"),
        ({"evaluation": EvaluationConfig(batch_size=9)}, "config.evaluation.batch_size=9 does not"),
        (
            {"evaluation": EvaluationConfig(tasks={"a": TaskConfig(kind="sums")})},
            "config.evaluation.tasks.a.kind is 'sums', expected retrieval, classification, segme",
        ),
        (
            {"data": DataConfig(source="jsonl", path="missing.jsonl")},
            "there is no file missing.jsonl",
        ),
        (
            {"text": TextTrainingConfig(pack=True, trim=8)},
            "config.text.trim is 8, expected 0 with config.text.pack=True",
        ),
        ({"tokenizer": TokenizerConfig(kind="words")}, "config.tokenizer.kind is 'words', expec"),
        ({"seed": -1}, "config.seed is -1, expected a number from 0 to"),
        ({"seed": 2**64}, "config.seed is 18446744073709551616, expected a number from 0 to"),
        ({"data": DataConfig(threads=-2)}, "config.data.threads is -2"),
        ({"data": DataConfig(workers=-2)}, "config.data.workers is -2"),
        ({"text": TextTrainingConfig(depth=0)}, "config.text.depth is 0"),
        ({"loss": LossConfig(max_logit_scale=0)}, "config.loss.max_logit_scale is 0"),
        ({"head": HeadTrainingConfig(patch_tokens=-3)}, "config.head.patch_tokens is -3, expecte"),
        ({"head": HeadTrainingConfig(num_heads=7)}, "config.head.num_heads is 7, expected a"),
    ],
)
def test_an_impossible_run_leaves_no_work_directory(
    changes: dict, message: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        train(config(tiny_backbone, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
