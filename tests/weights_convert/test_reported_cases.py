"""Checkpoints that were converted wrongly, against the outputs of the library that wrote them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import dinotxt_jax as dt
from weights_convert.convert import convert
from weights_convert.settings import parse_settings

CASES = ("hf_dpt_backbone", "timm_model_args_heads", "neg_view", "hf_reg_0_registers", "expanded")


@pytest.mark.parametrize("name", CASES)
def test_the_backbone_computes_the_outputs_of_its_library(name: str, tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "shared/cases/conversion" / name
    if not folder.is_dir():
        pytest.skip("the reported cases are not beside this checkout (../shared/cases)")
    file, *rest = json.loads((folder / "extra.json").read_text()) or [""]
    settings = parse_settings(rest[1::2])
    convert([folder / file], tmp_path / "model", settings=settings, show_progress=False)
    reference = np.load(folder / "ref.npz")
    out = dt.load_backbone(tmp_path / "model")(np.moveaxis(reference["x_4x5"], 1, -1))
    tokens = np.concatenate([out.class_token[:, None], out.register_tokens, out.patch_tokens], 1)
    assert np.abs(tokens - reference["y_4x5"]).max() < 1e-4
