"""Runs that begin with the parts of a model directory, and runs on towers of other families."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from drawn import checkpoint
from safetensors.numpy import save_file
from small_runs import config, losses, metrics_of
from stored import stored_tree

import dinotxt_jax as dt
from dinotxt_jax import sharding
from dinotxt_jax.config import Config, HeadTrainingConfig, LossConfig, TextTrainingConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.training.loop import train
from dinotxt_jax.training.step import TrainState, make_trainer
from weights_convert.convert import convert
from weights_convert.settings import parse_settings

LIT = HeadTrainingConfig(num_blocks=0, pooling="none")
ONLY_TEXT = {"start_parts": ("text",)}


def family(layout: str, folder: Path, **sizes: int) -> Path:
    """Returns a model directory with random arrays of another family."""
    folder.mkdir(exist_ok=True)
    save_file(checkpoint(layout, p=14, q=14, **sizes), folder / "model.safetensors")
    settings = parse_settings(["num_heads=4", "text_num_heads=2", "activation=gelu"])
    source = folder / "model.safetensors"
    named = {"layout": layout} if layout == "tips_vision" else {}
    convert([source], folder / "model", settings=settings, show_progress=False, **named)
    return folder / "model"


def first_state(run: Config) -> TrainState:
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        backbone = read_description(run.backbone)
        return make_trainer(run, backbone, vocabulary_size=400, mesh=mesh).create_state()


def assert_equal(actual: dict, expected: dict, name: str = "") -> None:
    assert actual.keys() == expected.keys(), name
    for key, value in expected.items():
        if isinstance(value, dict):
            assert_equal(actual[key], value, f"{name}.{key}")
        else:
            np.testing.assert_array_equal(np.asarray(actual[key]), value, f"{name}.{key}")


def test_a_run_continues_a_trained_model(tiny_backbone: Path, tmp_path: Path) -> None:
    first = config(tiny_backbone, steps=3)
    trained = train(first, tmp_path / "first")
    again = dataclasses.replace(first, start_from=str(trained), seed=5)
    arrays = stored_tree(trained)
    state = first_state(again)
    for part in ("head", "text", "logit_scale"):
        assert_equal({part: state.trainable[part]}, {part: arrays[part]})
    second = train(again, tmp_path / "second")
    first_row = metrics_of(tmp_path / "second")[0]
    assert first_row["logit_scale"] == pytest.approx(float(arrays["logit_scale"]))
    # The tokenizer is that of the first run, which the captions of another run would not give.
    assert dt.load(second).tokenizer.spec() == dt.load(trained).tokenizer.spec()


def test_a_clip_text_transformer_begins_under_a_dinov2(tiny_backbone: Path, tmp_path: Path) -> None:
    clip = family("clip", tmp_path / "clip", e=40)
    run = config(tiny_backbone, start_from=str(clip), **ONLY_TEXT)
    state, arrays = first_state(run), stored_tree(clip)
    text = state.trainable["text"]
    assert_equal(
        {name: tree for name, tree in text.items() if name != "projection"},
        {name: tree for name, tree in arrays["text"].items() if name != "projection"},
    )
    width = read_description(tiny_backbone).vision.dim
    assert text["projection"]["kernel"].shape == (64, 2 * width)  # new, for other descriptors
    assert float(state.trainable["logit_scale"]) == float(arrays["logit_scale"])


def test_a_head_of_another_backbone_is_refused(tiny_dinotxt: Path, tmp_path: Path) -> None:
    backbone = family("timm_vit", tmp_path / "vit")
    with pytest.raises(UserError, match="was trained on another backbone than config.backbone"):
        first_state(config(backbone, start_from=str(tiny_dinotxt)))


def test_a_text_transformer_without_a_tokenizer_starts_no_run(
    tiny_backbone: Path, tiny_dinotxt: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, start_from=str(tiny_dinotxt), **ONLY_TEXT)
    with pytest.raises(UserError, match="names no tokenizer"):
        train(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_what_the_settings_contradict_is_refused(
    tiny_backbone: Path, tiny_dinotxt: Path, tmp_path: Path
) -> None:
    siglip = family("hf_siglip", tmp_path / "siglip", n=9, e=64)
    run = config(tiny_backbone, start_from=str(siglip), **ONLY_TEXT)
    packed = dataclasses.replace(run, text=TextTrainingConfig(pack=True))
    with pytest.raises(UserError, match=r"config.text.pack is True, .* set config.text.pack=False"):
        first_state(packed)
    low = {"start_from": str(tiny_dinotxt), "loss": LossConfig(max_logit_scale=10)}
    with pytest.raises(UserError, match="max_logit_scale is 10, expected at least 14.29"):
        first_state(dataclasses.replace(run, **low))
    with pytest.raises(UserError, match="differs from config.head"):
        first_state(dataclasses.replace(run, start_parts=("head", "text")))


@pytest.mark.parametrize(
    ("layout", "sizes"),
    [
        ("hf_clip", {"e": 40}),
        ("hf_siglip", {"n": 9, "e": 64}),
        ("tips_vision", {}),
    ],
)
def test_a_locked_tower_of_any_family_gets_a_new_text_transformer(
    layout: str, sizes: dict[str, int], tmp_path: Path
) -> None:
    tower = family(layout, tmp_path / "tower", **sizes)
    run = config(tower, steps=3, head=LIT, loss=LossConfig(kind="sigmoid"))
    model = dt.load(train(run, tmp_path / "run"))
    assert np.isfinite(list(losses(tmp_path / "run").values())).all()
    assert model.description.fingerprint == read_description(tower).fingerprint
    assert model.logit_bias == pytest.approx(-10, abs=0.1)
    images = np.zeros((1, 56, 56, 3), np.float32)
    expected = dt.load_backbone(tower)(images).class_token
    np.testing.assert_array_equal(model.encode_image(images), expected)
