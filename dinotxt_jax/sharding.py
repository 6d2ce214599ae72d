"""The mesh, and the one table that says where every array lives.

Every parameter names its dimensions (`logical_axes`), every pinned activation does too; the table
`LOGICAL_AXES` maps those names to mesh axes. Nothing else in the project mentions a mesh axis.

    data    replicas: each holds a part of the batch and a copy of what the others do not split;
            the slices of a multi-slice machine divide this axis, so that only sums of gradients
            leave a slice
    fsdp    also a part of the batch, and a part of every large parameter and its optimizer state
    tensor  attention heads and MLP channels of the same rows: for layers too large for the others
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from dinotxt_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> the mesh axes that split it. The widths that enter and leave residual streams
# ("embed") are what FSDP splits: every large array has that dimension exactly once. What a block
# widens to ("heads", "mlp") is what the tensor axis splits, so that a branch of a block ends in one
# sum over it.
LOGICAL_AXES: Mapping[str, tuple[str, ...]] = {
    "batch": ("data", "fsdp"),
    "tokens": (),
    "layers": (),
    "embed": ("fsdp",),
    "qkv": (),
    "heads": ("tensor",),
    "head_dim": (),
    "mlp": ("tensor",),
    "vocabulary": (),
    "positions": (),
    "patch": (),
    "projection": (),
}


def make_mesh(
    data: int = -1,
    fsdp: int = 1,
    tensor: int = 1,
    slices: int = -1,
    *,
    devices: Sequence[jax.Device] | None = None,
) -> Mesh:
    """The `data` x `fsdp` x `tensor` mesh over all devices (of all processes).

    Args:
        data: number of replicas, over all slices; -1 takes what the others leave.
        fsdp: number of parts that parameters and optimizer state are split into.
        tensor: number of parts that heads and MLP channels are split into.
        slices: number of slices, joined by a slower network, that the replicas are spread over;
            -1 takes those that there are.
        devices: defaults to `jax.devices()`.

    Raises:
        UserError: numbers that are no mesh of these devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "slices": slices}
    if min(fsdp, tensor) < 1 or any(size < 1 and size != -1 for size in (data, slices)):
        given = ", ".join(f"config.mesh.{name}={size}" for name, size in sizes.items())
        raise UserError(
            f"{given} is not a mesh; give positive sizes, or data=-1 for 'what is left' "
            "and slices=-1 for 'those that there are'."
        )
    if data == -1:
        data = max(count // (fsdp * tensor), 1)
    shape = (data, fsdp, tensor)
    if math.prod(shape) != count:
        raise UserError(
            f"a mesh of data={data} x fsdp={fsdp} x tensor={tensor} needs {math.prod(shape)} "
            f"devices but there are {count} here; choose data x fsdp x tensor among "
            f"{_meshes(count, tensor)}."
        )
    found = len({_slice_of(device) for device in devices})
    if slices not in (-1, found):
        raise UserError(
            f"config.mesh.slices={slices}, but the devices are in {found}; set it to {found}, or "
            "to -1 for 'those that there are'."
        )
    if data % found:
        raise UserError(
            f"data={data} replicas cannot be spread over {found} slices; set config.mesh.data to a "
            f"multiple of {found}."
        )
    mesh = Mesh(_arranged(devices, shape, found), MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    batch_readers(mesh)  # raises where processes could not read its batches
    return mesh


def _meshes(count: int, tensor: int) -> str:
    """The meshes of so many devices: with this size of tensor, or if none has it, any."""
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    wanted = [tensor] if count % tensor == 0 else divisors
    shapes = [
        f"{count // (fsdp * size)}x{fsdp}x{size}"
        for size, fsdp in itertools.product(wanted, divisors)
        if count % (fsdp * size) == 0
    ]
    return ", ".join(shapes[:8]) + (" and more" if len(shapes) > 8 else "")


def _slice_of(device: jax.Device) -> int:
    # GPUs have the number too, but it counts machines.
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _arranged(
    devices: Sequence[jax.Device], shape: tuple[int, ...], slices: int
) -> np.ndarray[Any, Any]:
    """The devices so that neighbours on an axis are near each other; slices divide the first."""
    if devices[0].platform != "tpu":
        # In order of processes, whose GPUs are joined by faster links than the machines are.
        return np.asarray(devices).reshape(shape)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within = (shape[0] // slices, *shape[1:])
    between = (slices, *[1] * (len(shape) - 1))
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def parts_of(logical_axis: str, mesh: Mesh | AbstractMesh) -> int:
    """How many parts a dimension of that name is split into where they divide it."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES[logical_axis])


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """How many parts, of consecutive rows, a global batch is split into."""
    return parts_of("batch", mesh)


def batch_readers(mesh: Mesh) -> dict[tuple[int, ...], list[int]]:
    """Processes by the parts of a global batch that their devices hold, in order of the parts.

    Those of a list hold the same rows, split over the tensor axis, and have to read the same. On
    TPUs, where meshes follow the wiring, the parts of a process need not be neighbours.

    Raises:
        UserError: parts that overlap, so that no process could read rows for itself.
    """
    held: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(batch_parts(mesh), -1)):
        for device in devices:
            held.setdefault(device.process_index, set()).add(part)
    readers: dict[tuple[int, ...], list[int]] = {}
    for process, parts in sorted(held.items()):
        readers.setdefault(tuple(sorted(parts)), []).append(process)
    sizes = {len(parts) for parts in readers}
    if len(sizes) > 1 or sum(map(len, readers)) != batch_parts(mesh):
        local = len(mesh.devices.flat) // len(held)
        raise UserError(
            f"config.mesh.tensor={mesh.shape['tensor']} makes processes of {local} devices share "
            f"some rows of a batch and not others; set it to a divisor or multiple of {local}."
        )
    return dict(sorted(readers.items()))


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
            f"{name}={batch_size} does not divide over the {parts} parts that data x fsdp make; "
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
    """Puts this process's rows of a batch where they belong in all of it.

    Args:
        batch: rows of the process's parts (`batch_readers`), one part after the other.
        mesh: the mesh.
    """
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
