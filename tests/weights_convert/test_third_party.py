"""Conversions against outputs from transformers and timm (benchmarks/third_party.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import THIRD_PARTY, checkpoint, images
from safetensors.numpy import save_file
from tolerances import FEATURES

import dinotxt_jax as dt
from weights_convert.architecture import Settings
from weights_convert.convert import convert

GOLDENS = Path(__file__).parents[1] / "goldens" / "third_party" / "tokens.npz"


@pytest.mark.parametrize("name", THIRD_PARTY)
def test_tokens_equal_those_of_the_library(name: str, tmp_path: Path) -> None:
    layout, arguments = THIRD_PARTY[name]
    save_file(checkpoint(layout, **arguments), tmp_path / "model.safetensors")
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
