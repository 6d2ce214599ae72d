"""Key tables: rows invert, no row hides another, and arrays identify each file's layout."""

import itertools
import time
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
from drawn import checkpoint

from dinotxt_jax.errors import UserError
from weights_convert.layouts import LAYOUTS
from weights_convert.layouts.dinov2 import DINOV2, DINOV2_REG
from weights_convert.layouts.rules import Rule
from weights_convert.layouts.timm_vit import TIMM_DINOV2, TIMM_VIT
from weights_convert.matching import recognise
from weights_convert.sources import Checkpoint

SIZES = dict(d=12, h=3, k=4, f=10, n=10, r=2, p=2, q=2, v=7, t=5, e=24, o=1, g=3, j=3, l=2)
DTYPES = [np.float32, np.float16, ml_dtypes.bfloat16]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_every_row_is_inverted_bit_by_bit(layout):
    # A row with a function is inverted up to rounding (`test_a_temperature_becomes_a_logit_scale`).
    rules = [rule for rule in layout.rules if not rule.function]
    for rule, dtype in itertools.product(rules, DTYPES):
        shape = rule.source_shape(SIZES)
        draw = np.random.default_rng(0)
        bits = [
            draw.integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8) * bool(name)
            for name in rule.sources
        ]
        sources = [np.asarray(source_bits.view(dtype)[..., 0]) for source_bits in bits]
        given = [array if name else None for array, name in zip(sources, rule.sources, strict=True)]
        ours = rule.to_ours(given, SIZES)
        numbers = range(len(rule.places))
        expected = [rule.shape(SIZES, number) for number in numbers]
        assert [array.shape for array in ours] == expected, rule.source
        for array, source_bits in zip(rule.to_source(ours, SIZES), bits, strict=True):
            back = np.ascontiguousarray(array).view(np.uint8)
            np.testing.assert_array_equal(
                back.reshape(source_bits.shape), source_bits, f"{rule.source} as {dtype}"
            )


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_no_two_rows_share_a_name_or_a_place(layout):
    names = [name for rule in layout.rules for name in rule.sources if name]
    assert len(set(names)) == len(names)
    # Features among which a file has one may be kept in the same place.
    exclusive = {name for choices in layout.alternatives for name in choices}
    for feature in exclusive or {""}:
        rules = [r for r in layout.rules if r.feature == feature or r.feature not in exclusive]
        places = [place for rule in rules for place in rule.places]
        assert len(set(places)) == len(places)
    for rule in layout.rules:
        for key in filter(None, rule.keys(3 if rule.stacked else None)):
            assert [other for other in layout.rules if other.match(key)] == [rule]


def test_a_temperature_becomes_a_logit_scale():
    (rule,) = (rule for rule in LAYOUTS["tips_text"].rules if rule.function)
    temperature = np.array(0.005, np.float32)
    (scale,) = rule.to_ours([temperature], SIZES)
    assert np.exp(scale) == pytest.approx(200, rel=1e-6)
    (back,) = rule.to_source([scale], SIZES)
    assert back == pytest.approx(temperature, rel=1e-7)


def test_query_key_value_and_heads_come_apart_in_this_order():
    rule = next(rule for rule in DINOV2.rules if rule.source.endswith("attn.qkv.weight"))
    source = np.arange(36 * 12).reshape(36, 12)
    (ours,) = rule.to_ours([source], SIZES)
    assert ours[5, 1, 2, 3] == source[1 * 12 + 2 * 4 + 3, 5]


def test_the_gate_is_the_first_half_of_packed_swiglu():
    rule = next(rule for rule in DINOV2.rules if rule.source.endswith("mlp.w12.weight"))
    source = np.arange(20 * 12).reshape(20, 12)
    gate, up = rule.to_ours([source], SIZES)
    assert [place.split("/")[-2] for place in rule.places] == ["gate", "up"]
    np.testing.assert_array_equal(gate, source[:10].T)
    np.testing.assert_array_equal(up, source[10:].T)


