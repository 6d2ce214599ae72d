"""The conversion and the command line, from a file to a model directory or one sentence."""

import dataclasses
import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from drawn import checkpoint
from safetensors.numpy import save_file
from stored import stored_tree

from dinotxt_jax.config.architecture import TextConfig, VisionConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.models import presets
from dinotxt_jax.storage.model_directory import fingerprint, read_description
from weights_convert import convert as convert_module
from weights_convert.__main__ import main
from weights_convert.architecture import check_heads, infer
from weights_convert.convert import convert, round_to
from weights_convert.matching import recognise
from weights_convert.settings import Settings, parse_settings
from weights_convert.sources import open_checkpoint
from weights_convert.tokenizer_files import find_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "backbones"


def dinov2(**changes) -> dict[str, np.ndarray]:
    """Returns a DINOv2 with registers."""
    return checkpoint("dinov2_reg", **changes)


ONE_HEAD = Settings(num_heads=1)


def small_head(**changes) -> dict[str, np.ndarray]:
    return checkpoint("dinotxt_v2_head", **changes)


def small_text(**changes) -> dict[str, np.ndarray]:
    return checkpoint("dinotxt_v2_text", **changes)


def test_a_backbone_becomes_a_model_directory(torch_files, tmp_path, capsys):
    arrays = dinov2()
    source = torch_files.write(arrays)
    output = tmp_path / "new" / "model"
    assert main([str(source), f"--output={output}", "--set", "num_heads=4"]) == 0
    assert "official DINOv2 backbone with registers, 36 arrays" in capsys.readouterr().out

    description = read_description(output)
    assert description.vision == VisionConfig(
        patch_size=2,
        dim=64,
        depth=2,
        num_heads=4,
        mlp_hidden_dim=32,
        num_registers=2,
        position_grid=3,
    )
    assert description.head is None
    assert description.sources[0].file == source.name
    assert description.sources[0].sha256 == hashlib.sha256(source.read_bytes()).hexdigest()

    backbone = stored_tree(output)["backbone"]
    assert description.fingerprint == fingerprint(backbone)
    np.testing.assert_array_equal(backbone["mask_token"], arrays["mask_token"][0])
    np.testing.assert_array_equal(
        backbone["patch_embed"]["kernel"], arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    )
    for layer in range(2):
        qkv = np.asarray(backbone["blocks"]["attention"]["qkv"]["kernel"])[layer]
        np.testing.assert_array_equal(
            qkv.reshape(64, 192).T, arrays[f"blocks.{layer}.attn.qkv.weight"]
        )


def test_the_three_files_of_a_dinotxt_become_one_model(torch_files, tmp_path):
    sources = [
        torch_files.write(small_text(), "text_encoder.pth"),
        torch_files.write(dinov2(), "backbone.pth"),
        torch_files.write(small_head(), "vision_head.pth"),
    ]
    settings = Settings(num_heads=4, text_num_heads=2)
    converted = convert(sources, tmp_path / "model", settings=settings, show_progress=False)
    description = read_description(tmp_path / "model")
    assert description == converted.description
    config = description.dinotxt
    assert (config.vision.num_heads, config.head.num_heads, config.text.num_heads) == (4, 4, 2)
    assert (config.head.num_blocks, config.head.mlp_hidden_dim) == (2, 40)
    assert (config.text.vocabulary_size, config.text.context_length) == (50, 6)
    assert config.text.embed_dim == 128
    parts = stored_tree(tmp_path / "model")
    assert set(parts) == {"backbone", "head", "text", "logit_scale"}
    np.testing.assert_array_equal(parts["logit_scale"], np.float32(np.log(1 / 0.07)))


