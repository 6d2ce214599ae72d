"""Measures the time and memory that conversions take at full size, with random weights.

    python benchmarks/conversion.py [--presets dinov2_vitl14 dinov2_vitg14] [--format pth] \
        [--dtype bfloat16] [--folder DIR]

Each step runs in a separate process. The peak is the resident memory that the kernel reports,
including mapped file pages, minus that of a bare Python interpreter. The ratio is peak divided by
checkpoint size; a tool that loads everything first needs at least 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dinotxt_jax.config.architecture import VisionConfig
from dinotxt_jax.models.presets import PRESETS
from weights_convert.layouts import LAYOUTS

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))

from torch_files import Tensor, TorchFiles  # noqa: E402


def shapes(preset: str) -> dict[str, tuple[int, ...]]:
    """Returns array names and shapes in the file released for an architecture."""
    vision: VisionConfig = PRESETS[preset]
    rope = vision.positions == "rope"
    layout = LAYOUTS["dinov3" if rope else "dinov2_reg" if vision.num_registers else "dinov2"]
    heads, width = vision.num_heads, vision.dim // vision.num_heads
    sizes = {"d": vision.dim, "f": vision.mlp_hidden_dim, "h": heads, "k": width, "o": width // 4}
    sizes |= {"p": vision.patch_size, "q": vision.patch_size, "r": vision.num_registers}
    sizes["n"] = 1 + vision.position_grid**2
    features = {"", vision.mlp}
    features |= {"qkv_bias"} if vision.qkv_bias else set()
    features |= {"bias_mask"} if vision.qkv_bias_mask else set()
    features |= {"local_class_norm"} if vision.local_class_norm else set()
    return {
        key: tuple(size or 0 for size in rule.source_shape(sizes))
        for rule in layout.rules
        if rule.feature in features
        for layer in (range(vision.depth) if rule.stacked else (None,))
        for key in rule.keys(layer)
    }


def random_arrays(array_shapes: dict[str, tuple[int, ...]]) -> Iterator[np.ndarray]:
    """Yields random arrays, to hold only a single array in memory."""
    rng = np.random.default_rng(0)
    for shape in array_shapes.values():
        yield rng.standard_normal(shape, np.float32) * np.float32(0.02)


def write_safetensors(path: Path, array_shapes: dict[str, tuple[int, ...]]) -> None:
    """Streams random arrays to a .safetensors file."""
    header: dict = {}
    end = 0
    for key, shape in array_shapes.items():
        start, end = end, end + 4 * int(np.prod(shape))
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in random_arrays(array_shapes):
            array.tofile(file)


def write_pth(path: Path, array_shapes: dict[str, tuple[int, ...]]) -> None:
    """Streams random arrays to a .pth file."""
    tensors = {}
    for number, (key, shape) in enumerate(array_shapes.items()):
        strides = [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
        count = int(np.prod(shape))
        tensors[key] = Tensor("FloatStorage", str(number), count, 0, shape, strides)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", TorchFiles(path.parent).state_dict(tensors))
        for number, array in enumerate(random_arrays(array_shapes)):
            with archive.open(f"archive/data/{number}", "w", force_zip64=True) as record:
                record.write(array.tobytes())


# A process inherits the parent's peak memory, so a small launcher starts the measured process.
_LAUNCHER = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(status, time.perf_counter() - start, usage.ru_maxrss * 1024 / 1e9)
"""


def measured(*command: str) -> tuple[float, float]:
    """Runs a command in this interpreter; returns (seconds, peak resident GB)."""
    launcher = [sys.executable, "-c", _LAUNCHER, sys.executable, *command]
    done = subprocess.run(launcher, cwd=ROOT, capture_output=True, text=True, check=True)
    status, seconds, peak = done.stdout.split()
    if status != "0":
        raise SystemExit(done.stderr[-2000:])
    return float(seconds), float(peak)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["dinov2_vitl14", "dinov2_vitg14"])
    parser.add_argument("--format", choices=("safetensors", "pth"), default="pth")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--folder", help="where to work (needs three times the checkpoint's size)")
    options = parser.parse_args()
    _, bare = measured("-c", "pass")
    _, imports = measured("-c", "import weights_convert.convert")
    print(f"interpreter {bare:.2f} GB, with imports {imports:.2f} GB, {options.format}\n")
    print("| architecture | step | checkpoint, GB | seconds | peak beyond bare, GB | ratio |")
    print("|---|---|---|---|---|---|")
    for preset in options.presets:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            source = Path(folder) / f"weights.{options.format}"
            array_shapes = shapes(preset)
            (write_pth if options.format == "pth" else write_safetensors)(source, array_shapes)
            size = source.stat().st_size / 1e9
            model, back = f"{folder}/model", f"{folder}/back.safetensors"
            convert = ("-m", "weights_convert", str(source), f"--output={model}")
            export = ("-m", "weights_convert", "--export", f"--model={model}", f"--output={back}")
            for step, command in (
                ("convert", (*convert, f"--dtype={options.dtype}")),
                ("export", export),
            ):
                seconds, peak = measured(*command)
                beyond = peak - bare
                print(
                    f"| {preset} | {step} | {size:.2f} | {seconds:.0f} | {beyond:.2f} | "
                    f"{beyond / size:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
