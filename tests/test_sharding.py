"""The mesh, the sharding table, and the messages when they do not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dinotxt_jax import UserError, sharding


def test_the_data_axis_takes_the_remaining_devices() -> None:
    assert dict(sharding.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    assert dict(sharding.make_mesh(tensor=4).shape) == {"data": 2, "fsdp": 1, "tensor": 4}


@pytest.mark.parametrize(("data", "fsdp"), [(3, 2), (-1, 3), (16, 1)])
def test_a_mesh_that_does_not_fit_names_those_that_do(data: int, fsdp: int) -> None:
    with pytest.raises(
        UserError, match=r"there are 8 here; choose data .* among 8x1x1, 4x2x1, 2x4x1, 1x8x1\."
    ):
        sharding.make_mesh(data, fsdp)


def test_a_size_of_tensor_that_does_not_divide_the_devices_names_all_meshes() -> None:
    with pytest.raises(UserError, match=r"tensor=3 .* among 8x1x1, .*, 4x1x2, .* and more\."):
        sharding.make_mesh(tensor=3)


def test_one_device_names_the_only_mesh() -> None:
    with pytest.raises(UserError, match=r"needs 2 devices but there is 1 here; use 1x1x1\."):
        sharding.make_mesh(fsdp=2, devices=jax.devices()[:1])


class Chip:
    """A chip of a 4 x 4 slice with 2 x 2 chips per host, with the attributes that a mesh reads."""

    platform, device_kind = "tpu", "TPU v5 lite"

    def __init__(self, number: int, slice_index: int = 0):
        self.id, self.slice_index, self.core_on_chip = 16 * slice_index + number, slice_index, 0
        y, x = divmod(number, 4)
        self.coords = (x, y, 0)
        self.process_index = 4 * slice_index + 2 * (y // 2) + x // 2


@pytest.mark.parametrize("slices", [2, -1])
def test_slices_divide_the_replicas(slices: int) -> None:
    chips = [Chip(number, slice_index) for number in range(16) for slice_index in range(2)]
    mesh = sharding.make_mesh(8, 4, slices=slices, devices=chips)
    result = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    np.testing.assert_array_equal(result[:, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1])
    assert (result == result[:, :1, :1]).all()


def test_a_wrong_slice_count_is_refused() -> None:
    chips = [Chip(number, slice_index) for number in range(16) for slice_index in range(2)]
    with pytest.raises(UserError, match=r"mesh.slices=1, but the devices are in 2; set it to 2"):
        sharding.make_mesh(8, 4, slices=1, devices=chips)
    with pytest.raises(UserError, match=r"data=1 replicas cannot be distributed over 2 slices"):
        sharding.make_mesh(1, 32, devices=chips)


def test_hosts_read_the_rows_of_their_chips() -> None:
    mesh = sharding.make_mesh(fsdp=4, devices=[Chip(number) for number in range(16)])
    readers = sharding.batch_readers(mesh)
    hosts = {part: host for parts, (host,) in readers.items() for part in parts}
    assert hosts == {part: chip.process_index for part, chip in enumerate(mesh.devices.flat)}
    assert any(parts[-1] - parts[0] > 3 for parts in readers), "rows of a host are neighbours"


class Gpu:
    """A GPU of a process, with the attributes that a mesh reads."""

    platform, device_kind = "gpu", "NVIDIA H100 80GB HBM3"

    def __init__(self, number: int, process: int):
        self.id, self.process_index = number, process


def test_processes_that_share_rows_over_the_tensor_axis_read_the_same() -> None:
    two_each = [Gpu(number, number // 2) for number in range(8)]
    groups = {
        tensor: list(
            sharding.batch_readers(sharding.make_mesh(tensor=tensor, devices=two_each)).values()
        )
        for tensor in (1, 2, 4, 8)
    }
    assert groups[1] == groups[2] == [[0], [1], [2], [3]]
    assert groups[4] == [[0, 1], [2, 3]]
    assert groups[8] == [[0, 1, 2, 3]]
    three_each = [Gpu(number, number // 3) for number in range(12)]
    with pytest.raises(UserError, match="tensor=2 makes processes of 3 devices share some rows"):
        sharding.make_mesh(tensor=2, devices=three_each)


def test_slices_are_refused_on_devices_without_slices() -> None:
    with pytest.raises(UserError, match=r"slices=2, but the devices are in 1; set it to 1"):
        sharding.make_mesh(slices=2)


def test_a_mesh_of_no_devices_is_refused() -> None:
    with pytest.raises(UserError, match="config.mesh.data is 0, expected -1, or a number from 1"):
        sharding.make_mesh(0, 1)


def test_a_batch_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(UserError, match=r"batch_size=12 does not divide over the 8 .* 8 or 16"):
        sharding.check_batch(12, sharding.make_mesh())


def test_dimensions_that_do_not_divide_stay_whole() -> None:
    shape = {"data": 2, "fsdp": 2, "tensor": 2}
    whole, split = (sharding.partition_spec(("embed", "mlp"), (n, n), shape) for n in (5, 6))
    assert split == PartitionSpec(("fsdp",), ("tensor",))
    assert whole == PartitionSpec(None, None)


def test_without_a_mesh_nothing_is_pinned() -> None:
    x = jnp.ones((3, 2))
    assert sharding.constrain(x, "batch", None) is x


def test_activations_are_pinned_to_the_batch_axes() -> None:
    mesh = sharding.make_mesh(fsdp=2)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(x * 2, "batch", None))(jnp.ones((16, 4)))
    assert y.sharding.shard_shape(y.shape) == (2, 4)


def test_a_global_batch_keeps_its_order() -> None:
    mesh = sharding.make_mesh()
    rows = np.arange(16).reshape(16, 1)
    placed = sharding.global_batch({"x": rows}, mesh)["x"]
    np.testing.assert_array_equal(placed, rows)
    assert len(placed.addressable_shards) == 8


@pytest.mark.parametrize(("data", "fsdp"), [(8, 1), (2, 4)])
def test_parts_of_a_batch_exchange_their_rows(data: int, fsdp: int) -> None:
    def function(x: jax.Array) -> tuple[jax.Array, ...]:
        everything = shards.gather(x)
        sent = x[0] * 100 + jnp.arange(8)  # from part x to part 0, 1, ...
        return (
            everything.reshape(1, 8),
            shards.exchange(sent).reshape(1, 8),
            shards.scatter_sum(sent)[None],
            shards.sum(x[0]),
            x * 0 + shards.index(),
        )

    with jax.set_mesh(sharding.make_mesh(data, fsdp)):
        shards = sharding.batch_shards(8)
        batch = ("batch",)
        run = shards.map(function, (batch,), (batch, batch, batch, (), batch))
        gathered, exchanged, scattered, total, index = jax.jit(run)(jnp.arange(8))
    order = np.arange(8)
    np.testing.assert_array_equal(gathered, np.tile(order, (8, 1)))
    np.testing.assert_array_equal(exchanged, order * 100 + order[:, None])
    np.testing.assert_array_equal(scattered, 2800 + 8 * order)
    np.testing.assert_array_equal(total, 28)
    np.testing.assert_array_equal(index, order)


def test_a_batch_that_does_not_divide_is_one_part() -> None:
    assert sharding.batch_shards(16).count == 1
    with jax.set_mesh(sharding.make_mesh(2, 4)):
        assert [sharding.batch_shards(rows).count for rows in (16, 12)] == [8, 1]
    shards = sharding.BatchShards()
    x = jnp.arange(3)
    np.testing.assert_array_equal(shards.gather(x), x[None])
    np.testing.assert_array_equal(shards.scatter_sum(x[None]), x)
    np.testing.assert_array_equal(shards.exchange(x[None]), x[None])
    np.testing.assert_array_equal(shards.sum(x), x)
