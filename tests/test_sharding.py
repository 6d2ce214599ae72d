"""The mesh, the table, and what is said when they do not fit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from dinotxt_jax import UserError, sharding


def test_the_mesh_takes_what_is_left_for_data() -> None:
    assert dict(sharding.make_mesh(fsdp=2).shape) == {"data": 4, "fsdp": 2}


@pytest.mark.parametrize(("data", "fsdp"), [(3, 2), (-1, 3), (16, 1)])
def test_a_mesh_that_does_not_fit_names_those_that_do(data: int, fsdp: int) -> None:
    with pytest.raises(
        UserError, match=r"there are 8; choose data x fsdp among 8x1, 4x2, 2x4, 1x8"
    ):
        sharding.make_mesh(data, fsdp)


def test_a_mesh_of_no_devices_is_refused() -> None:
    with pytest.raises(UserError, match="is not a mesh"):
        sharding.make_mesh(0, 1)


def test_a_batch_that_does_not_divide_names_one_that_does() -> None:
    with pytest.raises(UserError, match=r"batch_size=12 does not divide over 8 .* 8 or 16"):
        sharding.check_batch(12, sharding.make_mesh())


def test_dimensions_that_do_not_divide_stay_whole() -> None:
    shape = {"data": 4, "fsdp": 2}
    assert sharding.partition_spec(("embed", "mlp"), (6, 4), shape) == PartitionSpec(
        ("fsdp",), None
    )
    assert sharding.partition_spec(("embed", "mlp"), (5, 4), shape) == PartitionSpec(None, None)


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
