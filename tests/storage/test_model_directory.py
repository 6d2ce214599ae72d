"""Model directories: exact round trips, sharded reading, and errors that state the remedy."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
from damage import change_number, empty, flip, largest, truncate
from flax import nnx
from models import with_tokenizer
from piece_files import word_file
from stored import stored_tree

import dinotxt_jax as dt
from dinotxt_jax import sharding
from dinotxt_jax.inference.loading import load_dinotxt, load_vision_transformer
from dinotxt_jax.models.dinotxt import DinoTxt
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.storage.model_arrays import load_parts
from dinotxt_jax.storage.model_directory import fingerprint, read_description, write_model_directory
from dinotxt_jax.tokenizers import SentencePieceTokenizer


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
    written = dt.load_backbone("models/tiny").description
    assert dataclasses.replace(written, checksums=description.checksums) == description
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
    del values["checksums"]
    file.write_text(json.dumps(values | {"format_version": 1}))
    images = np.ones((1, 28, 42, 3), np.float32)
    np.testing.assert_array_equal(
        dt.load_backbone(tmp_path / "old")(images).patch_tokens,
        dt.load_backbone(tiny_backbone)(images).patch_tokens,
    )
    assert read_description(tmp_path / "old").format_version == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": 99},
            "has format version 99, this dinotxt_jax reads 1 to 3; upgrade",
        ),
        ({"checksums": None}, "model.json has lost the checksums of the arrays; restore it"),
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


@pytest.fixture
def copied(tiny_dinotxt: Path, tmp_path: Path) -> Path:
    """Returns a copy of the reference dino.txt that may be damaged."""
    shutil.copytree(tiny_dinotxt, tmp_path / "model")
    return tmp_path / "model"


def test_a_changed_number_is_noticed_in_every_part_and_dtype(copied: Path) -> None:
    for place in (("backbone", "norm", "bias"), ("text", "projection", "kernel")):
        change_number(copied, place)
        message = rf"model is damaged: {'.'.join(place)} differ.*; restore it, or convert"
        for dtype in ("float32", "bfloat16"):
            with pytest.raises(dt.UserError, match=message):
                dt.load(copied, dtype)
        change_number(copied, place)  # repairs it
    dt.load(copied)


def test_a_changed_kernel_is_noticed_when_it_is_quantised(copied: Path) -> None:
    change_number(copied, ("backbone", "blocks", "mlp", "fc1", "kernel"))
    message = r"model is damaged: backbone.blocks.mlp.fc1.kernel differ"
    with pytest.raises(dt.UserError, match=message):
        dt.load_backbone(copied, products="int8")


def test_arrays_of_another_model_are_refused(
    copied: Path, tiny_backbone: Path, tmp_path: Path
) -> None:
    """Both have the same architecture, so that only the values differ."""
    arrays_of_backbone = stored_tree(tiny_backbone)["backbone"]
    arrays_of_backbone["norm"]["bias"] = arrays_of_backbone["norm"]["bias"] + 1
    description = read_description(tiny_backbone)
    write_model_directory(tmp_path / "other", description, {"backbone": arrays_of_backbone})
    shutil.copytree(tiny_backbone, tmp_path / "backbone")
    shutil.rmtree(tmp_path / "backbone/arrays")
    shutil.copytree(tmp_path / "other/arrays", tmp_path / "backbone/arrays")
    with pytest.raises(dt.UserError, match=r"backbone is damaged: backbone.norm.bias differ"):
        dt.load_backbone(tmp_path / "backbone")
    shutil.rmtree(copied / "arrays")
    shutil.copytree(tiny_backbone / "arrays", copied / "arrays")
    with pytest.raises(dt.UserError, match=r"does not hold the model .* \(head\..* is missing"):
        dt.load(copied)


def test_verification_can_be_switched_off(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change_number(copied, ("backbone", "norm", "bias"))
    monkeypatch.setenv("DINOTXT_CHECKSUMS", "off")
    dt.load(copied)
    monkeypatch.setenv("DINOTXT_CHECKSUMS", "no")
    with pytest.raises(dt.UserError, match="DINOTXT_CHECKSUMS is .no., expected on or off"):
        dt.load(copied)


@pytest.mark.parametrize("damage", [flip, truncate, empty])
def test_a_damaged_file_is_a_sentence(damage: Callable[[Path], object], copied: Path) -> None:
    damage(largest(copied / "arrays"))
    with pytest.raises(dt.UserError, match=r"model.*damaged"):
        dt.load(copied)


def test_groups_of_arrays_are_the_whole_model(
    tiny_dinotxt: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = arrays_of(load_dinotxt(tiny_dinotxt, DTypes())[0])
    monkeypatch.setattr("dinotxt_jax.storage.model_arrays._GROUP", 20_000)
    in_groups = arrays_of(load_dinotxt(tiny_dinotxt, DTypes())[0])
    jax.tree.map(np.testing.assert_array_equal, in_groups, whole)


ABSURD = (0, -1, 10**6, 10**12, 1.5, "x", None, [], {})
# The fields without which, or with any other type of which, a model cannot be built.
FIELDS = (
    ("vision", "dim"),
    ("vision", "depth"),
    ("vision", "num_registers"),
    ("head", "num_blocks"),
    ("text", "width"),
    ("text", "context_length"),
    ("text", "vocabulary_size"),
    ("preprocessing", "crop"),
    ("preprocessing", "rule"),
    ("preprocessing", "max_patches"),
    ("tokenizer", "context_length"),
    ("tokenizer", "vocabulary_size"),
    ("tokenizer", "kind"),
)


def test_a_hostile_description_is_a_sentence(tiny_dinotxt: Path, tmp_path: Path) -> None:
    """Also absurd sizes, for which nothing may be allocated."""
    model = with_tokenizer(tiny_dinotxt, tmp_path / "model", ["a red circle", "a blue star"])
    intact = json.loads((model / "model.json").read_text())
    for group, name in FIELDS:
        for value in ABSURD:
            changed = intact | {group: intact[group] | {name: value}}
            (model / "model.json").write_text(json.dumps(changed))
            with pytest.raises(dt.UserError, match="model.json"):
                dt.load(model)
    for group in ("vision", "preprocessing", "fingerprint"):
        changed = {key: value for key, value in intact.items() if key != group}
        (model / "model.json").write_text(json.dumps(changed))
        with pytest.raises(dt.UserError, match=group):
            dt.load(model)


def test_a_description_without_a_resize_rule_means_a_center_crop(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_backbone, tmp_path / "model")
    file = tmp_path / "model/model.json"
    values = json.loads(file.read_text())
    del values["preprocessing"]["rule"], values["preprocessing"]["max_patches"]
    file.write_text(json.dumps(values))
    old, new = read_description(tmp_path / "model"), read_description(tiny_backbone)
    assert old.preprocessing == new.preprocessing
    assert old.preprocessing.rule == "center_crop"


def test_a_tokenizer_may_have_fewer_ids_than_the_table_has_rows_but_not_more(
    tiny_dinotxt: Path, tmp_path: Path
) -> None:
    words = ["a", "red", "circle"]
    (tmp_path / "tokenizer.json").write_bytes(word_file(words))
    tokenizer = SentencePieceTokenizer.with_new_end(tmp_path / "tokenizer.json", "lower", 77)
    description = dataclasses.replace(read_description(tiny_dinotxt), tokenizer=tokenizer.spec())
    write_model_directory(
        tmp_path / "model",
        description,
        stored_tree(tiny_dinotxt),
        write_tokenizer=tokenizer.save,
    )
    model = dt.load(tmp_path / "model")
    assert model.tokenizer.spec() == tokenizer.spec()
    features = model.embed_texts(["A red circle", "a red circle", "a red"])
    np.testing.assert_array_equal(features[0], features[1])
    assert not np.allclose(features[0], features[2])
    for change, message in (
        ({"vocabulary_size": 134, "end_id": 133}, "vocabulary_size is 134, expected at most 133"),
        ({"end_id": 1}, "end_id is 1, expected 6, the largest id, at which the text transformer"),
        ({"end_id": None}, "end_id is None, expected 6"),
    ):
        changed = dataclasses.replace(description, tokenizer=tokenizer.spec() | change)
        assert [message in sentence for sentence in changed.conflicts("model.json")] == [True]


def test_a_backbone_path_that_leads_to_itself_is_refused(
    tiny_dinotxt: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_dinotxt, model)
    file = model / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"backbone_path": str(model)}))
    with pytest.raises(dt.UserError, match=r"which holds no backbone but names another directory"):
        dt.load_backbone(model)