def test_a_timm_classifier_is_left_out_and_said_so(tmp_path, capsys):
    arrays = {name: array for name, array in checkpoint("dinov2").items() if ".ls" not in name}
    del arrays["mask_token"]
    half = {name: array.astype(np.float16) for name, array in arrays.items()}
    half |= {"head.weight": np.zeros((5, 64), np.float16), "head.bias": np.zeros(5, np.float16)}
    save_file(half, tmp_path / "vit.safetensors")
    options = ["--set", "num_heads=1", "std=1,1,1", "crop=32", "rule=squash_bilinear"]
    assert main([f"{tmp_path}/vit.safetensors", f"--output={tmp_path}/model", *options]) == 0
    assert "left out (2): 'head.bias', 'head.weight': the classifier" in capsys.readouterr().out
    description = read_description(tmp_path / "model")
    assert not description.vision.layer_scale
    assert description.vision.position_interpolation == "antialias"
    assert description.preprocessing.mean == (0.5, 0.5, 0.5)
    assert description.preprocessing.std == (1, 1, 1)
    assert (description.preprocessing.resize, description.preprocessing.crop) == (248, 32)
    assert description.preprocessing.rule == "squash_bilinear"
    assert main(["--describe", f"{tmp_path}/model"]) == 0
    assert (
        "std (1.0, 1.0, 1.0), squash_bilinear to 32 x 32 (antialiased)" in capsys.readouterr().out
    )
    token = stored_tree(tmp_path / "model")["backbone"]["class_token"]
    np.testing.assert_array_equal(token, half["cls_token"][0, 0].astype(np.float32))


def test_arrays_of_zeros_are_there(torch_files, tmp_path):
    arrays = dinov2()
    zeros = ("mask_token", "register_tokens", "blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias")
    arrays |= {name: np.zeros_like(arrays[name]) for name in zeros}
    convert([torch_files.write(arrays)], tmp_path / "model", settings=ONE_HEAD, show_progress=False)
    backbone = stored_tree(tmp_path / "model")["backbone"]
    np.testing.assert_array_equal(backbone["register_tokens"], np.zeros((2, 64)))
    assert not np.any(backbone["blocks"]["attention"]["qkv"]["bias"])


def test_bfloat16_safetensors_are_read_exactly(tmp_path):
    arrays = {k: v.astype(ml_dtypes.bfloat16) for k, v in dinov2().items()}
    save_file(arrays, tmp_path / "b.safetensors")
    convert(
        [tmp_path / "b.safetensors"], tmp_path / "model", settings=ONE_HEAD, show_progress=False
    )
    token = stored_tree(tmp_path / "model")["backbone"]["class_token"]
    np.testing.assert_array_equal(token, arrays["cls_token"][0, 0].astype(np.float32))


def test_without_registers_positions_follow_the_offset_rule(torch_files, tmp_path):
    source = torch_files.write(checkpoint("dinov2"))
    vision = convert(
        [source], tmp_path / "model", settings=ONE_HEAD, show_progress=False
    ).description.vision
    assert (vision.position_interpolation, vision.num_registers, vision.num_heads) == (
        "offset",
        0,
        1,
    )


def test_packed_swiglu_is_recognised(torch_files, tmp_path):
    arrays = dinov2(without=["mlp"])
    convert([torch_files.write(arrays)], tmp_path / "model", settings=ONE_HEAD, show_progress=False)
    vision = read_description(tmp_path / "model").vision
    assert (vision.mlp, vision.mlp_hidden_dim) == ("swiglu", 32)
    mlp = stored_tree(tmp_path / "model")["backbone"]["blocks"]["mlp"]
    packed = arrays["blocks.1.mlp.w12.weight"]
    np.testing.assert_array_equal(mlp["gate"]["kernel"][1], packed[:32].T)
    np.testing.assert_array_equal(mlp["up"]["kernel"][1], packed[32:].T)


