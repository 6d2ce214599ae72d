"""Key tables: every row inverts, no row hides another, and files are recognised by their arrays."""

from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from dinotxt_jax.errors import UserError
from weights_convert.layouts import LAYOUTS
from weights_convert.layouts.dinov2 import DINOV2
from weights_convert.layouts.rules import Rule
from weights_convert.layouts.timm_vit import TIMM_VIT
from weights_convert.matching import recognise

SIZES = dict(d=12, h=3, k=4, f=10, n=10, r=2, p=2, q=2, v=7, t=5, e=24)
ROWS = [(layout, rule) for layout in LAYOUTS for rule in layout.rules]


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize(
    ("layout", "rule"), ROWS, ids=[f"{layout.name}-{rule.source}" for layout, rule in ROWS]
)
def test_every_row_is_inverted_bit_by_bit(layout, rule, dtype):
    shape = rule.source_shape(SIZES)
    bits = np.random.default_rng(0).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    source = bits.view(dtype)[..., 0]
    ours = rule.to_ours(source, SIZES)
    assert [array.shape for array in ours] == [rule.shape(SIZES)] * len(rule.places)
    back = np.ascontiguousarray(rule.to_source(ours, SIZES))
    np.testing.assert_array_equal(back.view(np.uint8).reshape(bits.shape), bits)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_no_two_rows_share_a_name_or_a_place(layout):
    names = [rule.source for rule in layout.rules]
    places = [place for rule in layout.rules for place in rule.places]
    assert len(set(names)) == len(names)
    assert len(set(places)) == len(places)
    for rule in layout.rules:
        key = rule.key(3 if rule.stacked else None)
        assert [other for other in layout.rules if other.match(key)] == [rule]


def test_query_key_value_and_heads_come_apart_in_this_order():
    rule = next(rule for rule in DINOV2.rules if rule.source.endswith("attn.qkv.weight"))
    source = np.arange(36 * 12).reshape(36, 12)
    (ours,) = rule.to_ours(source, SIZES)
    assert ours[5, 1, 2, 3] == source[1 * 12 + 2 * 4 + 3, 5]


def test_the_gate_is_the_first_half_of_packed_swiglu():
    rule = next(rule for rule in DINOV2.rules if rule.source.endswith("mlp.w12.weight"))
    source = np.arange(20 * 12).reshape(20, 12)
    gate, up = rule.to_ours(source, SIZES)
    assert [place.split("/")[-2] for place in rule.places] == ["gate", "up"]
    np.testing.assert_array_equal(gate, source[:10].T)
    np.testing.assert_array_equal(up, source[10:].T)


def test_layer_numbers_are_plain_decimals():
    rule = Rule("blocks.{layer}.w", "backbone/blocks/w", "d -> d")
    assert rule.match("blocks.12.w")
    for key in ("blocks.012.w", "blocks.-1.w", "blocks.123456.w", "blocks.1xw", "blocks.1.w.x"):
        assert not rule.match(key)


class Described(NamedTuple):
    """An array without its elements."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self) -> np.ndarray:
        raise AssertionError("recognising a layout must not read arrays")


def described(arrays):
    return {name: Described(array.shape, array.dtype) for name, array in arrays.items()}


def test_layouts_are_told_apart_by_layer_scale(dinov2_arrays):
    arrays = described(dinov2_arrays(registers=0))
    assert recognise(Path("x"), arrays).layout is DINOV2
    plain = {name: array for name, array in arrays.items() if ".ls" not in name}
    plain.pop("mask_token")
    assert recognise(Path("x"), plain).layout is TIMM_VIT


@pytest.mark.parametrize("swiglu", [False, True])
def test_a_complete_file_has_no_problems(dinov2_arrays, swiglu):
    match = recognise(Path("x"), described(dinov2_arrays(swiglu=swiglu, depth=3)))
    assert match.problems == ""
    assert match.depths == {"backbone": 3}
    assert match.sizes["backbone"] == dict(d=64, f=32, n=10, p=2, q=2, r=2)


def test_missing_unexpected_and_misshaped_arrays_are_listed_together(dinov2_arrays):
    arrays = dinov2_arrays()
    del arrays["blocks.0.norm1.weight"], arrays["cls_token"]
    arrays["blocks.1.norm1.weight"] = np.zeros(65, np.float32)
    arrays["blocks.0.attn.proj.weight"] = np.zeros((64,), np.float32)
    arrays["norm.bias"] = np.zeros(64, np.int64)
    arrays["patch_embed.proj.weight"] = np.zeros((64, 4, 2, 2), np.float32)
    arrays["surprise"] = np.zeros(1, np.float32)
    problems = recognise(Path("some.pth"), described(arrays)).problems
    for part in (
        "some.pth (official DINOv2 backbone)",
        "missing (2): 'cls_token', 'blocks.0.norm1.weight'",
        "unexpected (1): 'surprise'",
        "mis-shaped (4)",
        "'blocks.1.norm1.weight' has [65], expected [64]",
        "'blocks.0.attn.proj.weight' has [64], expected [64, 64]",
        "'patch_embed.proj.weight' has [64, 4, 2, 2], expected [64, 3, 2, 2]",
        "'norm.bias' holds int64 numbers, expected floating point",
    ):
        assert part in problems


def test_a_missing_feature_array_is_missed_once_another_layer_has_it(dinov2_arrays):
    arrays = dinov2_arrays()
    del arrays["blocks.1.attn.qkv.bias"]
    assert (
        "missing (1): 'blocks.1.attn.qkv.bias'" in recognise(Path("x"), described(arrays)).problems
    )


def test_an_absurd_layer_number_does_not_make_an_absurd_message(dinov2_arrays):
    arrays = described(dinov2_arrays())
    arrays["blocks.9999.norm1.bias"] = arrays["norm.bias"]
    problems = recognise(Path("x"), arrays).problems
    assert " and " in problems
    assert len(problems) < 4000


def test_an_unknown_file_is_refused_with_what_was_found(dinov2_arrays):
    arrays = {f"encoder.{name}": array for name, array in described(dinov2_arrays()).items()}
    with pytest.raises(UserError, match=r"no known layout.*'encoder.cls_token'.*DINOv2"):
        recognise(Path("x"), arrays)
    with pytest.raises(UserError, match="no known layout"):
        recognise(Path("x"), {})
