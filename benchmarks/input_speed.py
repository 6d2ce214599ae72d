"""Measures input pipeline speed in images per second, against a PyTorch DataLoader and tf.data.

    python benchmarks/input_speed.py --photos=FOLDER [--torch_python=PYTHON] [--tf_python=PYTHON]

Resizes `--count` photos to a short side of `--side` pixels, saves them as JPEG files, and reads
these files in three ways, which alternate for `--rounds` rounds on the same `--cpus` CPUs:

- dinotxt_jax with `--config.data.decoder` fast and exact, threads and worker processes;
- a PyTorch DataLoader with worker processes and PIL transforms, as in torchvision;
- tf.data with the fused `decode_and_crop_jpeg` and an antialiased resize.

All pipelines draw crops like torchvision's RandomResizedCrop, flip half of the images, and make
uint8 batches. Images per second are measured by wall time, and also by CPU time (CPUs divided by
CPU time per image, over the process and its workers), which other work on the machine distorts
less. PyTorch and TensorFlow may be installed in separate environments.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parent.parent
SIZE, BATCH, SCALE, RATIO, FLIP = 224, 250, (0.08, 1.0), (3 / 4, 4 / 3), 0.5
WARM_UP = 4  # unmeasured batches, while workers start and files are read into the page cache


def copy_photos(source: Path, target: Path, count: int, side: int, progressive: bool) -> None:
    """Resizes photos to this short side and writes them as JPEG files with quality 90."""
    from PIL import Image

    files = sorted(file for file in source.iterdir() if file.suffix.lower() in (".jpg", ".jpeg"))
    for file in files[:count]:
        with Image.open(file) as image:
            scale = side / min(image.size)
            size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
            photo = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        photo.save(target / file.name, quality=90, progressive=progressive)


def ours(files: Sequence[Path], decoder: str, threads: int, workers: int) -> Iterator[Any]:
    """Returns batches from dinotxt_jax."""
    sys.path.insert(0, str(ROOT))
    import numpy as np

    from dinotxt_jax.config import DataConfig
    from dinotxt_jax.data.parallelism import training_threads
    from dinotxt_jax.data.pipeline import ImageTextExample, make_training_iterator

    config = DataConfig(
        image_size=SIZE, crop_scale=SCALE, crop_ratio=RATIO, decoder=decoder, threads=threads
    )
    source = PhotoFiles(files)
    make_example = ImageTextExample(source, config, NoTokens(np.zeros(1, np.int32)))
    return make_training_iterator(
        source,
        make_example,
        batch_size=BATCH,
        seed=0,
        threads=training_threads(config),
        workers=workers,
    )


class PhotoFiles:
    """An example source that reads the photos."""

    def __init__(self, files: Sequence[Path]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        from dinotxt_jax.data.examples import Example

        return Example(self._files[index].read_bytes(), ("",), self._files[index].name)


class NoTokens:
    """A tokenizer that does no work, since the other pipelines do not tokenize."""

    def __init__(self, tokens: Any):
        self._tokens = tokens

    def __call__(self, text: str) -> Any:
        return self._tokens


def torch_loader(files: Sequence[Path], workers: int) -> Iterator[Any]:
    """Returns batches from a DataLoader."""
    import torch

    class Order(torch.utils.data.Sampler):
        def __iter__(self) -> Iterator[int]:
            while True:
                yield from torch.randperm(len(files)).tolist()

    return iter(
        torch.utils.data.DataLoader(
            TorchPhotos(files), batch_size=BATCH, sampler=Order(), num_workers=workers
        )
    )


class TorchPhotos:
    """A map-style data set that decodes, crops and resizes like torchvision on PIL images."""

    def __init__(self, files: Sequence[Path]):
        self._files = [str(file) for file in files]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Any:
        import numpy as np
        import torch
        from PIL import Image

        with open(self._files[index], "rb") as file:
            image = Image.open(file).convert("RGB")
        left, top, w, h = torch_crop(*image.size)
        image = image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.BICUBIC)
        if torch.rand(1) < FLIP:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return torch.from_numpy(np.array(image))


def torch_crop(width: int, height: int) -> tuple[int, int, int, int]:
    """Draws a crop like torchvision's `RandomResizedCrop.get_params`."""
    import torch

    log_ratio = torch.log(torch.tensor(RATIO))
    for _ in range(10):
        area = width * height * torch.empty(1).uniform_(*SCALE).item()
        aspect = torch.exp(torch.empty(1).uniform_(log_ratio[0], log_ratio[1])).item()
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,)).item()
            left = torch.randint(0, width - w + 1, (1,)).item()
            return left, top, w, h
    side = min(width, height)
    return (width - side) // 2, (height - side) // 2, side, side


