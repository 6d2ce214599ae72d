"""Compares conversions with the real transformers and timm; can write their outputs for tests.

    pip install -e '.[verify]'
    python benchmarks/third_party.py [--write]

For each layout from these libraries, the library must load a small random checkpoint
(tests/helpers/drawn.py) without missing or unexpected names. The library's outputs, at the stored
size and at a non-square size, are compared with the converted model's outputs. `--write` stores the
library's outputs in tests/goldens/third_party, so that the tests need neither library.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

import dinotxt_jax as dt
from weights_convert.convert import convert
from weights_convert.export import export
from weights_convert.settings import Settings

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from drawn import ONLY_VALUE_BIAS, THIRD_PARTY, checkpoint, images  # noqa: E402

GOLDENS = ROOT / "tests" / "goldens" / "third_party"
DINOV2 = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}
DINOV2 |= {"image_size": 42}


def hf_dinov2(swiglu: bool = False, registers: bool = False) -> torch.nn.Module:
    """Creates Dinov2Model or Dinov2WithRegistersModel with the drawn checkpoints' MLP widths."""
    import transformers as t

    # ratio 4: 256 hidden; SwiGLU: 176, two thirds rounded up to a multiple of 8.
    options = {**DINOV2, "mlp_ratio": 4, "use_swiglu_ffn": swiglu}
    if registers:
        return t.Dinov2WithRegistersModel(
            t.Dinov2WithRegistersConfig(num_register_tokens=4, **options)
        )
    return t.Dinov2Model(t.Dinov2Config(**options))


def hf_dinov3(gated: bool, **biases: bool) -> torch.nn.Module:
    """Creates DINOv3ViTModel; `biases` overrides which projections have a bias."""
    import transformers as t

    options = {**DINOV2, "patch_size": 16, "image_size": 48}
    return t.DINOv3ViTModel(
        t.DINOv3ViTConfig(
            use_gated_mlp=gated,
            hidden_act="silu" if gated else "gelu",  # as in the released configurations
            intermediate_size=96,
            num_register_tokens=4,
            **options,
            **biases,
        )
    )


def timm_vit(name: str, **options: Any) -> torch.nn.Module:
    """Creates a small version of a timm model."""
    import timm

    shared = {"depth": 2, "embed_dim": 64, "num_heads": 4, "num_classes": 0}
    return timm.create_model(name, dynamic_img_size=True, **shared, **options)


def timm_dinov3(name: str) -> torch.nn.Module:
    """Creates a small version of a timm DINOv3 with 96 hidden units in the MLP."""
    return timm_vit(name, img_size=48, mlp_ratio=1.5)


MODELS: Mapping[str, Callable[[], torch.nn.Module]] = {
    "hf_dinov2": lambda: hf_dinov2(),
    "hf_dinov2 swiglu": lambda: hf_dinov2(swiglu=True),
    "hf_dinov2_reg": lambda: hf_dinov2(registers=True),
    "hf_dinov3": lambda: hf_dinov3(gated=False),
    "hf_dinov3_gated": lambda: hf_dinov3(gated=True),
    "hf_dinov3 key bias": lambda: hf_dinov3(gated=False, key_bias=True),
    "hf_dinov3 value bias": lambda: hf_dinov3(gated=False, **ONLY_VALUE_BIAS),
    "hf_dinov3_gated value bias": lambda: hf_dinov3(gated=True, **ONLY_VALUE_BIAS),
    "timm_vit": lambda: timm_vit("vit_tiny_patch16_224", img_size=48),
    "timm_dinov2": lambda: timm_vit("vit_small_patch14_dinov2", img_size=42),
    "timm_dinov2_reg": lambda: timm_vit("vit_small_patch14_reg4_dinov2", img_size=42),
    "timm_dinov2_swiglu": lambda: timm_vit("vit_giant_patch14_dinov2", img_size=42, mlp_ratio=2.5),
    "timm_dinov2_swiglu_reg": lambda: timm_vit(
        "vit_giant_patch14_reg4_dinov2", img_size=42, mlp_ratio=2.5
    ),
    "timm_dinov3": lambda: timm_dinov3("vit_small_patch16_dinov3"),
    "timm_dinov3 qkvb": lambda: timm_dinov3("vit_small_patch16_dinov3_qkvb"),
    "timm_dinov3_gated": lambda: timm_dinov3("vit_small_plus_patch16_dinov3_qkvb"),
}


