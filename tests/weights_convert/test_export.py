"""Model directories converted back to released names: bit-exact, for every layout."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from drawn import checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from stored import stored_tree

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.model_directory import read_description
from weights_convert.convert import convert
from weights_convert.export import export
from weights_convert.layouts import LAYOUTS
from weights_convert.settings import Settings

HEADS = Settings(num_heads=4, text_num_heads=2)
BACKBONES = [name for name, layout in LAYOUTS.items() if layout.components == ("backbone",)]
WHOLE = [name for name, layout in LAYOUTS.items() if {"backbone", "text"} <= set(layout.components)]
PARTS = {
    "dinotxt_v2": ["dinov2_reg", "dinotxt_v2_head", "dinotxt_v2_text"],
    "dinotxt_v3": ["dinov3", "dinotxt_v3"],
}
DTYPES = ["float32", "float16", "bfloat16"]
# Without a class token or its position, positions are a square; headless text features are as wide
# as the class token, or as the projection.
_POOLED = {"n": 9, "e": 64}
FIT = {
    "timm_dinov2_reg": {"n": 9},
    "timm_dinov2_swiglu_reg": {"n": 9},
    "clip": {"e": 40},
    "clip_custom_text": {"e": 40},
    "hf_clip": {"e": 40},
    "open_clip_siglip": _POOLED,
    "hf_siglip": _POOLED,
    "hf_siglip2": _POOLED,
    "big_vision": _POOLED,
    "big_vision_scanned": _POOLED,
    "big_vision_naflex": _POOLED,
}


def drawn(layout: str, dtype: str = "float32", **changes) -> dict[str, np.ndarray]:
    arrays = checkpoint(layout, **(FIT.get(layout, {}) | changes))
    return {key: array.astype(dtype) for key, array in arrays.items()}


def converted(folder: Path, *files: dict[str, np.ndarray], **options) -> Path:
    """Returns the model directory converted from these files."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, arrays in enumerate(files):
        paths.append(folder / f"source{number}.safetensors")
        save_file(arrays, paths[-1])
    settings = dataclasses.replace(HEADS, **options.pop("settings", {}))
    convert(paths, folder / "model", settings=settings, show_progress=False, **options)
    return folder / "model"


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert sorted(actual) == sorted(expected)
    for key, array in expected.items():
        assert (actual[key].dtype, actual[key].shape) == (array.dtype, array.shape), key
        assert actual[key].tobytes() == array.tobytes(), key


@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        *zip([*BACKBONES, *WHOLE], itertools.cycle(DTYPES), strict=False),
        *((BACKBONES[0], dtype) for dtype in DTYPES[1:]),
    ],
)
def test_a_round_trip_returns_every_bit(layout: str, dtype: str, tmp_path: Path) -> None:
    arrays = drawn(layout, getattr(ml_dtypes, dtype, dtype))
    asked = {key: "gelu" for key in LAYOUTS[layout].asked}
    named = {"layout": layout} if LAYOUTS[layout].rivals else {}
    model = converted(tmp_path, arrays, settings=asked, **named)
    assert read_description(model).sources[0].layout == layout
    written = export(model, tmp_path / "back.safetensors", show_progress=False)
    assert [file.layout.name for file in written] == [layout]
    assert_same_bits(load_file(tmp_path / "back.safetensors"), arrays)


def test_a_key_bias_is_written_only_where_there_is_one(tmp_path: Path) -> None:
    arrays = drawn("hf_dinov3", switches={"key_bias": True})
    model = converted(tmp_path, arrays)
    (written,) = export(model, tmp_path / "back.safetensors", show_progress=False)
    assert_same_bits(load_file(tmp_path / "back.safetensors"), arrays)
    assert written.notes == ("config.json must say key_bias=true for this file",)
    for name in filter(lambda key: "k_proj.bias" in key, arrays):
        arrays[name][:] = 0
    model = converted(tmp_path / "zero", arrays)
    (written,) = export(model, tmp_path / "without.safetensors", show_progress=False)
    assert written.notes == ()
    assert not [name for name in load_file(tmp_path / "without.safetensors") if "k_proj.b" in name]