def tf_data(files: Sequence[Path], cpus: int) -> Iterator[Any]:
    """Returns batches from tf.data."""
    import tensorflow as tf

    def prepared(name: Any) -> Any:
        """Decodes, crops, resizes and flips a photo."""
        data = tf.io.read_file(name)
        height, width = tf.unstack(tf.image.extract_jpeg_shape(data)[:2])
        w, h = tf.cast(width, tf.float32), tf.cast(height, tf.float32)
        area = w * h * tf.random.uniform([10], *SCALE)
        aspect = tf.exp(tf.random.uniform([10], *map(math.log, RATIO)))
        crop_w = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
        crop_h = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
        fits = (crop_w > 0) & (crop_w <= width) & (crop_h > 0) & (crop_h <= height)
        side, first = tf.minimum(width, height), tf.argmax(fits)
        crop_w = tf.where(fits[first], crop_w[first], side)
        crop_h = tf.where(fits[first], crop_h[first], side)
        top = tf.random.uniform([], 0, height - crop_h + 1, tf.int32)
        left = tf.random.uniform([], 0, width - crop_w + 1, tf.int32)
        window = tf.stack([top, left, crop_h, crop_w])
        # TensorFlow's default DCT is faster and less accurate than Pillow's.
        image = tf.image.decode_and_crop_jpeg(data, window, 3, dct_method="INTEGER_ACCURATE")
        image = tf.image.resize(image, (SIZE, SIZE), "bicubic", antialias=True)
        image = tf.saturate_cast(tf.round(image), tf.uint8)
        return tf.image.random_flip_left_right(image)

    data = tf.data.Dataset.from_tensor_slices([str(file) for file in files])
    data = data.shuffle(len(files)).repeat()
    data = data.map(prepared, num_parallel_calls=cpus).batch(BATCH).prefetch(1)
    options = tf.data.Options()
    options.threading.private_threadpool_size = cpus
    return data.with_options(options).as_numpy_iterator()


def cpu_seconds() -> float:
    """Returns the CPU time of this process and all of its descendants that still run."""
    parents, times = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # ended meanwhile
            continue
        pid = int(stat.parent.name)
        parents[pid], times[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
    total = 0
    for pid, ticks in times.items():
        ancestor = pid
        while ancestor not in (os.getpid(), 0):
            ancestor = parents.get(ancestor, 0)
        total += ticks if ancestor else 0
    return total / os.sysconf("SC_CLK_TCK")


def measure(batches: Iterator[Any], count: int) -> dict[str, float]:
    """Returns wall and CPU seconds per image."""
    for _ in range(WARM_UP):
        next(batches)
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        next(batches)
    wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
    return {"wall": wall / (count * BATCH), "cpu": cpu / (count * BATCH)}


def measure_pipeline(options: argparse.Namespace) -> NoReturn:
    """Runs in a process of its own: measures one pipeline and prints the result."""
    files = sorted(Path(options.photos).iterdir())
    name, _, arguments = options.pipeline.partition(":")
    sides: dict[str, Callable[..., Iterator[Any]]] = {"torch": torch_loader, "tf": tf_data}
    if name in sides:
        batches = sides[name](files, options.cpus)
    else:
        threads, workers = map(int, arguments.split(","))
        batches = ours(files, name, threads, workers)
    print(json.dumps(measure(batches, options.batches)), flush=True)
    if hasattr(batches, "close"):
        batches.close()
    sys.exit()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--photos", required=True, help="folder of JPEG files")
    parser.add_argument("--torch_python", default=sys.executable, help="python with torch, pillow")
    parser.add_argument("--tf_python", default=sys.executable, help="python with tensorflow")
    parser.add_argument("--count", type=int, default=1000, help="number of photos")
    parser.add_argument("--side", type=int, default=256, help="short side, pixels")
    parser.add_argument("--progressive", action="store_true", help="write progressive JPEG files")
    parser.add_argument("--cpus", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=12, help=f"measured batches of {BATCH}")
    parser.add_argument("--pipeline", help=argparse.SUPPRESS)  # for the processes that measure
    options = parser.parse_args()
    if options.pipeline:
        measure_pipeline(options)
    compare(options)


def compare(options: argparse.Namespace) -> None:
    """Measures all sides in turn and prints the medians."""
    from machine import processor

    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cpus])
    cpus = options.cpus
    sides = {
        "PyTorch DataLoader": ("torch", options.torch_python),
        "tf.data": ("tf", options.tf_python),
        "dinotxt_jax, exact, threads": (f"exact:{cpus},0", sys.executable),
        "dinotxt_jax, fast, threads": (f"fast:{cpus},0", sys.executable),
        "dinotxt_jax, fast, workers": (f"fast:{cpus},{cpus}", sys.executable),
        "dinotxt_jax, fast, defaults": ("fast:-1,-1", sys.executable),
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        copy_photos(
            Path(options.photos), Path(folder), options.count, options.side, options.progressive
        )
        for _ in range(options.rounds):
            for name, (side, python) in sides.items():
                command = [python, __file__, f"--photos={folder}", f"--pipeline={side}"]
                command += [f"--cpus={cpus}", f"--batches={options.batches}"]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{name} failed: {done.stderr[-2000:]}")
                results[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{name}: {results[name][-1]}", file=sys.stderr, flush=True)
    kind = "progressive" if options.progressive else "baseline"
    print(f"{options.count} {kind} JPEG files, short side {options.side}, {processor()}")
    print(
        "| pipeline | images/s | per CPU time | ratio | ratio by CPU time |\n|---|---|---|---|---|"
    )
    medians = {
        name: {key: statistics.median(row[key] for row in rows) for key in ("wall", "cpu")}
        for name, rows in results.items()
    }
    best = {
        key: min(medians[name][key] for name in ("PyTorch DataLoader", "tf.data"))
        for key in ("wall", "cpu")
    }
    for name, row in medians.items():
        print(
            f"| {name} | {1 / row['wall']:.0f} | {cpus / row['cpu']:.0f} "
            f"| {best['wall'] / row['wall']:.2f} | {best['cpu'] / row['cpu']:.2f} |"
        )


if __name__ == "__main__":
    main()
