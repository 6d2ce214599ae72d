"""Compares CLIP with open_clip on the same machine: predicted labels, time and memory.

    pip install -e '.[verify]' open_clip_torch
    python benchmarks/clip_towers.py --images=FOLDER [--model=ViT-B-32] [--count=1000]

open_clip's model gets random weights, which `weights_convert` converts. Both models classify the
same prepared images among the 1000 ImageNet names with a single template. Then both encode the same
batch alternately in float32 on the CPU, with `--threads` threads each. Memory is the peak of a new
process that loads the model and encodes a batch.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from machine import device
from torch_forward import in_turns, with_threads

TEMPLATE = "a photo of a {}."


def save_reference(name: str, folder: Path) -> None:
    """Writes open_clip's model with random weights, and its config."""
    import open_clip
    import torch

    torch.manual_seed(0)
    model = open_clip.create_model(name)
    with torch.no_grad():
        # Use the released models' scale: the initial scale gives nearly equal logits.
        model.logit_scale.fill_(np.log(100.0))
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": open_clip.get_model_config(name)}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def peak_megabytes(code: str, arguments: list[str]) -> int:
    """Runs code in a new process; returns the peak memory in MiB."""
    # VmHWM, because ru_maxrss includes the memory of the process that forked.
    program = f"{code}\nprint(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1]) // 1024


OURS = """
import sys, numpy, dinotxt_jax
model = dinotxt_jax.load(sys.argv[1])
for _ in range(3):
    numpy.asarray(model.encode_image(numpy.zeros((int(sys.argv[3]), 224, 224, 3), 'float32')))
"""
THEIRS = """
import sys, torch, open_clip
model = open_clip.create_model(sys.argv[2]).eval()
with torch.inference_mode():
    for _ in range(3):
        model.encode_image(torch.zeros(int(sys.argv[3]), 3, 224, 224))
"""


def main() -> None:
    """Prints the number of equal labels, and both models' times and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    with_threads(options.threads)

    import open_clip
    import torch

    import dinotxt_jax as dt
    from dinotxt_jax.data.texts import read_list
    from dinotxt_jax.data.transforms import normalize
    from weights_convert.convert import convert

    torch.set_num_threads(options.threads)
    files = sorted(file for file in options.images.iterdir() if file.is_file())[: options.count]
    names = read_list("imagenet1k", "names")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_reference(options.model, folder)
        convert([folder / "open_clip_pytorch_model.bin"], folder / "model", show_progress=False)
        ours = dt.load(folder / "model")
        theirs = open_clip.create_model(options.model).eval()
        theirs.load_state_dict(torch.load(folder / "open_clip_pytorch_model.bin"))
        arguments = [str(folder / "model"), options.model, str(options.batch)]
        peaks = [peak_megabytes(code, arguments) for code in (OURS, THEIRS)]
    prompts = open_clip.get_tokenizer(options.model)([TEMPLATE.format(n) for n in names])
    our_texts = np.concatenate(
        [
            np.asarray(ours.encode_text(rows.numpy().astype(np.int32), normalize=True))
            for rows in prompts.split(100)
        ]
    )
    with torch.inference_mode():
        their_texts = torch.cat([theirs.encode_text(r, normalize=True) for r in prompts.split(100)])
    equal, largest = 0, 0.0
    pixels = ours.description.preprocessing
    for start in range(0, len(files), options.batch):
        views = np.stack([ours.prepared(file) for file in files[start : start + options.batch]])
        images = normalize(views, pixels.mean, pixels.std)
        moved = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1)))
        with torch.inference_mode():
            expected = theirs.encode_image(moved, normalize=True)
        actual = np.asarray(ours.encode_image(images, normalize=True))
        largest = max(largest, float(np.abs(actual - expected.numpy()).max()))
        labels = (expected @ their_texts.T).argmax(1).numpy()
        equal += int(((actual @ our_texts.T).argmax(1) == labels).sum())
    batch = np.resize(images, (options.batch, *images.shape[1:]))
    tensor = torch.from_numpy(np.ascontiguousarray(np.moveaxis(batch, -1, 1)))

    def forward() -> np.ndarray:
        return np.asarray(ours.encode_image(batch))

    def torch_forward() -> np.ndarray:
        with torch.inference_mode():
            return theirs.encode_image(tensor).numpy()

    our_times, their_times = in_turns(forward, torch_forward, options.repeats)
    print(f"{device()}, torch {torch.__version__}, open_clip {open_clip.__version__}")
    print(f"{options.model}, {options.threads} threads, {options.batch} images of 224 px, float32")
    print(f"equal zero-shot labels: {equal} of {len(files)}; largest difference {largest:.1e}")
    print("| | least, ms | median, ms | peak memory, MiB |\n|---|---|---|---|")
    for library, times, peak in (
        ("dinotxt_jax", our_times, peaks[0]),
        ("open_clip", their_times, peaks[1]),
    ):
        row = f"{1e3 * times.min():.0f} | {1e3 * np.median(times):.0f} | {peak}"
        print(f"| {library} | {row} |")
    print(f"dinotxt_jax / open_clip: {our_times.min() / their_times.min():.2f} of the time")


if __name__ == "__main__":
    main()