def test_bfloat16_is_stored_rounded_to_nearest_even(torch_files, tmp_path):
    arrays = dinov2()
    convert(
        [torch_files.write(arrays)],
        tmp_path / "model",
        dtype="bfloat16",
        settings=ONE_HEAD,
        show_progress=False,
    )
    token = np.asarray(stored_tree(tmp_path / "model")["backbone"]["class_token"])
    assert token.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(token, arrays["cls_token"][0, 0].astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_go_to_the_even_neighbour(dtype):
    # Between 1 and 2 bfloat16 has steps of 2^-7.
    step = 2.0**-7
    values = np.array([1 + step / 2, 1 + 3 * step / 2, -1 - step / 2, np.inf, 0.0], dtype)
    rounded = round_to(values, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    np.testing.assert_array_equal(rounded, [1, 1 + 2 * step, -1, np.inf, 0])


def test_float64_is_rounded_only_once():
    # Through float32 the small addend would be lost, and the tie would round down to 1.
    above_tie = np.array([1 + 2.0**-8 + 2.0**-40, -1 - 2.0**-8 - 2.0**-40, 1 + 2.0**-8 - 2.0**-40])
    rounded = round_to(above_tie, np.dtype(ml_dtypes.bfloat16)).astype(np.float64)
    np.testing.assert_array_equal(rounded, [1 + 2.0**-7, -1 - 2.0**-7, 1])


def test_a_known_architecture_is_named_and_checked(torch_files, tmp_path, monkeypatch):
    source = torch_files.write(dinov2())
    vision = convert(
        [source], tmp_path / "a", settings=ONE_HEAD, show_progress=False
    ).description.vision
    monkeypatch.setitem(presets.PRESETS, "small", vision)
    description = convert(
        [source], tmp_path / "b", settings=ONE_HEAD, show_progress=False
    ).description
    checked = convert(
        [source], tmp_path / "c", preset="small", settings=ONE_HEAD, show_progress=False
    ).description
    assert description.preset == checked.preset == "small"
    with pytest.raises(UserError, match=r"not a dinov2_vits14: .*dim is 64 instead of 384"):
        convert(
            [source], tmp_path / "d", preset="dinov2_vits14", settings=ONE_HEAD, show_progress=False
        )


def test_the_golden_backbone_converts(tmp_path):
    source = GOLDENS / "dinov2_tiny_reg.pth"
    if not source.exists():
        pytest.skip(f"{source} is not there")
    convert([source], tmp_path / "model", settings=Settings(num_heads=4), show_progress=False)
    vision = read_description(tmp_path / "model").vision
    assert (vision.patch_size, vision.dim, vision.depth, vision.position_grid) == (14, 64, 3, 7)
    assert (vision.num_registers, vision.position_interpolation) == (4, "antialias")


def _fails(arguments: list[str], folder: Path, capsys, code: int = 2) -> str:
    """Runs a command that must fail and leave the folder unchanged; returns the error sentence."""
    before = sorted(folder.rglob("*"))
    assert main([str(argument) for argument in arguments]) == code
    assert sorted(folder.rglob("*")) == before
    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert last.endswith(".")
    return last


def test_every_misfit_of_every_source_is_in_one_sentence(torch_files, tmp_path, capsys):
    backbone, head, text = dinov2(), small_head(), small_text()
    del backbone["norm.weight"]
    head["linear_projection.weight"] = np.zeros((3, 3), np.float32)
    text["backbone.ln_final.bias"] = np.zeros(3, np.float32)
    sources = [
        torch_files.write(backbone, "b.pth"),
        torch_files.write(head, "h.pth"),
        torch_files.write(text, "t.pth"),
    ]
    message = _fails([*sources, f"--output={tmp_path}/deep/model"], tmp_path, capsys)
    assert "b.pth (official DINOv2 backbone with registers): missing (1): 'norm.weight'" in message
    assert "unexpected (1): 'linear_projection.weight'" in message
    assert "'backbone.ln_final.bias' has [3], expected [64]" in message


def test_nan_and_infinity_are_reported_by_name(torch_files, tmp_path, capsys):
    arrays = dinov2()
    arrays["norm.bias"][3] = np.nan
    arrays["blocks.1.mlp.fc1.weight"][0, 0] = -np.inf
    source = torch_files.write(arrays)
    options = ["--set", "num_heads=1"]
    message = _fails([source, f"--output={tmp_path}/model", *options], tmp_path, capsys)
    assert "'norm.bias'" in message
    assert "'blocks.1.mlp.fc1.weight'" in message


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--set", "num_heads=3"], "num_heads=3 (from --set) does not divide the width 64"),
        (["--set", "num_heads=0"], "positive whole number"),
        (["--set", "num_heads"], "positive whole number"),
        (["--set", "heads=3"], "KEY of num_heads"),
        (["--set", "mean=0.5"], "three numbers"),
        (["--set", "std=1,0,1"], "above zero"),
        (["--preset=dinov2_vitx14"], "known are: dinov2_vits14"),
        (["--preset=dinov2_vits14"], "depth is 2 instead of 12"),
    ],
)
def test_wrong_options_end_with_one_sentence(torch_files, tmp_path, capsys, options, named):
    source = torch_files.write(dinov2())
    assert named in _fails([source, f"--output={tmp_path}/model", *options], tmp_path, capsys)