def tokens(model: torch.nn.Module, pixels: np.ndarray) -> np.ndarray:
    """Returns all tokens after the final norm: class, registers, patches."""
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(pixels, -1, 1)))
    with torch.no_grad():
        if hasattr(model, "forward_features"):
            return model.forward_features(x).numpy()
        return model(pixel_values=x).last_hidden_state.numpy()


def save_and_load(name: str, arrays: dict[str, np.ndarray], folder: Path) -> torch.nn.Module:
    """Loads the arrays into the library's model; requires all names and shapes to match."""
    model = MODELS[name]().eval()
    if name.startswith("hf_"):
        model.config.save_pretrained(folder)
        save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
        loaded, info = type(model).from_pretrained(folder, output_loading_info=True)
        problems = {key: names for key, names in info.items() if names}
        assert not problems, problems
        return loaded.eval()
    save_file(arrays, folder / "model.safetensors")
    model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    return model


def exported_to_transformers() -> float:
    """Exports an official backbone to transformers; returns the largest output difference."""
    import transformers as t

    backbones = ROOT / "tests" / "goldens" / "backbones"
    expected = np.load(backbones / "dinov2_tiny_reg_out.npz")
    images = np.load(backbones / "images.npz")
    config = t.Dinov2WithRegistersConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_register_tokens=4,
        image_size=98,
        patch_size=14,
    )
    with tempfile.TemporaryDirectory() as folder:
        source, model = backbones / "dinov2_tiny_reg.pth", Path(folder) / "model"
        convert([source], model, settings=Settings(num_heads=4), show_progress=False)
        file = Path(folder) / "model.safetensors"
        export(model, file, layout="hf_dinov2_reg", show_progress=False)
        config.save_pretrained(folder)
        theirs = t.Dinov2WithRegistersModel.from_pretrained(folder).eval()
    worst = 0.0
    for size in ("98x98", "56x84", "126x126"):
        outputs = tokens(theirs, np.moveaxis(images[f"image_{size}"], 1, -1))
        official = expected[f"{size}/x_norm_patchtokens"]
        worst = np.maximum(worst, np.abs(outputs[:, 5:] - official).max())
    return float(worst)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="keep the outputs for the tests")
    options = parser.parse_args()
    import timm
    import transformers

    print(f"transformers {transformers.__version__}, timm {timm.__version__}, ", end="")
    print(f"torch {torch.__version__}, float32\n")
    print("| layout | largest difference of tokens |\n|---|---|")
    results: dict[str, np.ndarray] = {}
    for name in MODELS:
        layout, arguments = THIRD_PARTY[name]
        arrays = checkpoint(layout, **arguments)
        with tempfile.TemporaryDirectory() as folder:
            theirs = save_and_load(name, arrays, Path(folder))
            heads = Settings(num_heads=None if name.startswith("hf_") else 4)
            convert([Path(folder)], Path(folder) / "ours", settings=heads, show_progress=False)
            ours = dt.load_backbone(Path(folder) / "ours")
            worst = 0.0
            for size, pixels in images(ours.config.patch_size).items():
                expected = tokens(theirs, pixels)
                outputs = np.concatenate(
                    [out if out.ndim == 3 else out[:, None] for out in ours(pixels)], axis=1
                )
                worst = np.maximum(worst, np.abs(outputs - expected).max())
                results[f"{name}/{size}"] = expected
        print(f"| {name} | {worst:.1e} |", flush=True)
    print(f"| dinov2_reg, exported as hf_dinov2_reg | {exported_to_transformers():.1e} |")
    if options.write:
        GOLDENS.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(GOLDENS / "tokens.npz", **results)
        print(f"\nwritten to {GOLDENS}")


if __name__ == "__main__":
    main()