def test_layer_numbers_are_plain_decimals():
    rule = Rule("blocks.{layer}.w", "backbone/blocks/w", "d -> d")
    assert rule.match("blocks.12.w")
    for key in ("blocks.012.w", "blocks.-1.w", "blocks.123456.w", "blocks.1xw", "blocks.1.w.x"):
        assert not rule.match(key)


class Described(NamedTuple):
    """An array without elements."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        raise AssertionError("recognising a layout must not read arrays")


def described(arrays, prefix=""):
    """Returns a file with these arrays, whose elements must not be read."""
    descriptions = {
        prefix + name: Described(array.shape, array.dtype) for name, array in arrays.items()
    }
    return Checkpoint("some.pth", (Path("no folder/some.pth"),), descriptions)


def test_layouts_are_recognised_by_their_arrays():
    arrays = checkpoint("dinov2")
    assert recognise(described(arrays)).layout is DINOV2
    arrays.pop("mask_token")
    assert recognise(described(arrays)).layout is TIMM_DINOV2
    plain = {name: array for name, array in arrays.items() if ".ls" not in name}
    assert recognise(described(plain)).layout is TIMM_VIT
    assert recognise(described(checkpoint("dinov2_reg"))).layout is DINOV2_REG


@pytest.mark.parametrize("swiglu", [False, True])
def test_a_complete_file_has_no_problems(swiglu):
    match = recognise(
        described(checkpoint("dinov2_reg", without=["mlp"] if swiglu else [], depth=3))
    )
    assert match.problems == ""
    assert match.depths == {"backbone": 3}
    assert match.sizes["backbone"] == dict(d=64, f=32, n=10, p=2, q=2, r=2)


def test_missing_unexpected_and_misshaped_arrays_are_listed_together():
    arrays = checkpoint("dinov2_reg")
    del arrays["blocks.0.norm1.weight"], arrays["cls_token"]
    arrays["blocks.1.norm1.weight"] = np.zeros(65, np.float32)
    arrays["blocks.0.attn.proj.weight"] = np.zeros((64,), np.float32)
    arrays["norm.bias"] = np.zeros(64, np.int64)
    arrays["patch_embed.proj.weight"] = np.zeros((64, 4, 2, 2), np.float32)
    arrays["surprise"] = np.zeros(1, np.float32)
    problems = recognise(described(arrays)).problems
    for part in (
        "some.pth (official DINOv2 backbone with registers)",
        "missing (2): 'cls_token', 'blocks.0.norm1.weight'",
        "unexpected (1): 'surprise'",
        "mis-shaped (4)",
        "'blocks.1.norm1.weight' has [65], expected [64]",
        "'blocks.0.attn.proj.weight' has [64], expected [64, 64]",
        "'patch_embed.proj.weight' has [64, 4, 2, 2], expected [64, 3, 2, 2]",
        "'norm.bias' holds int64 numbers, expected floating point",
    ):
        assert part in problems


def test_a_missing_feature_array_is_missed_once_another_layer_has_it():
    arrays = checkpoint("dinov2_reg")
    del arrays["blocks.1.attn.qkv.bias"]
    assert "missing (1): 'blocks.1.attn.qkv.bias'" in recognise(described(arrays)).problems


def test_an_absurd_layer_number_is_one_unexpected_array():
    arrays = checkpoint("dinov2_reg")
    arrays["blocks.9999.norm1.bias"] = arrays["norm.bias"]
    problems = recognise(described(arrays)).problems
    assert problems.endswith("): unexpected (1): 'blocks.9999.norm1.bias'")


def test_a_missing_half_of_the_blocks_does_not_make_a_long_message():
    arrays = checkpoint("dinov2_reg")
    arrays[f"blocks.{len(arrays) - 1}.norm1.bias"] = arrays["norm.bias"]
    problems = recognise(described(arrays)).problems
    assert " and " in problems
    assert len(problems) < 4000


@pytest.mark.parametrize(
    "prefix", ["module.", "backbone.", "teacher.backbone.", "model.teacher.backbone.", "a.b.c.d."]
)
def test_wrapped_weights_are_found_behind_any_prefix(prefix):
    match = recognise(described(checkpoint("dinov2_reg"), prefix))
    assert (match.prefix, match.problems, match.layout) == (prefix, "", DINOV2_REG)


def test_arrays_next_to_the_weights_are_skipped_and_named():
    arrays = {f"backbone.{name}": array for name, array in checkpoint("dinov2_reg").items()}
    arrays["dino_head.last_layer.weight"] = np.zeros((3, 3), np.float32)
    match = recognise(described(arrays, "teacher."))
    assert match.problems == ""
    assert match.ignored == {"teacher.dino_head.last_layer.weight": "outside 'teacher.backbone.'"}


def test_the_teacher_is_taken_where_there_is_a_student_too():
    arrays = checkpoint("dinov2_reg")
    both = {
        f"{who}.{name}": array for who in ("student", "teacher") for name, array in arrays.items()
    }
    assert recognise(described(both)).prefix == "teacher."
    assert recognise(described(both), prefix="student.").prefix == "student."
    several = {f"{who}.{name}": array for who in ("one", "two") for name, array in arrays.items()}
    with pytest.raises(
        UserError, match=r"holds 2 models.*'one.', 'two.'; choose one with --prefix"
    ):
        recognise(described(several))


def test_the_teacher_comes_before_an_average_of_it():
    arrays = checkpoint("dinov2_reg")
    both = {
        f"{who}.{n}": a
        for who in ("model_ema", "teacher", "gram_teacher")
        for n, a in arrays.items()
    }
    assert recognise(described(both)).prefix == "teacher."


def test_many_prefixes_take_no_time():
    arrays = {f"p{i}.norm.weight": np.zeros(4, np.float32) for i in range(3000)}
    start = time.perf_counter()
    with pytest.raises(UserError, match="no known layout"):
        recognise(described(arrays))
    assert time.perf_counter() - start < 20


def test_equal_small_parts_of_another_network_are_no_models_to_choose_from():
    arrays = {f"stage{i}.norm.{name}": np.zeros(4) for i in range(4) for name in ("weight", "bias")}
    with pytest.raises(UserError, match="no known layout"):
        recognise(described(arrays))


def test_a_stray_array_does_not_make_a_whole_dinotxt():
    arrays = checkpoint("dinotxt_v3") | {
        "visual_model.backbone.norm.bias": np.zeros(64, np.float32)
    }
    match = recognise(described(arrays))
    assert (match.layout.name, match.problems) == ("dinotxt_v3", "")
    assert list(match.ignored) == ["visual_model.backbone.norm.bias"]


def test_empty_arrays_are_no_registers():
    arrays = checkpoint("hf_dinov3") | {
        "embeddings.register_tokens": np.zeros((1, 0, 64), np.float32)
    }
    match = recognise(described(arrays))
    assert match.problems == ""
    assert "r" not in match.sizes["backbone"]


def test_names_are_freed_of_wrappers_and_chunks():
    arrays = {
        name.replace("blocks.", "blocks.0.").replace("attn.", "_fsdp_wrapped_module.attn."): array
        for name, array in checkpoint("dinov2_reg").items()
    }
    assert recognise(described(arrays)).problems == ""
    doubled = checkpoint("dinov2_reg")
    doubled["_orig_mod.norm.bias"] = doubled["norm.bias"]
    with pytest.raises(UserError, match=r"two arrays 'norm.bias'"):
        recognise(described(doubled))


def test_a_layout_can_be_forced():
    match = recognise(described(checkpoint("dinov2_reg")), layout="timm_dinov2")
    assert "unexpected (2): 'mask_token', 'register_tokens'" in match.problems
    with pytest.raises(UserError, match="--layout=dinov5 is not known; known are: dinov2, "):
        recognise(described(checkpoint("dinov2_reg")), layout="dinov5")


def test_an_unknown_file_is_refused_with_its_contents():
    arrays = {f"encoder.{i}.weight": np.zeros(3, np.float32) for i in range(9)}
    with pytest.raises(UserError, match=r"no known layout.*'encoder.0.weight'.*DINOv2"):
        recognise(described(arrays))
    with pytest.raises(UserError, match="no known layout"):
        recognise(described({}))
