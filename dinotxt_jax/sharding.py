"""The mesh, and the table that maps array dimensions to mesh axes.

Every parameter and every constrained activation has named dimensions (`logical_axes`); the table
`LOGICAL_AXES` maps these names to mesh axes. No other module mentions a mesh axis.

    data    replicas: each holds a shard of the batch and a copy of all parameters that the other
            axes do not shard; the slices in a multi-slice machine divide this axis, so that only
            gradient sums cross slices
    fsdp    shards the batch, and every large parameter with the optimizer state
    tensor  shards attention heads and MLP channels for the same rows, for very large layers

An MLP kernel on a mesh with data=2, fsdp=2, tensor=2 (both replicas hold the same shards):

    fc1 ["embed" "mlp"]      mlp -> tensor 0   tensor 1
      embed -> fsdp 0      [   shard (0, 0) | shard (0, 1)   ]
               fsdp 1      [   shard (1, 0) | shard (1, 1)   ]
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
from jaxtyping import Shaped

from dinotxt_jax.config import MeshConfig, check
from dinotxt_jax.errors import UserError

MESH_AXES = ("data", "fsdp", "tensor")

# Logical axis -> the mesh axes that shard it. FSDP shards the residual stream's width ("embed"),
# which every large array has exactly once. The tensor axis shards a block's inner width ("heads",
# "mlp"), so that each branch in a block ends in a single sum over it.
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
    """Creates the `data` x `fsdp` x `tensor` mesh over all devices (in all processes).

    Args:
        data: number of replicas, over all slices; -1 uses all remaining devices.
        fsdp: how many shards parameters and optimizer state have.
        tensor: how many shards heads and MLP channels have.
        slices: number of slices, connected by a slower network, over which the replicas are
            distributed; -1 uses all slices.
        devices: defaults to `jax.devices()`.

    Raises:
        UserError: the devices do not form a mesh of this shape.
    """
    check(MeshConfig(data, fsdp, tensor, slices), "config.mesh")
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if data == -1:
        data = max(count // (fsdp * tensor), 1)
    shape = (data, fsdp, tensor)
    if math.prod(shape) != count:
        there, advice = f"there are {count}", "choose data x fsdp x tensor among "
        if count == 1:
            there, advice = "there is 1", "use "
        raise UserError(
            f"config.mesh with data={data} x fsdp={fsdp} x tensor={tensor} needs "
            f"{math.prod(shape)} devices but {there} here; {advice}{_meshes(count, tensor)}."
        )
    actual_slices = len({_slice_of(device) for device in devices})
    if slices not in (-1, actual_slices):
        raise UserError(
            f"config.mesh.slices={slices}, but the devices are in {actual_slices}; set it to "
            f"{actual_slices}, or to -1 for all slices."
        )
    if data % actual_slices:
        raise UserError(
            f"data={data} replicas cannot be distributed over {actual_slices} slices; set "
            f"config.mesh.data to a multiple of {actual_slices}."
        )
    arranged = _arranged(devices, shape, actual_slices)
    mesh = Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * 3)
    batch_readers(mesh)  # raises if processes could not read their batches
    return mesh


def _meshes(count: int, tensor: int) -> str:
    """Lists meshes for `count` devices: with the given tensor size if possible, else any."""
    divisors = [size for size in range(1, count + 1) if count % size == 0]
    tensor_sizes = [tensor] if count % tensor == 0 else divisors
    shapes = [
        f"{count // (fsdp * size)}x{fsdp}x{size}"
        for size, fsdp in itertools.product(tensor_sizes, divisors)
        if count % (fsdp * size) == 0
    ]
    return ", ".join(shapes[:8]) + (" and more" if len(shapes) > 8 else "")


def _slice_of(device: jax.Device) -> int:
    # GPUs have this attribute too, but there it counts machines.
    return getattr(device, "slice_index", 0) if device.platform == "tpu" else 0


def _arranged(
    devices: Sequence[jax.Device], shape: tuple[int, ...], slices: int
) -> Shaped[np.ndarray, "data fsdp tensor"]:
    """Arranges devices so that mesh neighbours are close; slices divide the first axis."""
    if devices[0].platform != "tpu":
        # Devices are ordered by process; links within a machine are faster than between machines.
        return np.asarray(devices).reshape(shape)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within = (shape[0] // slices, *shape[1:])
    between = (slices, *[1] * (len(shape) - 1))
    return mesh_utils.create_hybrid_device_mesh(
        within, between, devices, allow_split_physical_axes=True
    )


def parts_of(logical_axis: str, mesh: Mesh | AbstractMesh) -> int:
    """Returns how many shards a dimension with this name has (if they divide it)."""
    return math.prod(mesh.shape[axis] for axis in LOGICAL_AXES[logical_axis])


def batch_parts(mesh: Mesh | AbstractMesh) -> int:
    """Returns how many parts (consecutive rows) a global batch is split into."""
    return parts_of("batch", mesh)


def batch_readers(mesh: Mesh) -> dict[tuple[int, ...], list[int]]:
    """Groups processes by the global batch parts that their devices hold, in part order.

    Processes in the same list hold the same rows, sharded over the tensor axis, and must read the
    same data. On TPUs, where meshes follow the wiring, a process's parts need not be adjacent.

    Raises:
        UserError: processes share some parts and not others.
    """
    rows_by_process: dict[int, set[int]] = {}
    for part, devices in enumerate(mesh.devices.reshape(batch_parts(mesh), -1)):
        for device in devices:
            rows_by_process.setdefault(device.process_index, set()).add(part)
    readers: dict[tuple[int, ...], list[int]] = {}
    for process, parts in sorted(rows_by_process.items()):
        readers.setdefault(tuple(sorted(parts)), []).append(process)
    sizes = {len(parts) for parts in readers}
    if len(sizes) > 1 or sum(map(len, readers)) != batch_parts(mesh):
        local = len(mesh.devices.flat) // len(rows_by_process)
        raise UserError(
            f"config.mesh.tensor={mesh.shape['tensor']} makes processes of {local} devices share "
            f"some rows of a batch and not others; set it to a divisor or multiple of {local}."
        )
    return dict(sorted(readers.items()))


def mesh_batch_parts() -> int:
    """Returns `batch_parts` for the mesh set by `jax.set_mesh`; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else batch_parts(mesh)


