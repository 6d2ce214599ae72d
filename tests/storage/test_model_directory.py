"""Model directories: exact round trips, sharded reading, and errors that state the remedy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import dinotxt_jax as dt
from dinotxt_jax import sharding
from dinotxt_jax.inference.loading import load_dinotxt, load_vision_transformer
from dinotxt_jax.models.dinotxt import DinoTxt
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.storage.model_directory import (
    fingerprint,
    load_parts,
    read_description,
    write_model_directory,
)


def arrays_of(module: nnx.Module) -> dict:
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(module)))


def test_the_fingerprint_is_of_the_arrays_that_are_stored(tiny_backbone: Path) -> None:
    module, description = load_vision_transformer(tiny_backbone, DTypes())
    arrays = arrays_of(module)
    assert fingerprint(arrays) == description.fingerprint
    arrays["norm"]["bias"] = arrays["norm"]["bias"] + 1e-3
    assert fingerprint(arrays) != description.fingerprint


def test_arrays_arrive_sharded_and_unchanged(tiny_dinotxt: Path) -> None:
    mesh = sharding.make_mesh(data=4, fsdp=2)
    placed, description = load_dinotxt(tiny_dinotxt, DTypes(), mesh)
    whole, _ = load_dinotxt(tiny_dinotxt, DTypes())
    kernel = placed.text.blocks.mlp.fc1.kernel[...]
    assert kernel.sharding.shard_shape(kernel.shape) == (3, 32, 256)
    jax.tree.map(np.testing.assert_array_equal, arrays_of(placed), arrays_of(whole))
    assert fingerprint(arrays_of(placed.backbone)) == description.fingerprint


def test_arrays_are_cast_on_reading(tiny_backbone: Path) -> None:
    module, _ = load_vision_transformer(tiny_backbone, DTypes("bfloat16", "bfloat16"))
    assert module.norm.scale.dtype == jax.numpy.bfloat16


def test_a_backbone_can_be_read_out_of_a_whole_model(
    tiny_dinotxt: Path, tiny_backbone: Path
) -> None:
    inside, alone = dt.load_backbone(tiny_dinotxt), dt.load_backbone(tiny_backbone)
    images = np.ones((1, 98, 98, 3), np.float32)
    np.testing.assert_array_equal(inside(images).class_token, alone(images).class_token)


def referenced(model: Path, backbone: Path, output: Path) -> Path:
    """Returns a copy of a model that references the backbone instead of containing it."""
    description = dataclasses.replace(read_description(model), backbone_path=str(backbone))

    def create() -> DinoTxt:
        return DinoTxt(description.dinotxt, dtypes=DTypes())

    abstract = abstract_arrays(create, None)
    arrays = load_parts(model, {k: abstract[k] for k in ("head", "text", "logit_scale")})
    write_model_directory(output, description, arrays)
    return output


def test_a_model_finds_the_backbone_that_it_names(
    tiny_dinotxt: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    model = referenced(tiny_dinotxt, tiny_backbone, tmp_path / "model")
    whole, parts = load_dinotxt(tiny_dinotxt, DTypes())[0], load_dinotxt(model, DTypes())[0]
    jax.tree.map(np.testing.assert_array_equal, arrays_of(whole), arrays_of(parts))


def test_another_backbone_in_its_place_is_refused(
    tiny_dinotxt: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    module, description = load_vision_transformer(tiny_backbone, DTypes())
    arrays = arrays_of(module)
    arrays["norm"]["bias"] = arrays["norm"]["bias"] + 1
    other = dataclasses.replace(description, fingerprint=fingerprint(arrays))
    write_model_directory(tmp_path / "other", other, {"backbone": arrays})
    model = referenced(tiny_dinotxt, tmp_path / "other", tmp_path / "model")
    with pytest.raises(dt.UserError, match=r"was trained on the backbone .* but .*other now holds"):
        load_dinotxt(model, DTypes())


def test_relative_paths_are_taken_from_the_current_folder(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, description = load_vision_transformer(tiny_backbone, DTypes())
    monkeypatch.chdir(tmp_path)
    write_model_directory("models/tiny", description, {"backbone": arrays_of(module)})
    assert dt.load_backbone("models/tiny").description == description
    assert (tmp_path / "models/tiny/model.json").exists()


def test_a_directory_is_not_overwritten_by_accident(tiny_backbone: Path, tmp_path: Path) -> None:
    module, description = load_vision_transformer(tiny_backbone, DTypes())
    parts = {"backbone": arrays_of(module)}
    write_model_directory(tmp_path / "model", description, parts)
    with pytest.raises(dt.UserError, match="exists already"):
        write_model_directory(tmp_path / "model", description, parts)
    write_model_directory(tmp_path / "model", description, parts, overwrite=True)


def test_a_failure_while_writing_leaves_nothing(tiny_backbone: Path, tmp_path: Path) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("disk full")

    module, description = load_vision_transformer(tiny_backbone, DTypes())
    parts = {"backbone": arrays_of(module)}
    with pytest.raises(RuntimeError, match="disk full"):
        write_model_directory(tmp_path / "model", description, parts, write_tokenizer=fail)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_no_model_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        dt.UserError, match=r"is not a model directory .* python -m weights_convert"
    ):
        dt.load_backbone(tmp_path)


def test_a_backbone_is_not_taken_for_a_whole_model(tiny_backbone: Path) -> None:
    with pytest.raises(dt.UserError, match="a backbone without head and text transformer"):
        dt.load(tiny_backbone)


def test_a_directory_of_format_1_is_still_read(tiny_backbone: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_backbone, tmp_path / "old")
    file = tmp_path / "old" / "model.json"
    values = json.loads(file.read_text())
    for name in ("positions", "class_position", "rope_theta", "qkv_bias_mask", "local_class_norm"):
        del values["vision"][name]
    for name in ("layout", "dtype", "other_dtypes"):
        del values["sources"][0][name]
    file.write_text(json.dumps(values | {"format_version": 1}))
    images = np.ones((1, 28, 42, 3), np.float32)
    np.testing.assert_array_equal(
        dt.load_backbone(tmp_path / "old")(images).patch_tokens,
        dt.load_backbone(tiny_backbone)(images).patch_tokens,
    )
    assert read_description(tmp_path / "old").format_version == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 99}, "has format version 99, this dinotxt_jax reads 1 and 2; upgrade"),
        ({"colour": "red"}, "colour is not a setting"),
        ({"vision": {"dim": "wide"}}, "vision.dim is 'wide', expected a whole number"),
    ],
)
def test_a_description_that_cannot_be_used_says_why(
    change: dict, message: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    values = json.loads((tiny_backbone / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(values | change))
    with pytest.raises(dt.UserError, match=message):
        read_description(tmp_path)


def test_a_backbone_path_that_leads_to_itself_is_refused(
    tiny_dinotxt: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dinotxt, model)
    file = model / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"backbone_path": str(model)}))
    with pytest.raises(dt.UserError, match=r"which holds no backbone but names another directory"):
        dt.load_backbone(model)