def test_an_unknown_model_asks_for_the_heads(torch_files, tmp_path, capsys):
    source = torch_files.write(dinov2())
    message = _fails([source, f"--output={tmp_path}/model"], tmp_path, capsys)
    assert "does not say how many attention heads it has" in message
    assert "--set num_heads=NUMBER" in message


def test_an_unknown_text_transformer_asks_for_its_heads(torch_files, tmp_path, capsys):
    sources = [torch_files.write(small_text(), "text.pth"), torch_files.write(dinov2(), "b.pth")]
    sources.append(torch_files.write(small_head(), "head.pth"))
    message = _fails(
        [*sources, f"--output={tmp_path}/model", "--set", "num_heads=4"], tmp_path, capsys
    )
    assert "does not say how many attention heads it has" in message
    assert "--set text_num_heads=NUMBER" in message


def test_the_heads_of_the_released_text_transformer_are_known(torch_files):
    files = [torch_files.write(small_text(), "text.pth"), torch_files.write(dinov2(), "b.pth")]
    files.append(torch_files.write(small_head(), "head.pth"))
    matches = [recognise(open_checkpoint(file)) for file in files]
    unknown = infer(matches, Settings(num_heads=4, text_num_heads=2))
    settings = Settings(num_heads=4)
    check_heads(matches, settings, dataclasses.replace(unknown, text=TextConfig()))
    with pytest.raises(UserError, match="text_num_heads=NUMBER"):
        check_heads(matches, settings, unknown)


def test_a_number_of_heads_that_is_known_is_not_reported_as_a_guess(torch_files, tmp_path, capsys):
    source = torch_files.write(dinov2(d=128, h=2, k=64))
    assert main([str(source), f"--output={tmp_path}/model", "--set", "num_heads=2"]) == 0
    assert "width 128, 2 blocks, 2 heads, 2 registers" in capsys.readouterr().out


def test_a_width_that_is_no_multiple_of_64_asks_for_the_heads(torch_files, tmp_path, capsys):
    source = torch_files.write(dinov2(d=48, k=12))
    message = _fails([source, f"--output={tmp_path}/model"], tmp_path, capsys)
    assert "width 48" in message
    assert "--set num_heads=NUMBER" in message
    assert main([str(source), f"--output={tmp_path}/model", "--set", "num_heads=3"]) == 0


def test_positions_that_are_not_square_are_refused(torch_files, tmp_path, capsys):
    source = torch_files.write(dinov2() | {"pos_embed": np.zeros((1, 12, 64), np.float32)})
    message = _fails([source, f"--output={tmp_path}/model"], tmp_path, capsys)
    assert "12 positions" in message


def test_sources_that_are_no_model_together_are_refused(torch_files, tmp_path, capsys):
    backbone = torch_files.write(dinov2(), "b.pth")
    head = torch_files.write(small_head(), "h.pth")
    text = torch_files.write(small_text(), "t.pth")
    wide = torch_files.write(small_text(e=96), "wide.pth")
    other = torch_files.write(small_head(d=128, k=32), "other.pth")
    output = f"--output={tmp_path}/model"
    assert "no text" in _fails([backbone, head, output], tmp_path, capsys)
    assert "no backbone" in _fails([text, head, output], tmp_path, capsys)
    assert "both hold a backbone" in _fails([backbone, backbone, output], tmp_path, capsys)
    assert "96 dimensions" in _fails([backbone, head, wide, output], tmp_path, capsys)
    assert "width 128" in _fails([backbone, other, text, output], tmp_path, capsys)