def check_batch(batch_size: int, mesh: Mesh, name: str = "config.batch_size") -> None:
    """Raises `UserError` if the mesh does not divide a global batch; `name` is the setting."""
    parts = batch_parts(mesh)
    if batch_size % parts:
        lower = batch_size // parts * parts
        advice = f"{lower} or {lower + parts}" if lower else str(parts)
        raise UserError(
            f"{name}={batch_size} does not divide over the {parts} parts that data x fsdp make; "
            f"take a multiple of {parts} (for example {advice})."
        )


def partition_spec(
    logical_axes: Sequence[str | None], shape: Sequence[int] | None, mesh_shape: Mapping[str, int]
) -> PartitionSpec:
    """Maps an array's dimension names to mesh axes.

    A dimension that the mesh axes do not divide is replicated (`shape` None: assume it divides).
    """
    spec: list[tuple[str, ...] | None] = []
    for position, name in enumerate(logical_axes):
        axes = () if name is None else LOGICAL_AXES[name]
        size = math.prod(mesh_shape[axis] for axis in axes)
        whole = not axes or (shape is not None and shape[position] % size)
        spec.append(None if whole else axes)
    return PartitionSpec(*spec)


def shardings(axes: Any, abstract: Any, mesh: Mesh) -> Any:
    """Returns the shardings for a tree of arrays.

    Args:
        axes: tree of tuples of logical axis names, one tuple per array.
        abstract: the matching tree with arrays or `jax.ShapeDtypeStruct` leaves.
        mesh: the mesh.
    """
    return jax.tree.map(
        lambda array, names: NamedSharding(mesh, partition_spec(names, array.shape, mesh.shape)),
        abstract,
        axes,
    )


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that replicates an array."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding for an array whose first dimension is the global batch."""
    return NamedSharding(mesh, partition_spec(("batch",), None, mesh.shape))


def constrain(array: jax.Array, *logical_axes: str | None) -> jax.Array:
    """Constrains an activation's sharding on the mesh set by `jax.set_mesh`, if there is one.

    Without constraints the compiler may shard the embedding instead of the batch and then gather
    whole batches: 1.19 TiB per chip instead of 5.8 GiB (docs/distributed.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return array
    spec = partition_spec(logical_axes, array.shape, mesh.shape)
    return jax.lax.with_sharding_constraint(array, spec)


def global_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Creates global arrays from this process's rows.

    Args:
        batch: arrays [rows ...] with the rows for this process's parts (`batch_readers`), in order.
        mesh: the mesh.

    Returns:
        Arrays [global_rows ...], sharded over the batch axis.
    """
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()
    }


@dataclasses.dataclass(frozen=True)
class BatchShards:
    """The parts of a global batch, one per device, for code with explicit communication.

    `map` runs a function once per part; the other methods are used inside that function.
    In a batch with `count` k rows, part p holds the rows p k to (p + 1) k.

    Attributes:
        axes: mesh axes that shard the batch; empty for a single part.
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
        """Wraps a function on shards as a function on global arrays.

        Args:
            function: takes and returns one shard per array: dimensions named "batch" are sharded,
                arrays without such a dimension are replicated.
            inputs, outputs: logical axes for each argument and each result. Arguments and
                results are tuples.
        """
        if not self.axes:
            return function
        mesh = jax.sharding.get_abstract_mesh()
        specs = [
            tuple(partition_spec(names, None, mesh.shape) for names in arrays)
            for arrays in (inputs, outputs)
        ]
        # check_vma=False: otherwise loops must declare how their initial values vary over devices.
        # Only the `outputs` check and transposition need that, and gradients are explicit here.
        return jax.shard_map(function, in_specs=specs[0], out_specs=specs[1], check_vma=False)

    def index(self) -> jax.Array | int:
        """Returns this part's index."""
        return jax.lax.axis_index(self.axes) if self.axes else 0

    def gather(self, x: jax.Array) -> jax.Array:
        """Gathers an array [...] from every part to [count ...]."""
        return jax.lax.all_gather(x, self.axes) if self.axes else x[None]

    def sum(self, x: jax.Array) -> jax.Array:
        """Sums over the parts."""
        return jax.lax.psum(x, self.axes) if self.axes else x

    def scatter_sum(self, x: jax.Array) -> jax.Array:
        """Takes [count ...], row p for part p; returns the sum over rows for this part, [...]."""
        return jax.lax.psum_scatter(x, self.axes) if self.axes else x[0]

    def exchange(self, x: jax.Array) -> jax.Array:
        """Takes [count ...], row p for part p; returns the rows for this part, [count ...]."""
        return jax.lax.all_to_all(x, self.axes, 0, 0) if self.axes else x


def batch_shards(rows: int) -> BatchShards:
    """Returns how the mesh set by `jax.set_mesh` splits a batch of `rows`.

    There is one part without a mesh, and if the mesh does not divide `rows`.
    """
    count = mesh_batch_parts()
    return (
        BatchShards(LOGICAL_AXES["batch"], count)
        if count > 1 and rows % count == 0
        else BatchShards()
    )
