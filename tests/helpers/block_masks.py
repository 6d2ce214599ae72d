"""A segmentation task on small photos with coloured blocks, and its result on several meshes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from dinotxt_jax import inference, sharding
from dinotxt_jax.config import DataConfig, SegmentationConfig, TaskConfig
from dinotxt_jax.data.masks import MaskFiles
from dinotxt_jax.evaluation.jobs import Job, PartialWork, TaskResult
from dinotxt_jax.evaluation.segmentation import SegmentationKind
from dinotxt_jax.storage.addresses import to_address

KIND = SegmentationKind()
SLIDE = SegmentationConfig("slide", short_side=60, window=46, stride=23)
TEMPLATE = "a photo of a {}"
CAPTIONS = [f"a photo of a {name}" for name in ("sky", "grass", "cow", "background")]

# Name -> data, fsdp and tensor of a mesh of four devices. Two processes share the arrays in the
# second, and hold the same rows in the third.
BATCH_SIZE = 10  # rounded up to 12 rows for four devices
MESHES = {"data": (4, 1, 1), "fsdp": (1, 4, 1), "tensor": (1, 1, 4)}
WIDTHS = (75, 120, 75, 120, 75, 120, 75)
"""Widths of the photos in tests with several processes: 6 or 10 windows, in one padded shape."""


def write(folder: Path, widths: Sequence[int]) -> TaskConfig:
    """Writes photos 60 pixels high with blocks, and masks for three classes."""
    rng = np.random.default_rng(0)
    lines = ["image,mask"]
    for number, width in enumerate(widths):
        blocks = rng.integers(0, 3, (4, 5)).astype(np.uint8)
        colours = rng.integers(0, 256, (3, 3), np.uint8)
        Image.fromarray(colours[blocks]).resize((width, 60), 0).save(folder / f"{number}.png")
        Image.fromarray(blocks).resize((width, 60), 0).save(folder / f"{number}_mask.png")
        lines.append(f"{number}.png,{number}_mask.png")
    (folder / "index.csv").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("sky\ngrass\ncow\n")
    return task(folder)


def task(folder: Path) -> TaskConfig:
    """Returns the task on photos that were written to a folder."""
    data = DataConfig(
        source="csv",
        path=str(folder / "index.csv"),
        classes=str(folder / "classes.txt"),
        threads=2,
    )
    return TaskConfig(kind="segmentation", data=data, templates=TEMPLATE, segmentation=SLIDE)


def job_of(model: inference.Model, task: TaskConfig, batch_size: int, **more: Any) -> Job:
    return Job(
        model, "blocks", task, KIND.open_set("config.tasks.blocks", task), batch_size, **more
    )


def result_on(folder: Path, mesh: Mesh, picture: str) -> dict[str, Any]:
    """Evaluates the photos in a folder with the model in it; returns the result and the reads.

    The reads are the photos that this process decodes before it draws.
    """
    reads: list[int] = []
    load = MaskFiles.load

    def counting(self: MaskFiles, index: int) -> Any:
        reads.append(index)
        return load(self, index)

    model = inference.load(folder / "model", mesh=mesh)
    MaskFiles.load = counting
    try:
        result = KIND.run(job_of(model, task(folder), BATCH_SIZE))
    finally:
        MaskFiles.load = load
    assert result.draw is not None
    result.draw(to_address(folder / picture))
    drawn = folder / picture
    digest = hashlib.sha256(Image.open(drawn).tobytes()).hexdigest() if drawn.exists() else ""
    stated = dataclasses.asdict(dataclasses.replace(result, draw=None))
    return {"result": stated, "reads": sorted(reads), "picture": digest}


def result_of_one_image(folder: Path, mesh: Mesh) -> dict[str, float]:
    """Evaluates only the first photo; other processes than the first have none."""
    model = inference.load(folder / "model", mesh=mesh)
    one = dataclasses.replace(task(folder), max_examples=1)
    return dict(KIND.run(job_of(model, one, BATCH_SIZE)).metrics)


def result_of_the_rest(folder: Path, mesh: Mesh) -> TaskResult:
    """Continues the work in `partial_work`, and saves after every batch."""
    model = inference.load(folder / "model", mesh=mesh)
    one_thread = dataclasses.replace(task(folder).data, threads=1)
    rest = dataclasses.replace(task(folder), data=one_thread)
    return KIND.run(job_of(model, rest, BATCH_SIZE, partial=partial_work(folder)))


def mesh_of(name: str, devices: Sequence[Any] | None = None) -> Mesh:
    return sharding.make_mesh(*MESHES[name], devices=devices)


def partial_work(folder: Path) -> PartialWork:
    """Returns a file that is written after every batch."""
    return PartialWork(to_address(folder / "partial.npz"), {"a": 1}, interval=0)
