"""The backbone against the official code, at native, non-square and enlarged sizes."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tolerances import FEATURES, assert_same

import dinotxt_jax as dt
from dinotxt_jax.errors import UserError
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.models.positions import POSITION_INTERPOLATIONS, interpolate_positions
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.models.vit import VisionTransformer
from weights_convert.convert import convert
from weights_convert.settings import parse_settings

SIZES = ("98x98", "56x84", "126x126")


def channels_last(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, 1, -1)


def check_backbone(model: Path, folder: Path, name: str) -> None:
    """Checks every output in the reference file, at every size."""
    backbone = dt.load_backbone(model)
    images = np.load(folder / "images.npz")
    expected = np.load(folder / f"{name}_out.npz")
    for size in SIZES:
        x = channels_last(images[f"image_{size}"])
        out = backbone(x)
        actual = {
            "x_norm_clstoken": out.class_token,
            "x_norm_regtokens": out.register_tokens,
            "x_norm_patchtokens": out.patch_tokens,
        }
        for normalize, suffix in ((True, ""), (False, "_nonorm")):
            layers = backbone.intermediate_layers(x, backbone.config.depth, normalize=normalize)
            for number, layer in enumerate(layers):
                actual[f"inter{number}_patch{suffix}"] = layer.patch_tokens
                actual[f"inter{number}_cls{suffix}"] = layer.class_token
        compared = [key for key in actual if f"{size}/{key}" in expected]
        assert set(compared) >= {"x_norm_clstoken", "x_norm_patchtokens"}
        for key in compared:
            np.testing.assert_allclose(
                actual[key],
                expected[f"{size}/{key}"],
                rtol=0,
                atol=FEATURES,
                err_msg=f"{size} {key}",
            )


def test_tokens_equal_the_official_code_at_every_size(tiny_backbone: Path, goldens: Path) -> None:
    check_backbone(tiny_backbone, goldens / "backbones", "dinov2_tiny_reg")


@pytest.mark.parametrize("name", ["dinov2_tiny", "dinov2_tiny_reg"])
def test_every_layer_equals_the_official_code(
    name: str, shared_goldens: Path, tmp_path: Path
) -> None:
    folder = shared_goldens / "backbones"
    heads = parse_settings(["num_heads=4"])
    convert([folder / f"{name}.pth"], tmp_path / "model", settings=heads, show_progress=False)
    check_backbone(tmp_path / "model", folder, name)


def test_positions_are_interpolated_with_the_offset_of_models_without_registers(
    goldens: Path,
) -> None:
    tables = np.load(goldens / "backbones" / "positions_offset.npz")
    stored = jnp.asarray(tables["98x98"])[1:]
    for grid in ((4, 6), (9, 9)):
        expected = tables[f"{grid[0] * 14}x{grid[1] * 14}"][1:]
        actual = interpolate_positions(stored, grid, "offset")
        assert_same(actual, expected)


def test_the_interpolation_rules_differ() -> None:
    table = jnp.asarray(np.random.default_rng(0).normal(size=(49, 8)), "float32")
    resized = [interpolate_positions(table, (4, 6), rule) for rule in POSITION_INTERPOLATIONS]
    for one, other in itertools.combinations(resized, 2):
        assert np.abs(one - other).max() > 0.005


def test_a_grid_of_the_stored_size_takes_the_table_as_it_is() -> None:
    table = jnp.arange(49.0 * 3).reshape(49, 3)
    for rule in POSITION_INTERPOLATIONS:
        assert interpolate_positions(table, (7, 7), rule) is table


def test_registers_get_no_position(tiny_backbone: Path) -> None:
    from dinotxt_jax.inference.loading import load_vision_transformer

    module, _ = load_vision_transformer(tiny_backbone, DTypes())
    embedded = module.embed(jnp.zeros((1, 98, 98, 3)))
    np.testing.assert_array_equal(embedded[0, 1:5], module.register_tokens[...])


def test_images_that_do_not_consist_of_patches_are_refused(tiny_backbone: Path) -> None:
    with pytest.raises(ValueError, match="100x98 pixels does not consist of 14x14 patches"):
        dt.load_backbone(tiny_backbone)(np.zeros((1, 100, 98, 3), np.float32))


@pytest.mark.parametrize(
    ("preset", "millions"),
    [
        ("dinov2_vits14", 22.06),
        ("dinov2_vitb14_reg", 86.58),
        ("dinov2_vitl14_reg", 304.37),
        ("dinov2_vitg14", 1136.48),
        ("vit_tiny_patch16_224", 5.52),
        ("dinov3_vits16", 21.597),
        ("dinov3_vits16plus", 28.693),
        ("dinov3_vitb16", 85.660),
        ("dinov3_vitl16", 303.129),
        ("dinov3_vith16plus", 840.593),
        ("dinov3_vit7b16", 6716.035),
    ],
)
def test_presets_have_the_released_number_of_parameters(preset: str, millions: float) -> None:
    """DINOv2: as in the released files, mask token included; ViT-Ti without the classifier; DINOv3:
    as counted by transformers, which has no masks, periods or the masked third of a bias.
    """
    config = PRESETS[preset]
    state = nnx.state(VisionTransformer(config, dtypes=DTypes()))
    count = sum(math.prod(v.shape) for _, v in nnx.to_flat_state(state))
    if config.positions == "rope":
        masked = config.depth * config.dim * (3 + 1) * config.qkv_bias_mask
        unused = 2 * config.dim * config.local_class_norm
        count -= masked + unused + config.dim // config.num_heads // 4
    assert count / 1e6 == pytest.approx(millions, abs=0.006)


def test_unknown_blocks_are_refused(tiny_backbone: Path) -> None:
    backbone = dt.load_backbone(tiny_backbone)
    images = np.zeros((1, 28, 28, 3), np.float32)
    for layers in (0, 4, (3,), (-4,), (1, -2), ()):
        with pytest.raises(UserError, match="does not name blocks of this backbone, which has 3"):
            backbone.intermediate_layers(images, layers)


def test_intermediate_layers_come_in_the_requested_order_and_as_a_grid(tiny_backbone: Path) -> None:
    backbone = dt.load_backbone(tiny_backbone)
    images = np.random.default_rng(0).normal(size=(2, 28, 42, 3)).astype(np.float32)
    last, first = backbone.intermediate_layers(images, (-1, 0), as_grid=True)
    assert last.patch_tokens.shape == first.patch_tokens.shape == (2, 2, 3, 64)
    out = backbone(images)
    assert_same(last.patch_tokens.reshape(2, 6, 64), out.patch_tokens)
    assert_same(last.register_tokens, out.register_tokens)
    assert np.abs(first.class_token - out.class_token).max() > 0.1
