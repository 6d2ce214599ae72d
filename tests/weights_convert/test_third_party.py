"""Conversions against outputs from transformers and timm (benchmarks/third_party.py)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from drawn import THIRD_PARTY, checkpoint, images
from safetensors.numpy import save_file
from tolerances import FEATURES

import dinotxt_jax as dt
from dinotxt_jax.errors import UserError
from weights_convert.convert import convert
from weights_convert.settings import Settings

GOLDENS = Path(__file__).parents[1] / "goldens" / "third_party" / "tokens.npz"


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_tokens_equal_those_of_the_library(name: str, tmp_path: Path) -> None:
    layout, arguments = THIRD_PARTY[name]
    save_file(checkpoint(layout, **arguments), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(arguments.get("switches", {})))
    converted = convert(
        [tmp_path], tmp_path / "model", settings=Settings(num_heads=4), show_progress=False
    )
    assert converted.matches[0].layout.name == layout
    backbone = dt.load_backbone(tmp_path / "model")
    expected = np.load(GOLDENS)
    for size, pixels in images(backbone.config.patch_size).items():
        out = backbone(pixels)
        actual = np.concatenate(
            [out.class_token[:, None], out.register_tokens, out.patch_tokens], axis=1
        )
        np.testing.assert_allclose(
            actual, expected[f"{name}/{size}"], rtol=0, atol=FEATURES, err_msg=size
        )


@pytest.mark.parametrize(
    ("switches", "stated", "problem"),
    [
        ({"proj_bias": False}, {}, "missing .*layer.0.attention.o_proj.bias"),
        ({"query_bias": False}, {"query_bias": True}, "missing .*layer.0.attention.q_proj.bias"),
        ({}, {"key_bias": True}, "missing .*layer.0.attention.k_proj.bias"),
        ({"key_bias": True}, {"key_bias": False}, "unexpected .*layer.0.attention.k_proj.bias"),
        ({}, {"mlp_bias": False}, "unexpected .*layer.0.mlp.up_proj.bias"),
    ],
)
def test_only_the_config_can_say_that_a_bias_does_not_exist(
    switches: dict[str, bool], stated: dict[str, bool], problem: str, tmp_path: Path
) -> None:
    arrays = checkpoint("hf_dinov3", p=16, q=16, switches=switches)
    save_file(arrays, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(stated | {"num_attention_heads": 4}))
    with pytest.raises(UserError, match=problem):
        convert([tmp_path], tmp_path / "model", show_progress=False)
