"""Sources other than local files: addresses, hub repositories, folders and shards."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import commands
import numpy as np
import pytest
from drawn import checkpoint
from hub_server import served_repository
from safetensors.numpy import save_file

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.model_directory import read_description
from weights_convert.configs import described_beside
from weights_convert.convert import convert
from weights_convert.fetching import fetch
from weights_convert.settings import Settings
from weights_convert.sources import open_checkpoint

ONE_HEAD = Settings(num_heads=1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_address_is_downloaded_once_and_checked(web: Any, tmp_path: Path) -> None:
    save_file(checkpoint("dinov2"), web.folder / "small.safetensors")
    sha256 = hashlib.sha256((web.folder / "small.safetensors").read_bytes()).hexdigest()
    source = f"{web.url('small.safetensors')}#sha256={sha256}"
    convert([source], tmp_path / "model", settings=ONE_HEAD, show_progress=False)
    assert read_description(tmp_path / "model").sources[0].sha256 == sha256
    fetch(source)
    assert len(web.requests) == 1
    with pytest.raises(UserError, match="is expected"):
        fetch(f"{web.url('small.safetensors')}#sha256={'0' * 64}")


def test_equal_file_names_from_two_addresses_are_separate_files(web: Any) -> None:
    for folder in ("a", "b"):
        (web.folder / folder).mkdir()
        (web.folder / folder / "x.pth").write_text(folder)
    assert [fetch(web.url(f"{f}/x.pth")).read_text() for f in ("a", "b")] == ["a", "b"]


def test_a_hub_repository_is_converted_with_its_config(web: Any, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    config = {"num_attention_heads": 2, "hidden_act": "gelu"}
    hub = served_repository(web, checkpoint("hf_dinov2"), config)
    # The hub's address is read from the environment when the library is imported.
    done = commands.run(
        ["-m", "weights_convert", "hf://someone/model", "--output=model"],
        env=commands.environment(**hub, HF_HOME=str(tmp_path / "hub")),
        cwd=tmp_path,
        fresh=True,
    )
    assert done.returncode == 0, done.stderr
    assert "hf://someone/model: Dinov2 of transformers" in done.stdout
    assert read_description(tmp_path / "model").vision.num_heads == 2
    assert not any("README" in path for path, _ in web.requests)


def test_hub_names_and_failures_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")
    for wrong in ("hf://alone", "hf:///x"):
        with pytest.raises(UserError, match="is not of the form hf://ORG/NAME"):
            fetch(wrong)

    def offline(*_: Any, **__: Any) -> str:
        raise hub.errors.OfflineModeIsEnabled("no network today")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    monkeypatch.setattr(hub, "hf_hub_download", offline)
    for source in ("hf://someone/model", "hf://someone/model@v1/x.pth"):
        with pytest.raises(UserError, match="could not be downloaded .no network today."):
            fetch(source)


def test_without_the_hub_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install huggingface_hub"):
        fetch("hf://someone/model")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """Returns a folder in the format that transformers uses for large models."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    arrays = checkpoint("hf_dinov3", p=16, q=16)
    where = {}
    for number in range(2):
        name = f"model-0000{number + 1}-of-00002.safetensors"
        part = {key: a for i, (key, a) in enumerate(arrays.items()) if i % 2 == number}
        save_file(part, folder / name)
        where |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"num_attention_heads": 8, "rope_theta": 50.0, "hidden_act": "gelu"}
    (folder / "config.json").write_text(json.dumps(config))
    processor = {
        "image_mean": [0.1, 0.2, 0.3],
        "size": {"shortest_edge": 300},
        "crop_size": {"height": 280, "width": 280},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize("what", ["", "model.safetensors.index.json"])
def test_shards_are_read_as_one_with_the_settings_beside_them(
    sharded: Path, tmp_path: Path, what: str
) -> None:
    source = sharded / what if what else sharded
    description = convert([source], tmp_path / "model", show_progress=False).description
    assert (description.vision.num_heads, description.vision.rope_theta) == (8, 50.0)
    preprocessing = description.preprocessing
    assert (preprocessing.mean, preprocessing.resize, preprocessing.crop) == (
        (0.1, 0.2, 0.3),
        300,
        280,
    )
    assert preprocessing.std == (0.229, 0.224, 0.225)


def test_shards_that_do_not_fit_their_index_are_refused(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    values = json.loads(index.read_text())
    for where, message in (
        ({"a": "../elsewhere.safetensors"}, "is not the name of a file next to it"),
        ({"a": "./model-00001-of-00002.safetensors"}, "is not the name of a file next to it"),
        ({"a": "absent.safetensors"}, "absent.safetensors is missing"),
        (values["weight_map"] | {"surprise": "model-00001-of-00002.safetensors"}, "'surprise'"),
        ({"a": 3}, "has no weight_map"),
    ):
        index.write_text(json.dumps({"weight_map": where}))
        with pytest.raises(UserError, match=message):
            open_checkpoint(sharded)
    index.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        open_checkpoint(sharded)


def test_a_distributed_checkpoint_gets_the_command_that_makes_one_file_of_it(
    tmp_path: Path,
) -> None:
    for name in (".metadata", "__0_0.distcp"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=f"format_utils dcp_to_torch {tmp_path} FILE.pth and"):
        open_checkpoint(tmp_path)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory without any of model.safetensors.index"):
        open_checkpoint(tmp_path)


def test_an_activation_that_is_not_computed_here_is_refused(sharded: Path, tmp_path: Path) -> None:
    (sharded / "config.json").write_text(json.dumps({"hidden_act": "mish"}))
    with pytest.raises(UserError, match="hidden_act=mish, but such a backbone .* gelu"):
        convert([sharded], tmp_path / "model", settings=ONE_HEAD, show_progress=False)
    (sharded / "config.json").write_text(json.dumps({"hidden_act": "gelu_pytorch_tanh"}))
    made = convert([sharded], tmp_path / "model", settings=ONE_HEAD, show_progress=False)
    assert made.description.vision.activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("processor", "rule"),
    [
        ({"size": {"height": 224, "width": 224}, "resample": 3}, "squash"),
        ({"size": {"height": 224, "width": 224}, "resample": 2}, "squash_bilinear"),
        ({"size": {"shortest_edge": 256}, "resample": 3, "do_center_crop": True}, None),
    ],
)
def test_the_resize_rule_follows_the_image_processor(
    processor: dict, rule: str | None, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert described_beside(tmp_path / "model.safetensors", "backbone").get("rule") == rule


def test_a_config_next_to_an_official_file_is_ignored(tmp_path: Path) -> None:
    save_file(checkpoint("dinov2"), tmp_path / "dinov2.safetensors")
    for content in ('{"num_attention_heads": 2, "layer_norm_eps": 1e-12}', "[1, 2]", "{"):
        (tmp_path / "config.json").write_text(content)
        source = tmp_path / "dinov2.safetensors"
        vision = convert(
            [source], tmp_path / "model", settings=ONE_HEAD, overwrite=True, show_progress=False
        ).description.vision
        assert (vision.num_heads, vision.layer_norm_epsilon) == (1, 1e-6)


@pytest.mark.parametrize(
    "config",
    [
        {"rope_parameters": [1]},
        {"num_attention_heads": "many", "rope_theta": None, "hidden_act": 3},
        {"pretrained_cfg": {"mean": [None, 1, 2], "input_size": [3, "x", 2], "crop_pct": 0}},
    ],
)
def test_strange_values_in_a_config_are_passed_over(tmp_path: Path, config: dict) -> None:
    save_file(checkpoint("hf_dinov2"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert convert(
        [tmp_path],
        tmp_path.parent / f"{tmp_path.name}-model",
        settings=ONE_HEAD,
        show_progress=False,
    )


def test_signatures_of_addresses_are_not_kept(web: Any, tmp_path: Path) -> None:
    save_file(checkpoint("dinov2"), web.folder / "small.safetensors")
    source = f"{web.url('small.safetensors')}?Policy=a&Signature=secret"
    converted = convert([source], tmp_path / "model", settings=ONE_HEAD, show_progress=False)
    assert "secret" not in (tmp_path / "model" / "model.json").read_text()
    assert converted.matches[0].name == web.url("small.safetensors")


@pytest.mark.parametrize("address", ["https://[bad/x.pth", "https://a/x.pth#sha-256=12"])
def test_addresses_that_make_no_sense_are_refused(address: str) -> None:
    with pytest.raises(UserError, match=r"correct (it|or remove it)\."):
        fetch(address)


def test_a_timm_config_gives_the_preprocessing(tmp_path: Path) -> None:
    save_file(checkpoint("timm_dinov2"), tmp_path / "model.safetensors")
    cfg = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "input_size": [3, 518, 518]}
    config = {
        "architecture": "vit_small_patch14_dinov2",
        "pretrained_cfg": {**cfg, "crop_pct": 1.0},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    preprocessing = convert(
        [tmp_path], tmp_path / "model", settings=ONE_HEAD, show_progress=False
    ).description.preprocessing
    assert (preprocessing.mean, preprocessing.resize, preprocessing.crop) == (
        (0.5, 0.5, 0.5),
        518,
        518,
    )


@pytest.mark.parametrize(
    ("config", "heads"),
    [
        ({"num_attention_heads": 2}, 2),
        ({"model_type": "dinov2", "num_attention_heads": 2}, 2),
        ({"model_type": "dpt", "num_attention_heads": 12}, None),
        ({"num_attention_heads": 12, "backbone_config": {"num_attention_heads": 4}}, 4),
        ({"num_attention_heads": 12, "vision_config": {"num_attention_heads": 8}}, 8),
    ],
)
def test_a_backbone_inside_a_model_has_a_config_of_its_own(
    config: dict, heads: int | None, tmp_path: Path
) -> None:
    inside = {f"backbone.{name}": array for name, array in checkpoint("hf_dinov2").items()}
    save_file(inside, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    if heads is None:
        with pytest.raises(UserError, match="does not say how many attention heads"):
            convert([tmp_path], tmp_path / "model", show_progress=False)
        return
    vision = convert([tmp_path], tmp_path / "model", show_progress=False).description.vision
    assert vision.num_heads == heads


@pytest.mark.parametrize(
    ("architecture", "arguments", "heads"),
    [
        ("vit_huge_patch14_clip_224", None, 16),
        ("vit_giant_patch14_dinov2", None, 24),
        ("vit_giant_patch14_clip_224", None, 16),
        ("vit_huge_plus_patch16_dinov3", None, 20),
        ("vit_base_patch16_224", {"num_heads": 8}, 8),
        ("vit_base_patch16_224", {"embed_dim": 64}, None),
        ("a_model_of_mine", None, None),
    ],
)
def test_timm_says_the_heads_in_arguments_or_in_the_name(
    architecture: str, arguments: dict | None, heads: int | None, tmp_path: Path
) -> None:
    save_file(checkpoint("timm_dinov2"), tmp_path / "model.safetensors")
    config = {"architecture": architecture, "model_args": arguments, "pretrained_cfg": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert described_beside(tmp_path / "model.safetensors", "backbone").get("num_heads") == heads


def test_dinov2_with_registers_but_none_of_them_keeps_the_rule_for_positions(
    tmp_path: Path,
) -> None:
    save_file(checkpoint("hf_dinov2"), tmp_path / "model.safetensors")
    for kind, rule in (("dinov2", "bicubic"), ("dinov2_with_registers", "antialias")):
        config = {"model_type": kind, "num_attention_heads": 2, "hidden_act": "gelu_python"}
        (tmp_path / "config.json").write_text(json.dumps(config))
        converted = convert([tmp_path], tmp_path / kind, show_progress=False)
        assert converted.description.vision.position_interpolation == rule


def test_a_wrong_number_in_a_file_is_not_blamed_on_the_command(tmp_path: Path) -> None:
    save_file(checkpoint("hf_dinov2"), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 7}))
    with pytest.raises(
        UserError, match=r"num_heads=7 \(from the config file next to it\) does not"
    ):
        convert([tmp_path], tmp_path / "model", show_progress=False)


@pytest.mark.parametrize("name", ["model.SafeTensors", "weights", "backbone.pth"])
def test_the_format_is_known_by_the_content(name: str, tmp_path: Path, torch_files: Any) -> None:
    arrays = checkpoint("dinov2")
    save_file(arrays, tmp_path / name)
    assert open_checkpoint(tmp_path / name).arrays.keys() == arrays.keys()
    torch_file = torch_files.write(arrays, "torch.safetensors")
    assert open_checkpoint(torch_file).arrays.keys() == arrays.keys()


def test_shards_of_torch_files_are_read_as_one(tmp_path: Path, torch_files: Any) -> None:
    arrays = checkpoint("hf_dinov2")
    names = list(arrays)
    weight_map = {}
    for number, part in enumerate((names[:9], names[9:]), 1):
        shard = f"pytorch_model-0000{number}-of-00002.bin"
        torch_files.write({name: arrays[name] for name in part}, shard)
        weight_map |= dict.fromkeys(part, shard)
    index = torch_files.folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    opened = open_checkpoint(torch_files.folder)
    assert len(opened.files) == 2
    for name, array in arrays.items():
        np.testing.assert_array_equal(opened.arrays[name].read(), array)


def test_arrays_of_other_dtypes_matter_only_if_they_are_needed(tmp_path: Path) -> None:
    arrays = {f"backbone.{name}": array for name, array in checkpoint("dinov2").items()}
    other = {"decoder.table": np.arange(4, dtype=np.uint16)}
    save_file(arrays | other, tmp_path / "a.safetensors")
    convert([tmp_path / "a.safetensors"], tmp_path / "a", settings=ONE_HEAD, show_progress=False)
    wrong = {"backbone.norm.weight": np.ones(64, np.uint16)}
    save_file(arrays | wrong, tmp_path / "b.safetensors")
    message = "'norm.weight' holds uint16 numbers, expected floating point of 16 to 64 bits"
    with pytest.raises(UserError, match=message):
        convert([tmp_path / "b.safetensors"], tmp_path / "b", show_progress=False)
