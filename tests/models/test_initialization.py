"""Initial values: the released distributions, identical on every mesh."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dinotxt_jax import sharding
from dinotxt_jax.config.architecture import BlockConfig
from dinotxt_jax.models.blocks import Block, stack
from dinotxt_jax.models.initialization import Constant, Normal, initial_array
from dinotxt_jax.models.layers import DTypes, abstract_arrays, initial_arrays


def drawn(
    spec: tuple[Any, ...] = (),
    *,
    shape: tuple[int, ...] = (3, 600, 1000),
    dtype: str = "float32",
    seed: int = 0,
    path: str = "text.kernel",
    stacked: bool = True,
) -> jax.Array:
    place = NamedSharding(sharding.make_mesh(2, 2, 2), PartitionSpec(*spec))
    struct = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=place)
    return initial_array(Normal(0.02), struct, seed, path, stacked)


@pytest.mark.parametrize(
    "spec",
    [(), ("data",), (None, "fsdp"), (None, "tensor", "fsdp"), (None, None, ("data", "fsdp"))],
)
def test_values_do_not_depend_on_the_sharding(spec: tuple[Any, ...]) -> None:
    """A layer with 600 rows has three blocks, which device shards cut."""
    shape = (4, 600, 1000)
    split = drawn(spec, shape=shape)
    assert split.sharding.spec == PartitionSpec(*spec)
    np.testing.assert_array_equal(split, drawn(shape=shape))


def test_values_follow_from_seed_path_and_layer() -> None:
    whole = np.asarray(drawn())
    np.testing.assert_array_equal(whole, drawn())
    others = [
        drawn(seed=1),
        drawn(path="text.other"),
        *whole[1:],
        whole[0, ::-1],
        whole[0, :, ::-1],
    ]
    for other in map(np.asarray, others):
        first = other if other.ndim == 2 else other[0]
        assert abs(np.corrcoef(first.ravel(), whole[0].ravel())[0, 1]) < 0.01
    # A deeper stack begins with the same layers as a shallower stack.
    np.testing.assert_array_equal(drawn(shape=(2, 600, 1000)), whole[:2])
    np.testing.assert_array_equal(drawn(shape=(600, 1000), stacked=False), whole[0])


def test_values_are_normal() -> None:
    """No cut at two standard deviations, in contrast to `jax.nn.initializers.truncated_normal`."""
    values = np.asarray(drawn(), np.float64).ravel()
    assert values.std() == pytest.approx(0.02, rel=0.003)
    assert abs(values.mean()) < 5 * 0.02 / math.sqrt(values.size)
    for sigmas in (1, 2, 3):
        outside = np.mean(np.abs(values) > 0.02 * sigmas)
        assert outside == pytest.approx(math.erfc(sigmas / math.sqrt(2)), rel=0.05)


def test_other_dtypes_are_roundings_of_the_same_draws() -> None:
    expected = np.asarray(drawn()).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(drawn(dtype="bfloat16"), expected)


def test_constants_broadcast() -> None:
    struct = jax.ShapeDtypeStruct(
        (2, 3), jnp.dtype("float32"), sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    )
    result = initial_array(Constant((1.0, 2.0, 3.0)), struct, 0, "periods", stacked=True)
    np.testing.assert_array_equal(result, [[1, 2, 3], [1, 2, 3]])


def test_drawing_compiles_nothing() -> None:
    block = stack(Block(BlockConfig(16, 2, 24), dtypes=DTypes()), 2)
    abstract = abstract_arrays(lambda: block, sharding.make_mesh(2, 2, 2))
    compiled: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **rest: compiled.append(event) if "compile" in event else None
    )
    initial_arrays(block, abstract, 0)
    assert compiled == []


def test_kernels_in_8_bits_have_no_initial_values() -> None:
    block = Block(BlockConfig(16, 2, 24), dtypes=DTypes(products="int8"))
    with pytest.raises(ValueError, match="kernel has no initial value, expected an array that is"):
        initial_arrays(block, abstract_arrays(lambda: block, None), 0)
