"""Prints the largest differences from the official PyTorch code, as a Markdown table.

    python benchmarks/exactness.py

Compares with the reference arrays in tests/goldens (float32 outputs from the official classes). The
last column is the difference between float32 and float64 in the official model.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path

import jax
import numpy as np
from machine import device

import dinotxt_jax as dt
from dinotxt_jax import sharding
from dinotxt_jax.config import (
    Config,
    HeadTrainingConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
    check,
)
from dinotxt_jax.inference.loading import load_dinotxt
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.storage.model_arrays import load_parts
from dinotxt_jax.storage.model_directory import Preprocessing, read_description
from dinotxt_jax.training.step import make_trainer
from weights_convert.convert import convert
from weights_convert.settings import parse_settings

GOLDENS = Path(__file__).parent.parent / "tests" / "goldens"


def row(quantity: str, difference: float, yardstick: str) -> None:
    print(f"| {quantity} | {difference:.1e} | {yardstick} |")


def backbone(model: Path) -> None:
    """Compares class, register and patch tokens at native, non-square and enlarged size."""
    network = dt.load_backbone(model)
    images = np.load(GOLDENS / "backbones/images.npz")
    expected = np.load(GOLDENS / "backbones/dinov2_tiny_reg_out.npz")
    names = ("x_norm_clstoken", "x_norm_regtokens", "x_norm_patchtokens")
    for size in ("98x98", "56x84", "126x126"):
        out = network(np.moveaxis(images[f"image_{size}"], 1, -1))
        worst = max(
            np.abs(output - expected[f"{size}/{name}"]).max()
            for name, output in zip(names, out, strict=True)
        )
        row(f"backbone tokens, {size}", worst, "4e-6")


def descriptors(model: Path) -> None:
    """Compares image descriptors and text features, raw and normalised."""
    network, _ = load_dinotxt(model, DTypes())
    golden = np.load(GOLDENS / "dinotxt_v2/out.npz")
    images = np.moveaxis(golden["image_98x98"], 1, -1)
    for normalize, suffix, yardstick in ((False, "", "4e-6"), (True, "_normalized", "3e-7")):
        image = np.abs(
            network.encode_image(images, normalize) - golden[f"98x98/encode_image{suffix}"]
        )
        text = np.abs(
            network.encode_text(golden["tokens"], normalize) - golden[f"text/encode_text{suffix}"]
        )
        kind = "normalised" if normalize else "raw"
        row(f"image descriptor, {kind}", image.max(), yardstick)
        row(f"text features, {kind}", text.max(), yardstick)


def twenty_steps(model: Path) -> None:
    """Compares 20 training steps with the official loop, from the same weights and batch."""
    config = Config(
        steps=20,
        batch_size=16,
        head=HeadTrainingConfig(drop_path=0.0, num_heads=4),
        text=TextTrainingConfig(width=64, depth=3, num_heads=4),
        precision=PrecisionConfig(compute="float32", frozen="float32"),
        optimizer=OptimizerConfig(warmup_steps=5),
    )
    check(config)
    as_they_are = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    description = dataclasses.replace(read_description(model), preprocessing=as_they_are)
    mesh = sharding.make_mesh()
    trainer = make_trainer(config, description, 133, mesh)
    parts = load_parts(model, trainer.abstract)
    golden = np.load(GOLDENS / "train/train.npz")
    images = np.moveaxis(golden["images"], 1, -1)
    losses = []
    with jax.set_mesh(mesh):
        tokens = jax.jit(lambda arrays, x: trainer.merge(arrays).backbone.tokens(x))(parts, images)
        state = trainer.create_state()
        state = state._replace(trainable={name: parts[name] for name in state.trainable})
        step = trainer.compiled_step()
        for _ in range(20):
            state, metrics = step(state, {}, {"tokens": golden["tokens"], "features": tokens})
            losses.append(float(metrics["loss"]))
    row("loss over 20 training steps", np.abs(losses - golden["loss"]).max(), "2e-6")


def main() -> None:
    """Prints the table."""
    print(f"{device()}, float32\n")
    print("| | largest difference | official float32 against float64 |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        files = ("vision_head.safetensors", "text_encoder.safetensors")
        sources = [GOLDENS / "backbones/dinov2_tiny_reg.pth"]
        sources += [GOLDENS / "dinotxt_v2" / file for file in files]
        settings = parse_settings(["num_heads=4", "text_num_heads=4"])
        convert(sources, model, settings=settings, show_progress=False)
        backbone(model)
        descriptors(model)
        twenty_steps(model)


if __name__ == "__main__":
    main()
