"""The mesh, and the one table that says where every array lives.

Every parameter names its dimensions (`logical_axes`), every pinned activation does too; the table
`LOGICAL_AXES` maps those names to mesh axes. Nothing else in the project mentions a mesh axis.

    data    replicas: each holds a part of the batch and a copy of what `fsdp` does not split
    fsdp    also a part of the batch, and a part of every large parameter and its optimizer state
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dinotxt_jax.errors import UserError

MESH_AXES = ("data", "fsdp")

# Logical axis -> the mesh axes that split it. The widths that enter and leave residual streams
# ("embed") are what FSDP splits: every large array has that dimension exactly once.
LOGICAL_AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "tokens": (),
    "layers": (),
    "embed": ("fsdp",),
    "qkv": (),
    "heads": (),
    "head_dim": (),
    "mlp": (),
    "vocabulary": (),
    "positions": (),
    "patch": (),
    "projection": (),
}


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The `data` x `fsdp` mesh over all devices (of all processes).

    Args:
        data: number of replicas; -1 takes what `fsdp` leaves.
        fsdp: number of parts that parameters and optimizer state are split into.
        devices: defaults to `jax.devices()`.

    Raises:
        UserError: the two numbers do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or (data < 1 and data != -1):
        raise UserError(
            f"config.mesh.data={data}, config.mesh.fsdp={fsdp} is not a mesh; give positive sizes, "
            "or data=-1 for 'what is left'."
        )
    if data == -1:
        data = max(count // fsdp, 1)
    if data * fsdp != count:
        choices = ", ".join(f"{count // f}x{f}" for f in range(1, count + 1) if count % f == 0)
        raise UserError(
            f"a mesh of data={data} x fsdp={fsdp} needs {data * fsdp} devices but there are "
            f"{count}; choose data x fsdp among {choices}."
        )
    return Mesh(
        np.asarray(devices).reshape(data, fsdp),
        MESH_AXES,
        axis_types=(AxisType.Auto,) * len(MESH_AXES),
    )


def batch_parts(mesh: Mesh) -> int:
    """How many parts, of consecutive rows, a global batch is split into."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES["batch"])


def check_batch(batch_size: int, mesh: Mesh, name: str = "config.batch_size") -> None:
    """Raises `UserError` when a global batch, the setting `name`, cannot be split over the mesh."""
    parts = batch_parts(mesh)
    if batch_size < 1 or batch_size % parts:
        lower = batch_size // parts * parts
        advice = f"{lower} or {lower + parts}" if lower else str(parts)
        raise UserError(
            f"{name}={batch_size} does not divide over {parts} devices; "
            f"take a multiple of {parts} (for example {advice})."
        )


def partition_spec(
    logical_axes: Sequence[str | None], shape: Sequence[int] | None, mesh_shape: Mapping[str, int]
) -> PartitionSpec:
    """Mesh axes of an array from the names of its dimensions.

    A dimension that the mesh axes do not divide stays whole (`shape` None: taken to divide).
    """
    spec: list[tuple[str, ...] | None] = []
    for position, name in enumerate(logical_axes):
        axes = () if name is None else LOGICAL_AXES[name]
        size = math.prod(mesh_shape[axis] for axis in axes)
        whole = not axes or (shape is not None and shape[position] % size)
        spec.append(None if whole else axes)
    return PartitionSpec(*spec)


def shardings(axes: Any, abstract: Any, mesh: Mesh) -> Any:
    """Shardings of a tree of arrays.

    Args:
        axes: tree of tuples of logical axis names, one tuple per array.
        abstract: the matching tree of arrays or `jax.ShapeDtypeStruct`.
        mesh: the mesh.
    """
    return jax.tree.map(
        lambda array, names: NamedSharding(mesh, partition_spec(names, array.shape, mesh.shape)),
        abstract,
        axes,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first dimension is the global batch."""
    return NamedSharding(mesh, partition_spec(("batch",), None, mesh.shape))


def constrain(array: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Pins an activation to its place on the mesh set by `jax.set_mesh`; without one, a no-op.

    Left to itself the compiler may split the embedding instead of the batch and then gather
    whole batches: measured 1.19 TiB a chip instead of 5.8 GiB (see docs/concepts.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    spec = partition_spec(logical_axes, array.shape, mesh.shape)
    return jax.lax.with_sharding_constraint(array, spec)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Puts this process's rows of a batch where they belong in the global batch."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }
