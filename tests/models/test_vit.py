"""The backbone against the official code, at native, non-square and enlarged sizes."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dinotxt_jax as dt
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.models.vit import VisionTransformer, interpolate_positions
from weights_convert.architecture import parse_settings
from weights_convert.convert import convert

# Ten times the distance between float32 and float64 of the official model.
FEATURES = 5e-5
SIZES = ("98x98", "56x84", "126x126")


def channels_last(images: np.ndarray) -> np.ndarray:
    return np.moveaxis(images, 1, -1)


def check_backbone(model: Path, folder: Path, name: str) -> None:
    """Every output the reference file has, at every size."""
    backbone = dt.load_backbone(model)
    images = np.load(folder / "images.npz")
    expected = np.load(folder / f"{name}_out.npz")
    first_patch = 1 + backbone.config.num_registers
    for size in SIZES:
        x = channels_last(images[f"image_{size}"])
        out = backbone(x)
        found = {
            "x_norm_clstoken": out.class_token,
            "x_norm_regtokens": out.register_tokens,
            "x_norm_patchtokens": out.patch_tokens,
        }
        hidden = np.asarray(backbone.hidden_tokens(x))
        for layer in range(backbone.config.depth):
            found[f"inter{layer}_patch_nonorm"] = hidden[layer][:, first_patch:]
            found[f"inter{layer}_cls_nonorm"] = hidden[layer][:, 0]
        compared = [key for key in found if f"{size}/{key}" in expected]
        assert set(compared) >= {"x_norm_clstoken", "x_norm_patchtokens"}
        for key in compared:
            np.testing.assert_allclose(
                found[key],
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
    stored = jnp.asarray(tables["98x98"])
    for grid in ((4, 6), (9, 9)):
        expected = tables[f"{grid[0] * 14}x{grid[1] * 14}"]
        found = interpolate_positions(stored, grid, "offset")
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)


def test_the_two_interpolation_rules_differ() -> None:
    table = jnp.asarray(np.random.default_rng(0).normal(size=(50, 8)), "float32")
    offset, antialias = (interpolate_positions(table, (4, 6), r) for r in ("offset", "antialias"))
    assert np.abs(offset - antialias).max() > 0.05


def test_a_grid_of_the_stored_size_takes_the_table_as_it_is() -> None:
    table = jnp.arange(50.0 * 3).reshape(50, 3)
    for rule in ("offset", "antialias"):
        assert interpolate_positions(table, (7, 7), rule) is table


def test_registers_get_no_position(tiny_backbone: Path) -> None:
    from dinotxt_jax.models.directory import load_vision_transformer

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
    ],
)
def test_presets_have_the_released_number_of_parameters(preset: str, millions: float) -> None:
    """Counts of the released files (mask token included); ViT-Ti without its classifier."""
    config = PRESETS[preset]
    state = nnx.state(
        nnx.eval_shape(lambda: VisionTransformer(config, dtypes=DTypes(), rngs=nnx.Rngs(0)))
    )
    count = sum(np.prod(v.shape) for _, v in nnx.to_flat_state(state))
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
