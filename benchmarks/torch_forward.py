"""Times a backbone's forward pass against the same model in PyTorch, and compares outputs.

    pip install -e '.[verify]'
    python benchmarks/torch_forward.py [--model=small|base|large] [--batch=8]

DINOv2 with registers from transformers gets random weights, which `weights_convert` converts. Both
models encode the same images in float32 on the CPU, with `--threads` threads each. They alternate,
so that load on the machine affects both; the minimum times are compared.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from machine import device

if TYPE_CHECKING:
    import torch

SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def with_threads(count: int) -> None:
    """Restricts this process to `count` cores; must run before either library is imported."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    os.environ |= {"OMP_NUM_THREADS": str(count), "JAX_PLATFORMS": "cpu"}


def backbone(size: str, image_size: int) -> tuple[torch.nn.Module, Any]:
    """Creates transformers' DINOv2 with registers and random weights, and its config."""
    import transformers

    width, depth, heads = SIZES[size]
    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=14,
        layerscale_value=0.1,
    )
    return transformers.Dinov2WithRegistersModel(config).eval(), config


def in_turns(first: Callable[[], object], second: Callable[[], object], repeats: int) -> np.ndarray:
    """Times two functions alternately after a warm-up; returns seconds [2 repeats]."""
    times = np.empty((2, repeats + 1))
    for repeat in range(repeats + 1):
        for index, function in enumerate((first, second)):
            start = time.perf_counter()
            function()
            times[index, repeat] = time.perf_counter() - start
    return times[:, 1:]


def main() -> None:
    """Prints the output difference, both times and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="small", choices=SIZES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    with_threads(options.threads)

    import jax
    import torch

    import dinotxt_jax as dt
    from weights_convert.convert import convert

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    theirs, config = backbone(options.model, options.size)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        convert([Path(folder) / "model.safetensors"], Path(folder) / "model", show_progress=False)
        ours = dt.load_backbone(Path(folder) / "model")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(options.batch, options.size, options.size, 3)).astype(np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
    placed = jax.device_put(images)

    def forward() -> np.ndarray:
        return np.asarray(ours(placed).patch_tokens)

    def torch_forward() -> np.ndarray:
        with torch.inference_mode():
            return theirs(pixels).last_hidden_state.numpy()

    difference = np.abs(forward() - torch_forward()[:, 1 + config.num_register_tokens :]).max()
    our_times, their_times = in_turns(forward, torch_forward, options.repeats)
    print(f"{device()}, torch {torch.__version__}, {options.threads} threads")
    attention = config._attn_implementation
    print(f"ViT-{options.model}/14 with registers ({attention} in PyTorch)")
    print(f"{options.batch} images of {options.size} px, float32")
    print(f"largest difference of a patch token: {difference:.1e}")
    print("| | least, ms | median, ms |\n|---|---|---|")
    for name, times in (("dinotxt_jax", our_times), ("PyTorch", their_times)):
        print(f"| {name} | {1e3 * times.min():.0f} | {1e3 * np.median(times):.0f} |")
    print(f"dinotxt_jax / PyTorch: {our_times.min() / their_times.min():.2f} of the time")


if __name__ == "__main__":
    main()