@pytest.mark.parametrize("family", PARTS)
def test_a_dinotxt_comes_back_as_the_files_of_its_release(family: str, tmp_path: Path) -> None:
    files = [drawn(layout) for layout in PARTS[family]]
    model = converted(tmp_path, *files)
    written = export(model, tmp_path / "back.safetensors", show_progress=False)
    assert [file.layout.name for file in written] == PARTS[family]
    for file, arrays in zip(written, files, strict=True):
        assert_same_bits(load_file(file.path), arrays)
    names = {"dinotxt_v2": ["backbone", "head", "text"], "dinotxt_v3": ["backbone", "head_text"]}
    assert [file.path.stem for file in written] == [f"back_{name}" for name in names[family]]


@pytest.mark.parametrize("family", PARTS)
def test_trained_parts_come_alone(family: str, tmp_path: Path) -> None:
    model = converted(tmp_path, *(drawn(layout) for layout in PARTS[family]))
    written = export(model, tmp_path / "t.safetensors", part="trained", show_progress=False)
    assert [file.layout.name for file in written] == PARTS[family][1:]


def test_a_whole_dinotxt_can_be_one_file_for_load_state_dict(tmp_path: Path) -> None:
    model = converted(tmp_path, *(drawn(layout) for layout in PARTS["dinotxt_v2"]))
    path = tmp_path / "whole.safetensors"
    export(model, path, layout="dinotxt_v2_whole", show_progress=False)
    arrays = load_file(path)
    assert arrays["logit_scale"].shape == (1,)
    prefixes = {".".join(key.split(".")[:2]) for key in arrays} - {"logit_scale"}
    assert prefixes == {
        f"{m}.{p}" for m in ("visual_model", "text_model") for p in ("backbone", "head")
    }
    again = converted(tmp_path / "again", arrays)
    assert read_description(again).fingerprint == read_description(model).fingerprint


def test_a_backbone_can_change_its_layout(tmp_path: Path) -> None:
    model = converted(tmp_path, drawn("dinov2_reg"))
    path = tmp_path / "hf.safetensors"
    export(model, path, layout="hf_dinov2_reg", show_progress=False)
    exported = load_file(path)
    assert sorted(exported) == sorted(drawn("hf_dinov2_reg"))
    np.testing.assert_array_equal(
        exported["encoder.layer.1.attention.attention.key.weight"],
        drawn("dinov2_reg")["blocks.1.attn.qkv.weight"][64:128],
    )


def test_mixed_dtypes_come_back_as_they_were(tmp_path: Path) -> None:
    arrays = drawn("dinov3")
    rounded = arrays["rope_embed.periods"].astype(ml_dtypes.bfloat16)
    arrays["rope_embed.periods"] = rounded
    model = converted(tmp_path, arrays)
    export(model, tmp_path / "back.safetensors", show_progress=False)
    assert_same_bits(load_file(tmp_path / "back.safetensors"), arrays)
    half = converted(tmp_path / "half", arrays, dtype="bfloat16")
    export(half, tmp_path / "half.safetensors", show_progress=False)
    exported = load_file(tmp_path / "half.safetensors")
    np.testing.assert_array_equal(exported["rope_embed.periods"], rounded)
    assert exported["norm.weight"].dtype == ml_dtypes.bfloat16


def test_a_dtype_can_be_chosen(tmp_path: Path) -> None:
    model = converted(tmp_path, drawn("dinov2"))
    export(model, tmp_path / "half.safetensors", dtype="float16", show_progress=False)
    exported = load_file(tmp_path / "half.safetensors")
    assert {array.dtype for array in exported.values()} == {np.dtype(np.float16)}


def test_arrays_without_a_name_in_a_layout_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    model = converted(tmp_path, drawn("dinov2_reg"))
    for layout, message in (
        ("dinov2", "no place for .1.: backbone/register_tokens"),
        ("dinov3", "not in the model .1.: backbone/rope_periods"),
        ("dinotxt_v2_head", "not in the model"),
        ("dinov9", "known are: dinov2,"),
    ):
        with pytest.raises(UserError, match=message):
            export(model, tmp_path / "x.safetensors", layout=layout, show_progress=False)
    with pytest.raises(UserError, match="a backbone without head and text"):
        export(model, tmp_path / "x.safetensors", part="trained", show_progress=False)
    with pytest.raises(UserError, match="ends in neither of .safetensors and .npz"):
        export(model, tmp_path / "x.pth", show_progress=False)
    (tmp_path / "x.safetensors").write_bytes(b"mine")
    with pytest.raises(UserError, match="exists already"):
        export(model, tmp_path / "x.safetensors", show_progress=False)
    assert (tmp_path / "x.safetensors").read_bytes() == b"mine"


