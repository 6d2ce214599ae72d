"""Plans a curation: core-hours, accelerator-hours and bytes, for any number of pairs.

Rates of the work on CPUs are measured on this machine. The programs of the accelerators, which
embed images and assign points in a Lloyd step, are compiled for a TPU topology; their times follow
from what the compiled programs compute and move, and from the chip's peak rates.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, UInt8

from dinotxt_jax import sharding
from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.kmeans import Method, add_chunk
from dinotxt_jax.curation.points import PlacedChunk, chunk_rows
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.errors import UserError
from dinotxt_jax.models.layers import DTypes, abstract_arrays
from dinotxt_jax.models.vit import VisionTransformer
from dinotxt_jax.planning.abstract import backbone_description
from dinotxt_jax.planning.compiling import Memory, Target, compile_for, keep_from_devices, target
from dinotxt_jax.planning.curation_rates import CoreRates, measured_rates
from dinotxt_jax.planning.estimates import REACHED, work_of
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import check_no_folder, write_text
from dinotxt_jax.visualize.web_page import Table

# The hierarchy of the recipe: 2.3 billion pairs in 20 million, 800,000 and 80,000 clusters, the
# first split from 100,000 coarse ones.
_PER_CLUSTER, _UPPER, _SPLIT = 115, (25, 10), 200
_EMBEDDED = 64  # images per device
_STORED = 2  # bytes per element of an embedding
_MATCHED, _MATCH = 16, 4  # bytes per example, and per matched entry, in stored matches


@dataclasses.dataclass(frozen=True)
class CompiledWork:
    """A program compiled for the topology, and how often it runs.

    Attributes:
        name: title in the table.
        runs: how often it runs.
        flops: FLOPs of matrix products in a run, all devices.
        seconds: seconds of a run at peak rates.
        memory: bytes on one device, as the compiler assigned them.
        reduced: bytes of cluster sums that a Lloyd step adds over all devices; 0 for the embedding.
    """

    name: str
    runs: float
    flops: float
    seconds: float
    memory: Memory
    reduced: float = 0.0

    def hours(self, chips: int) -> float:
        """Returns chip-hours if `REACHED` of the peak rates are reached."""
        return self.runs * self.seconds / REACHED * chips / 3600


@dataclasses.dataclass(frozen=True)
class PoolPlan:
    """The plan for one number of pairs.

    Attributes:
        pairs: number of pairs.
        levels: number of clusters of each level.
        coarse: number of coarse clusters.
        programs: the programs of the accelerators.
        seeding: chip-hours of k-means++, from the points that it reads.
        figures: other figures: hours of CPU cores and bytes, by name.
    """

    pairs: int
    levels: tuple[int, ...]
    coarse: int
    programs: tuple[CompiledWork, ...]
    seeding: float
    figures: dict[str, float]


def plan_curation(config: CurationConfig, arguments: Sequence[str], output: Address) -> str:
    """Plans a curation for the numbers of pairs in `config.plan`; returns the plan as Markdown.

    Args:
        config: `plan`, `image`, and the pool on whose examples this machine is measured.
        arguments: the metadata, or nothing: then entries and captions are drawn.
        output: the file to write: NAME.json, or NAME.md.

    Raises:
        UserError: the metadata or the pool cannot be used, the topology does not exist, or libtpu
            is not installed.
    """
    check_no_folder(output)
    if len(arguments) > 1:
        raise UserError(f"{len(arguments)} paths are given, expected at most the metadata.")
    if output.suffix not in (".json", ".md"):
        raise UserError(f"--output={output} is neither NAME.json nor NAME.md; correct it.")
    keep_from_devices()
    destination = target(config.plan.topology)
    source = open_source(config.data)
    rates = measured_rates(source, config.data, arguments[0] if arguments else "")
    plans = compiled_plans(config, destination, rates)
    text = "\n".join(_described(config, destination, rates, plans))
    if output.suffix == ".json":
        values = {
            "topology": destination.name,
            "chips": destination.chips,
            "core": rates._asdict(),
            "plans": [
                dataclasses.asdict(plan)
                | {"chip_hours": {w.name: w.hours(destination.chips) for w in plan.programs}}
                for plan in plans
            ],
        }
        write_text(output, json.dumps(values, indent=1) + "\n")
    else:
        write_text(output, text + "\n")
    return text


def compiled_plans(config: CurationConfig, destination: Target, rates: CoreRates) -> list[PoolPlan]:
    """Compiles the programs for all numbers of pairs.

    Args:
        config: `plan` and `image`.
        destination: the devices.
        rates: rates of one CPU core.
    """
    mesh = sharding.make_mesh(devices=destination.devices)
    numbers = config.plan.pairs
    with progress_bar(1 + 4 * len(numbers), 0, "program", "compiling") as bar:
        with bar.stage("embedding"):
            embed = _embedding(config, destination, mesh)
        bar.update()
        return [_pool_plan(config, destination, mesh, rates, embed, n, bar) for n in numbers]


def hierarchy(pairs: int) -> tuple[tuple[int, ...], int]:
    """Returns the number of clusters of each level, and of coarse clusters, as in the recipe."""
    first = max(pairs // _PER_CLUSTER, 1)
    levels = [first]
    for ratio in _UPPER:
        levels.append(max(levels[-1] // ratio, 1))
    return tuple(levels), max(first // _SPLIT, 1)


def _embedding(config: CurationConfig, destination: Target, mesh: Mesh) -> CompiledWork:
    """Compiles the backbone for a batch of images; `runs` is per image."""
    description = backbone_description(config.plan.backbone)
    dtypes, size = DTypes("bfloat16", "bfloat16"), config.data.image_size
    mean, std = description.preprocessing.mean, description.preprocessing.std

    def create() -> VisionTransformer:
        return VisionTransformer(description.vision, dtypes=dtypes)

    graphdef, arrays = nnx.graphdef(create()), abstract_arrays(create, mesh)

    def encode(arrays: Any, pixels: UInt8[Array, "b s s 3"]) -> Array:
        return nnx.merge(graphdef, arrays)(normalize(pixels, mean, std)).class_token

    count = _EMBEDDED * sharding.batch_parts(mesh)
    placement = sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct((count, size, size, 3), "uint8", sharding=placement)
    work = _compiled("embedding", destination, mesh, encode, (arrays, images))
    return dataclasses.replace(work, runs=1 / count)


def _assigning(
    name: str, destination: Target, mesh: Mesh, rows: int, count: int, width: int, unit_norm: bool
) -> CompiledWork:
    """Compiles the inner loop of a Lloyd step for a chunk of `rows` points and `count` clusters."""
    parts = sharding.batch_parts(mesh)
    batch, everywhere = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    centroids = jax.ShapeDtypeStruct((count, width), "float32", sharding=everywhere)
    # Typed as arrays, which are abstract here.
    points: Any = jax.ShapeDtypeStruct((rows, width), "float16", sharding=batch)
    weights: Any = jax.ShapeDtypeStruct((rows,), "float32", sharding=batch)
    chunk = PlacedChunk(points, weights)
    totals = (
        jax.ShapeDtypeStruct((parts, count, width), "float32", sharding=batch),
        jax.ShapeDtypeStruct((parts, count), "int32", sharding=batch),
    )
    add = functools.partial(add_chunk, Method("bfloat16", unit_norm))
    work = _compiled(name, destination, mesh, add, (centroids, chunk, totals), donated=(2,))
    return dataclasses.replace(work, reduced=4.0 * count * width)


def _compiled(
    name: str,
    destination: Target,
    mesh: Mesh,
    function: Any,
    arguments: tuple[Any, ...],
    donated: tuple[int, ...] = (),
) -> CompiledWork:
    compiled = compile_for(destination, mesh, function, arguments, donated)
    work = work_of(compiled, mesh)
    seconds = max(work.seconds(destination).values()) if work else float("nan")
    flops = work.flops * len(destination.devices) if work else float("nan")
    return CompiledWork(name, 0.0, flops, seconds, compiled.memory)


def _pool_plan(
    config: CurationConfig,
    destination: Target,
    mesh: Mesh,
    rates: CoreRates,
    embed: CompiledWork,
    pairs: int,
    bar: Any,
) -> PoolPlan:
    width = backbone_description(config.plan.backbone).vision.dim
    levels, coarse = hierarchy(pairs)
    parts, image = sharding.batch_parts(mesh), config.image
    lloyd = image.iterations + 1  # and the pass that assigns all points at the end
    resampled = image.rounds[-1] * (image.iterations / 2 + 1)  # half of the points in each round
    jobs = [
        ("coarse clusters", pairs, coarse, chunk_rows(pairs, parts), float(lloyd)),
        # Each device splits a coarse cluster of its own.
        ("split", pairs, levels[0] // coarse, parts * -(-pairs // coarse), float(lloyd)),
    ]
    for number, (points, count) in enumerate(itertools.pairwise(levels), start=2):
        rows = chunk_rows(points, parts)
        jobs.append((f"level {number}", points, count, rows, lloyd + resampled))
    programs = [dataclasses.replace(embed, runs=embed.runs * pairs)]
    for name, points, count, rows, passes in jobs:
        with bar.stage(f"{name} of {pairs:,} pairs"):
            work = _assigning(name, destination, mesh, rows, count, width, image.unit_norm)
        programs.append(dataclasses.replace(work, runs=passes * points / rows))
        bar.update()
    # Seeding reads its sample once per centroid.
    read = sum(
        runs * count * min(count * (image.seeding_points or points), points) * width * 4.0
        for points, count, runs in (
            (pairs, coarse, 1),
            *((*pair, image.rounds[-1] + 1) for pair in itertools.pairwise(levels)),
        )
    )
    chip = destination.chip
    seeding = read / chip.hbm_rate / REACHED / 3600
    embeddings = float(_STORED * width * pairs)
    groups = max(1.0, embeddings / (image.memory_gib * 2**30))
    figures = {
        "matching, core-hours": pairs / rates.matching / 3600,
        "drawing, core-hours": pairs / rates.drawing / 3600,
        "decoding, core-hours": pairs / rates.decoding / 3600,
        "images read, bytes": pairs * rates.image_bytes,
        "stored matches, bytes": pairs * (_MATCHED + _MATCH * rates.matches),
        "embeddings, bytes": embeddings,
        "read to split, bytes": groups * embeddings,
        "list, bytes": pairs / 8,
    }
    return PoolPlan(pairs, levels, coarse, tuple(programs), seeding, figures)


def _described(
    config: CurationConfig, destination: Target, rates: CoreRates, plans: Sequence[PoolPlan]
) -> list[str]:
    """Returns the plan as lines of Markdown."""
    chips = destination.chips
    memory = rates.image_bytes
    lines = [
        f"# Plan of a curation on {destination.name} ({chips} chips)",
        "",
        f"Measured on one core of this machine: {rates.matching:,.0f} captions/s matched with "
        f"{rates.entries:,} entries ({rates.matches:.1f} matches each), {rates.drawing:,.0f} "
        f"captions/s drawn, {rates.decoding:,.0f} images/s decoded"
        + (f" ({memory:,.0f} bytes each)." if memory else " (the pool holds pixels, no files)."),
        "",
        f"Chip-hours are estimated from the compiled programs at {REACHED:.0%} of the chip's peak "
        "rates; seeding from the points that it reads.",
        "",
    ]
    rows = [["", *(f"{plan.pairs:,} pairs" for plan in plans)]]
    rows.append(["clusters per level", *(", ".join(map(_count, p.levels)) for p in plans)])
    rows.append(["coarse clusters", *(_count(plan.coarse) for plan in plans)])
    for name in plans[0].figures:
        rows.append([name, *(_figure(plan.figures[name], name) for plan in plans)])
    for place, work in enumerate(plans[0].programs):
        hours = (f"{plan.programs[place].hours(chips):,.3g}" for plan in plans)
        rows.append([f"{work.name}, chip-hours", *hours])
    rows.append(["seeding, chip-hours", *(f"{plan.seeding:,.3g}" for plan in plans)])
    rows.append(["clustering, FLOPs", *(f"{_flops(plan):.2e}" for plan in plans)])
    for place, work in enumerate(plans[0].programs):
        peaks = (_memory(plan.programs[place].memory) for plan in plans)
        rows.append([f"{work.name}, GiB of a device", *peaks])
    for place, work in enumerate(plans[0].programs[1:], start=1):
        sums = (_size(plan.programs[place].reduced) for plan in plans)
        rows.append([f"{work.name}, sums added over devices per step", *sums])
    lines.append(Table(rows).markdown())
    lines += [
        "",
        "- Text on Beam, or on several hosts, shuffles no pairs: a worker stores the matches of "
        "its ranges, and the coordinating process reads all of them twice.",
        f"- Each process holds {config.image.memory_gib:g} GiB of embeddings "
        "(config.image.memory_gib) while coarse clusters are split, and all embeddings are read "
        "once per so much. Each Lloyd step for coarse clusters reads all embeddings unless they "
        "fit on the devices.",
    ]
    return lines


def _flops(plan: PoolPlan) -> float:
    return sum(work.runs * work.flops for work in plan.programs[1:])


def _count(number: int) -> str:
    return f"{number:,}"


def _figure(value: float, name: str) -> str:
    return _size(value) if name.endswith("bytes") else f"{value:,.3g}"


def _size(value: float) -> str:
    """Returns bytes with a decimal unit."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} PB"


def _memory(memory: Memory) -> str:
    text = f"{memory.peak / 2**30:.2f}"
    return text if memory.fits else f"{text} (does not fit)"
