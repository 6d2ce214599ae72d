"""Compares attention implementations: measured on this machine, or compiled for TPUs.

    python benchmarks/attention.py [--images=256] [--rows=64] [--repeats=10]
    python benchmarks/attention.py --topology=v5e:2x2 --topology=v6e:2x2    # needs libtpu, no TPU

Two workloads from the full recipe, per device: the frozen ViT-L/14 with registers, forward, on
224-pixel images (261 tokens), and the text transformer, forward and backward with matrix products
kept, on packed rows of 77 tokens (64 rows hold the captions for about 300 pairs). Weights and
inputs are random.

Without --topology, every implementation that runs on this machine's devices is timed (medians
without compilation; use fewer images and rows on a CPU). With --topology nothing is run: the
compiler reports temporary memory and the bytes moved per chip. Blocks are scanned and the compiler
counts a scan's body once, so bytes cover a single block plus everything outside the blocks. The
compiler knows how many bytes a Pallas kernel moves, but not how long it takes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import machine
import numpy as np
from flax import nnx
from jax.experimental import topologies
from jax.sharding import Mesh

from dinotxt_jax import UserError, sharding
from dinotxt_jax.config.architecture import TextConfig
from dinotxt_jax.models.attention import IMPLEMENTATIONS, choose
from dinotxt_jax.models.layers import DTypes, abstract_arrays, initial_arrays
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.models.text import Packing, TextTransformer
from dinotxt_jax.models.vit import VisionTransformer
from dinotxt_jax.runtime.compiler_options import compiler_options

VISION, TEXT = PRESETS["dinov2_vitl14_reg"], TextConfig()
TEXTS_A_ROW = 5


class Workload(NamedTuple):
    """A computation to compare.

    Attributes:
        title: row title in the table, with a placeholder for the row count.
        create: makes the module, given an implementation's name and a dtype.
        run: computes the result from the module's graph definition, arrays and inputs.
        inputs: makes inputs, given the total number of rows and the number of parts.
    """

    title: str
    create: Callable[[str, str], nnx.Module]
    run: Callable[[Any, Any, Any], Any]
    inputs: Callable[[int, int], Any]


def backbone(attention: str, dtype: str) -> nnx.Module:
    return VisionTransformer(VISION, dtypes=DTypes(dtype, dtype), attention=attention)


def text(attention: str, dtype: str) -> nnx.Module:
    dtypes = DTypes("float32", dtype)
    return TextTransformer(TEXT, dtypes=dtypes, remat="dots", attention=attention)


def backbone_tokens(graphdef: Any, arrays: Any, images: jax.Array) -> jax.Array:
    return nnx.merge(graphdef, arrays).tokens(images)


def text_gradients(graphdef: Any, arrays: Any, inputs: tuple[jax.Array, Packing]) -> Any:
    def loss(arrays: Any) -> jax.Array:
        features = nnx.merge(graphdef, arrays)(*inputs)
        return jnp.square(features.astype("float32")).sum()

    return jax.grad(loss)(arrays)


def images(count: int, parts: int) -> np.ndarray:
    del parts
    return np.random.default_rng(0).normal(size=(count, 224, 224, 3)).astype(np.float32)


def packed_rows(count: int, parts: int) -> tuple[np.ndarray, Packing]:
    """Makes rows with five texts of 15 tokens each and two padding tokens."""
    length, rows = TEXT.context_length, count // parts
    each = length // TEXTS_A_ROW
    shape = (parts, rows, length)
    position = np.arange(length)
    inside = position < TEXTS_A_ROW * each
    ends = np.arange(TEXTS_A_ROW) * each + each - 1
    tokens = np.random.default_rng(0).integers(1, TEXT.vocabulary_size, shape, dtype=np.int32)
    return tokens, Packing(
        segment_ids=np.broadcast_to(np.where(inside, 1 + position // each, 0), shape).astype(
            "int32"
        ),
        positions=np.broadcast_to(np.where(inside, position % each, 0), shape).astype("int32"),
        row=np.broadcast_to(np.repeat(np.arange(rows), TEXTS_A_ROW), (parts, rows * TEXTS_A_ROW)),
        column=np.broadcast_to(np.tile(ends, rows), (parts, rows * TEXTS_A_ROW)),
    )


BACKBONE = Workload("ViT-L/14 forward, {} images", backbone, backbone_tokens, images)
TEXTS = Workload("text forward + backward, {} packed rows", text, text_gradients, packed_rows)


def possible(platform: str, dtype: str) -> list[str]:
    """Returns the implementations that a platform can run."""
    head_dims = (VISION.block().head_dim, TEXT.block().head_dim)
    names = []
    for name in IMPLEMENTATIONS:
        try:
            names.append(choose(name, platform, (dtype,), head_dims))
        except UserError:
            continue
    return names


def abstract_inputs(workload: Workload, count: int, mesh: Mesh) -> Any:
    """Returns input shapes and shardings for `count` rows per device."""
    placed = sharding.batch_sharding(mesh)
    return jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=placed),
        workload.inputs(count * mesh.size, mesh.size),
    )


def compiled(
    workload: Workload,
    attention: str,
    dtype: str,
    count: int,
    mesh: Mesh,
    options: dict[str, str] | None = None,
) -> Any:
    """Compiles a workload for a mesh; the devices need not exist."""
    create = lambda: workload.create(attention, dtype)  # noqa: E731
    graphdef = nnx.graphdef(create())
    with jax.set_mesh(mesh):
        run = jax.jit(
            lambda arrays, inputs: workload.run(graphdef, arrays, inputs), compiler_options=options
        )
        inputs = abstract_inputs(workload, count, mesh)
        return run.lower(abstract_arrays(create, mesh), inputs).compile()


def compile_for(topology: str, counts: dict[Workload, int]) -> None:
    """Prints the table for a topology."""
    devices = topologies.get_topology_desc(topology, platform="tpu").devices
    mesh = sharding.make_mesh(devices=devices)
    print(f"\n{topology}, bfloat16, per chip; ratios to XLA's\n")
    print("| workload | attention | temporaries, GB | ratio | bytes, GB | ratio |")
    print("|---|---|---|---|---|---|")
    for workload, count in counts.items():
        first: tuple[float, float] | None = None
        for name in possible("tpu", "bfloat16"):
            program = compiled(workload, name, "bfloat16", count, mesh)
            temporary = program.memory_analysis().temp_size_in_bytes / 1e9
            moved = program.cost_analysis()["bytes accessed"] / 1e9
            first = first or (temporary, moved)
            print(
                f"| {workload.title.format(count)} | {name} | {temporary:.2f} | "
                f"{temporary / first[0]:.2f} | {moved:.1f} | {moved / first[1]:.2f} |",
                flush=True,
            )


def median_seconds(
    workload: Workload, attention: str, dtype: str, count: int, mesh: Mesh, repeats: int
) -> float:
    """Returns the median time over the repeats, without compilation."""
    program = compiled(workload, attention, dtype, count, mesh, compiler_options([dtype]))
    declared = workload.create(attention, dtype)
    arrays = initial_arrays(declared, abstract_arrays(lambda: declared, mesh), 0)
    inputs = jax.device_put(
        workload.inputs(count * mesh.size, mesh.size), sharding.batch_sharding(mesh)
    )
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(program(arrays, inputs))
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def measure(counts: dict[Workload, int], repeats: int) -> None:
    """Prints the table for this machine's devices."""
    mesh = sharding.make_mesh()
    device = jax.devices()[0]
    print(f"{mesh.size} devices, {machine.device()}; ratios to XLA's in the same dtype\n")
    print("| workload | dtype | attention | ms | ratio |\n|---|---|---|---|---|")
    for workload, count in counts.items():
        for dtype in ("bfloat16", "float32"):
            first = 0.0
            for name in possible(device.platform, dtype):
                seconds = median_seconds(workload, name, dtype, count, mesh, repeats)
                first = first or seconds
                print(
                    f"| {workload.title.format(count)} | {dtype} | {name} | {seconds * 1e3:.1f} | "
                    f"{seconds / first:.2f} |",
                    flush=True,
                )


def main() -> None:
    """Prints a table with a row for each workload and implementation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--topology", action="append", default=[], help="compile, run nothing")
    parser.add_argument("--images", type=int, default=256, help="images per device")
    parser.add_argument("--rows", type=int, default=64, help="packed rows per device")
    parser.add_argument("--repeats", type=int, default=10)
    options = parser.parse_args()
    print(machine.device())
    counts = {BACKBONE: options.images, TEXTS: options.rows}
    for topology in options.topology:
        compile_for(topology, counts)
    if not options.topology:
        measure(counts, options.repeats)


if __name__ == "__main__":
    main()
