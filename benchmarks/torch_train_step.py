"""Times a whole train step against the same step in PyTorch, and compares losses.

    pip install -e '.[verify]'
    python benchmarks/torch_train_step.py [--batch=32] [--steps=5]

The frozen ViT-S/14 with registers, the head and the text transformer (width 384, 6 blocks, 77
tokens) start with the same random weights in both frameworks, get the same images and captions, and
take the same number of steps with the recipe's AdamW, in float32 on `--threads` threads, without
drop path. The captions are as long as web captions (14 tokens on average); a third line packs them
into shared rows, like the shipped recipes. Steps alternate; the minimum times are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from machine import device
from torch_forward import SIZES, backbone, with_threads

VOCABULARY, CONTEXT, RATE = 49_408, 77, 1e-3
TEXT = {"width": 384, "depth": 6}


def drawn_batch(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws images uint8[b h w 3], captions int32[b l], and the caption lengths."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.normal(14, 4, size).round().astype(int), 5, 40)
    tokens = rng.integers(1, VOCABULARY - 1, (size, CONTEXT), dtype=np.int32)
    tokens[np.arange(CONTEXT) >= lengths[:, None]] = 0
    tokens[np.arange(size), lengths - 1] = VOCABULARY - 1
    return rng.integers(0, 256, (size, 224, 224, 3), dtype=np.uint8), tokens, lengths


class TorchRun:
    """Steps in PyTorch. `folder` receives the same three files as a release."""

    def __init__(self, folder: Path):
        import torch
        import torch_model
        from safetensors.torch import save_file

        torch.manual_seed(0)
        width, _, heads = SIZES["small"]
        hidden = -(-int(width * 8 / 3) // 64) * 64
        self.backbone, config = backbone("small", 224)
        head = torch_model.VisionHead(width, heads, hidden, config.num_register_tokens)
        text = torch_model.TextBackbone(VOCABULARY, CONTEXT, **TEXT, heads=TEXT["width"] // 64)
        encoder = torch_model.TextEncoder(text, TEXT["width"], 2 * width)
        self.model = torch_model.DinoTxt(head, encoder)
        self.backbone.save_pretrained(folder / "backbone")
        save_file(head.state_dict(), folder / "head.safetensors")
        save_file(encoder.state_dict(), folder / "text.safetensors")
        self.optimizer = torch_model.optimizer(self.model, RATE)
        self.mean, self.std = (
            255 * torch.tensor(v)[:, None, None]
            for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )

    def step(self, images: np.ndarray, tokens: np.ndarray) -> float:
        """Runs a step, and returns the loss before the update."""
        import torch

        with torch.no_grad():
            pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
            image_tokens = self.backbone((pixels - self.mean) / self.std).last_hidden_state
        loss = self.model(image_tokens, torch.from_numpy(tokens).long())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class JaxRun:
    """Steps with a `Trainer`, from a model directory with the same weights."""

    def __init__(self, directory: Path, batch: dict[str, np.ndarray]):
        import jax

        from dinotxt_jax import sharding
        from dinotxt_jax.config import (
            Config,
            HeadTrainingConfig,
            OptimizerConfig,
            PrecisionConfig,
            TextTrainingConfig,
            check,
        )
        from dinotxt_jax.storage.model_arrays import load_parts
        from dinotxt_jax.storage.model_directory import read_description
        from dinotxt_jax.training.step import make_trainer, trained_part

        config = Config(
            steps=1000,
            batch_size=len(batch["image"]),
            head=HeadTrainingConfig(drop_path=0.0),
            text=TextTrainingConfig(**TEXT, num_heads=TEXT["width"] // 64),
            optimizer=OptimizerConfig(learning_rate=RATE, warmup_steps=0),
            precision=PrecisionConfig(compute="float32", frozen="float32"),
        )
        check(config)
        description = read_description(directory)
        self.mesh = sharding.make_mesh()
        trainer = make_trainer(config, description, VOCABULARY, self.mesh)
        parts: dict[str, Any] = load_parts(directory, trainer.abstract)
        with jax.set_mesh(self.mesh):
            state = trainer.create_state()
            self.state = state._replace(trainable=trained_part(parts))
            self.frozen = {"backbone": parts["backbone"]}
            self.function = trainer.compiled_step()
            self.batch = sharding.global_batch(batch, self.mesh)

    def step(self) -> float:
        """Runs a step, and returns the loss before the update."""
        import jax

        with jax.set_mesh(self.mesh):
            self.state, metrics = self.function(self.state, self.frozen, self.batch)
            return float(metrics["loss"])


def timed(function: Any, *arguments: Any) -> tuple[float, float]:
    """Calls a function; returns the result and the seconds."""
    start = time.perf_counter()
    value = function(*arguments)
    return value, time.perf_counter() - start


def main() -> None:
    """Prints both losses, the times and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with_threads(options.threads)

    import torch

    from dinotxt_jax.data.packing import pack, stacked
    from weights_convert.convert import convert

    torch.set_num_threads(options.threads)
    images, tokens, lengths = drawn_batch(options.batch)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = TorchRun(folder)
        sources = [folder / "backbone", folder / "head.safetensors", folder / "text.safetensors"]
        convert(sources, folder / "model", show_progress=False)
        whole = JaxRun(folder / "model", {"image": images, "tokens": tokens})
        rows = pack(tokens, lengths)
        packed = stacked([rows], len(rows.tokens))._asdict()
        shared = JaxRun(folder / "model", {"image": images, **packed})
    names = ("PyTorch", "dinotxt_jax, rows of 77 tokens", "dinotxt_jax, packed")
    results = np.array(
        [
            [timed(theirs.step, images, tokens), timed(whole.step), timed(shared.step)]
            for _ in range(options.steps + 1)
        ]
    )
    losses, seconds = results[..., 0], results[1:, :, 1].min(0)
    print(f"{device()}, torch {torch.__version__}, {options.threads} threads, float32")
    print(f"batch {options.batch}; {len(rows.tokens)} packed rows for {len(tokens)} captions")
    print("| step | first loss | last loss | least, s | of PyTorch |\n|---|---|---|---|---|")
    for which, name in enumerate(names):
        first, last = losses[[0, -1], which]
        ratio = seconds[which] / seconds[0]
        print(f"| {name} | {first:.6f} | {last:.6f} | {seconds[which]:.2f} | {ratio:.2f} |")
    print(f"largest difference of a loss: {np.abs(losses[:, 1:] - losses[:, :1]).max():.1e}")


if __name__ == "__main__":
    main()