def test_sources_that_cannot_be_read_are_named(torch_files, tmp_path, capsys):
    output = f"--output={tmp_path}/model"
    assert "does not exist" in _fails([tmp_path / "no.pth", output], tmp_path, capsys)
    assert "is a directory" in _fails([tmp_path, output], tmp_path, capsys)
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    assert "safetensors" in _fails([tmp_path / "bad.safetensors", output], tmp_path, capsys)
    hostile = torch_files.write_raw(b"\x80\x02cos\nsystem\nX\x01\x00\x00\x00a\x85R.")
    assert "'os.system'" in _fails([hostile, output], tmp_path, capsys)


def test_an_existing_output_is_kept_without_overwrite(torch_files, tmp_path, capsys):
    source = torch_files.write(dinov2())
    model = tmp_path / "model"
    model.mkdir()
    assert main([str(source), f"--output={model}", "--set", "num_heads=1"]) == 0
    capsys.readouterr()
    assert "add --overwrite" in _fails([source, f"--output={model}"], tmp_path, capsys)
    again = ["--overwrite", "--dtype=bfloat16", "--set", "num_heads=1"]
    assert main([str(source), f"--output={model}", *again]) == 0
    assert np.asarray(stored_tree(model)["backbone"]["class_token"]).dtype == ml_dtypes.bfloat16
    capsys.readouterr()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    message = _fails([source, f"--output={tmp_path}/photos", "--overwrite"], tmp_path, capsys)
    assert "is not a model directory" in message


def test_sources_are_not_deleted_with_the_directory_they_lie_in(torch_files, tmp_path, capsys):
    model = tmp_path / "model"
    source = str(torch_files.write(dinov2()))
    assert main([source, f"--output={model}", "--set", "num_heads=1"]) == 0
    capsys.readouterr()
    inside = torch_files.write(dinov2()).rename(model / "weights.pth")
    message = _fails([inside, f"--output={model}", "--overwrite"], tmp_path, capsys)
    assert "which would be replaced" in message


def test_a_failing_disk_is_one_sentence(torch_files, tmp_path, capsys, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(convert_module, "write_description", full)
    source = torch_files.write(dinov2())
    options = ["--set", "num_heads=1"]
    message = _fails([source, f"--output={tmp_path}/model", *options], tmp_path, capsys, code=74)
    assert "No space left on device; free space there" in message


def test_the_released_vocabulary_means_the_clip_tokenizer():
    spec = {"kind": "clip", "context_length": 77, "vocabulary_size": 49_408}
    assert find_tokenizer((), TextConfig()).spec == spec
    assert find_tokenizer((), TextConfig(vocabulary_size=100)).spec is None
    assert find_tokenizer((), None).spec is None


def test_settings_are_read_and_the_last_one_counts():
    assert parse_settings(["num_heads=3", "num_heads=6", "mean=0.1,0.2,0.3"]) == Settings(
        num_heads=6, mean=(0.1, 0.2, 0.3)
    )


def test_a_resize_rule_is_one_of_the_known_ones():
    settings = parse_settings(["rule=naflex", "max_patches=144"])
    assert (settings.rule, settings.max_patches) == ("naflex", 144)
    with pytest.raises(
        UserError, match="--set rule takes one of center_crop, squash, .* 'stretch'"
    ):
        parse_settings(["rule=stretch"])


def test_help_shows_examples(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "python -m weights_convert dinov2_vitl14_reg4_pretrain.pth --output=" in text


def test_a_model_description_is_plain_json(torch_files, tmp_path):
    source = torch_files.write(dinov2())
    convert([source], tmp_path / "model", settings=ONE_HEAD, show_progress=False)
    values = json.loads((tmp_path / "model" / "model.json").read_text())
    assert values["vision"]["dim"] == 64
