"""The mesh, and the one table that says where every array lives.

Every parameter names its dimensions (`logical_axes`), every pinned activation does too; the table
`LOGICAL_AXES` maps those names to mesh axes. Nothing else in the project mentions a mesh axis.

    data    replicas: each holds a part of the batch and a copy of what `fsdp` does not split
    fsdp    also a part of the batch, and a part of every large parameter and its optimizer state
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

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


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """How many parts, of consecutive rows, a global batch is split into."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES["batch"])


def mesh_batch_parts() -> int:
    """`batch_parts` of the mesh set by `jax.set_mesh`; 1 without one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else batch_parts(mesh)


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


@dataclasses.dataclass(frozen=True)
class BatchShards:
    """The parts of a global batch, one a device, for code that says itself what is exchanged.

    `map` runs a function once for each part; the other methods are for use inside that function.
    Part p holds rows p k to (p + 1) k of a batch of `count` k.

    Attributes:
        axes: mesh axes that split the batch; none where one part is everything.
        count: number of parts.
    """

    axes: tuple[str, ...] = ()
    count: int = 1

    def map(
        self,
        function: Callable[..., Any],
        inputs: Sequence[tuple[str | None, ...]],
        outputs: Sequence[tuple[str | None, ...]],
    ) -> Callable[..., Any]:
        """`function` on whole arrays, though it sees the parts.

        Args:
            function: takes and returns a part of each array: those whose dimensions are named
                "batch" are split, the others are the same everywhere.
            inputs, outputs: logical axes of each argument and of each result. Argument and result
                are tuples.
        """
        if not self.axes:
            return function
        mesh = jax.sharding.get_abstract_mesh()
        specs = [
            tuple(partition_spec(names, None, mesh.shape) for names in arrays)
            for arrays in (inputs, outputs)
        ]
        # Unchecked, because loops would have to declare how their first values vary over devices;
        # only the check of `outputs` and transposition need that, and gradients are written out.
        return jax.shard_map(function, in_specs=specs[0], out_specs=specs[1], check_vma=False)

    def index(self) -> jax.Array | int:
        """Number of this part."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def gather(self, x: jax.Array) -> jax.Array:
        """[...] of every part, [count ...]."""
        return jax.lax.all_gather(x, self.axes) if self.axes else x[None]

    def sum(self, x: jax.Array) -> jax.Array:
        """Over the parts."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def scatter_sum(self, x: jax.Array) -> jax.Array:
        """[count ...], row p meant for part p: the sum of what was meant for this one, [...]."""
        return jax.lax.psum_scatter(x, self.axes) if self.axes else x[0]

    def exchange(self, x: jax.Array) -> jax.Array:
        """[count ...], row p meant for part p: what each part meant for this one, [count ...]."""
        return jax.lax.all_to_all(x, self.axes, 0, 0) if self.axes else x


def batch_shards(rows: int) -> BatchShards:
    """How the mesh set by `jax.set_mesh` splits a batch of `rows`.

    One part without a mesh, and where it does not divide `rows`.
    """
    count = mesh_batch_parts()
    return (
        BatchShards(LOGICAL_AXES["batch"], count)
        if count > 1 and rows % count == 0
        else BatchShards()
    )