def test_dinov3_goes_to_transformers_with_its_mask_applied(tmp_path: Path) -> None:
    arrays = drawn("dinov3", without=["local_class_norm"])
    model = converted(tmp_path, arrays)
    path = tmp_path / "hf.safetensors"
    (written,) = export(model, path, layout="hf_dinov3", show_progress=False)
    assert written.notes == ()
    exported = load_file(path)
    assert sorted(exported) == sorted(drawn("hf_dinov3"))
    np.testing.assert_array_equal(
        exported["layer.1.attention.v_proj.bias"], arrays["blocks.1.attn.qkv.bias"][128:]
    )


def test_rounded_periods_are_mentioned_where_they_will_be_computed(tmp_path: Path) -> None:
    arrays = drawn("dinov3", without=["local_class_norm"])
    rounded = arrays["rope_embed.periods"].astype(ml_dtypes.bfloat16)
    model = converted(tmp_path, arrays | {"rope_embed.periods": rounded})
    options = {"layout": "hf_dinov3", "show_progress": False}
    (written,) = export(model, tmp_path / "hf.safetensors", **options)
    assert written.notes == ("rope_periods will be computed without the rounding they have here",)
    other = converted(tmp_path / "b", arrays | {"rope_embed.periods": rounded * 2})
    with pytest.raises(UserError, match="no place for .1.: backbone/rope_periods"):
        export(other, tmp_path / "b.safetensors", **options)


def test_transformers_goes_to_the_official_names_with_a_mask(tmp_path: Path) -> None:
    model = converted(tmp_path, drawn("hf_dinov3"))
    export(model, tmp_path / "o.safetensors", layout="dinov3", show_progress=False)
    exported = load_file(tmp_path / "o.safetensors")
    assert sorted(exported) == sorted(drawn("dinov3", without=["local_class_norm"]))
    mask = exported["blocks.0.attn.qkv.bias_mask"].reshape(3, 64)
    np.testing.assert_array_equal(mask, np.array([[1.0], [0.0], [1.0]]) * np.ones(64))


def test_a_trained_logit_scale_is_in_the_metadata_of_split_files(tmp_path: Path) -> None:
    arrays = drawn("dinotxt_v2_whole")
    arrays["logit_scale"] = np.array([-0.37], np.float32)
    model = converted(tmp_path, arrays)
    written = export(model, tmp_path / "t.safetensors", part="trained", show_progress=False)
    assert [file.layout.name for file in written] == ["dinotxt_v2_head", "dinotxt_v2_text"]
    assert "the trained logit_scale, -0.370000, has no name" in written[0].notes[0]
    with safe_open(written[0].path, "np") as file:
        assert float(file.metadata()["logit_scale"]) == np.float32(-0.37)
    export(model, tmp_path / "b.safetensors", part="backbone", show_progress=False)
    sources = [tmp_path / "b.safetensors", *(str(file.path) for file in written)]
    convert(sources, tmp_path / "again", settings=HEADS, show_progress=False)
    assert stored_tree(tmp_path / "again")["logit_scale"] == np.float32(-0.37)


def test_a_part_and_a_layout_must_fit_each_other(tmp_path: Path) -> None:
    model = converted(tmp_path, drawn("dinotxt_v2_whole"))
    with pytest.raises(UserError, match="also hold the backbone; omit --part"):
        export(
            model,
            tmp_path / "t.safetensors",
            part="trained",
            layout="dinotxt_v2_whole",
            show_progress=False,
        )


def test_numbers_too_large_for_a_dtype_are_refused(tmp_path: Path) -> None:
    arrays = drawn("dinov2")
    arrays["norm.bias"][0] = 1e6
    model = converted(tmp_path, arrays)
    with pytest.raises(UserError, match="'norm.bias' holds numbers too large for float16"):
        export(model, tmp_path / "h.safetensors", dtype="float16", show_progress=False)
    assert not list(tmp_path.glob("*h.safetensors*"))


def test_key_biases_are_not_dropped_in_silence(tmp_path: Path) -> None:
    arrays = drawn("dinov3", without=["bias_mask", "local_class_norm"])
    model = converted(tmp_path, arrays)
    with pytest.raises(UserError, match="has no name for a part of 'backbone/blocks/attention/qkv"):
        export(model, tmp_path / "timm.safetensors", layout="timm_dinov3", show_progress=False)
    assert not list(tmp_path.glob("timm*"))
