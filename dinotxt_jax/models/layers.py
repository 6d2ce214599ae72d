"""Layers with parameters that blocks are built from, and parameter declarations.

A module declares arrays and does not allocate them. A declaration contains the shape, the dtype,
the initialiser and a logical name for every dimension (`dinotxt_jax.sharding`). The abstract array
and the sharding are derived from the declaration; the values are initialised from it or read from
disk.

Shapes: b batch, d width of the residual stream.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dinotxt_jax import sharding
from dinotxt_jax.models import quantization
from dinotxt_jax.models.initialization import Constant, Initializer, initial_array
from dinotxt_jax.storage.quantized_kernels import quantized


@dataclasses.dataclass(frozen=True)
class DTypes:
    """Model precisions.

    Attributes:
        parameters: storage dtype for parameters.
        compute: dtype for matrix products and activations.
        normalization: dtype for softmax, LayerNorm statistics and feature pooling.
        products: "none", or the 8-bit dtype for storing and multiplying block kernels
            (`models.quantization`); only for arrays that are not trained.
    """

    parameters: str = "float32"
    compute: str = "float32"
    normalization: str = "float32"
    products: str = "none"


def parameter(
    initializer: Initializer, shape: tuple[int, ...], axes: tuple[str, ...], dtype: str
) -> nnx.Param:
    """Declares an array: shape, logical axes, initialiser and dtype in one place."""
    if len(shape) != len(axes):
        raise ValueError(f"{len(axes)} logical axes {axes} for an array of shape {shape}")
    array = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    return nnx.Param(array, logical_axes=axes, initializer=initializer)


class Dense(nnx.Module):
    """Computes `x @ kernel + bias` over one or several trailing dimensions.

    With `use_bias_mask` the bias is multiplied by a stored mask (DINOv3's keys have no bias). With
    8-bit `dtypes.products` the kernel is stored with a scale per output channel.
    """

    def __init__(
        self,
        inputs: tuple[int, ...],
        outputs: tuple[int, ...],
        axes: tuple[str, ...],
        *,
        use_bias: bool,
        initializer: Initializer,
        dtypes: DTypes,
        use_bias_mask: bool = False,
    ):
        self.contracted = len(inputs)
        self.dtype = dtypes.compute
        stored, rest = dtypes.parameters, axes[len(inputs) :]
        kernel, scale = parameter(initializer, inputs + outputs, axes, stored), None
        if dtypes.products != "none":
            summed = tuple(range(len(inputs)))
            wide = jax.ShapeDtypeStruct(kernel.shape, kernel.dtype)
            pair = jax.eval_shape(lambda values: quantized(values, dtypes.products, summed), wide)
            # No initialiser: 8-bit kernels are quantized from stored kernels.
            kernel, scale = (
                nnx.Param(array, logical_axes=axes, initializer=None) for array in pair
            )
        self.kernel, self.kernel_scale = kernel, scale
        self.bias = parameter(Constant(0.0), outputs, rest, stored) if use_bias else None
        self.bias_mask = parameter(Constant(1.0), outputs, rest, stored) if use_bias_mask else None

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        if self.kernel_scale is None:
            kernel = self.kernel[...].astype(self.dtype)
            y = jnp.tensordot(x.astype(self.dtype), kernel, self.contracted)
        else:
            kernel, scale = self.kernel[...], self.kernel_scale[...]
            y = quantization.product(x, kernel, scale, self.contracted).astype(self.dtype)
        if self.bias is None:
            return y
        bias = self.bias[...]
        if self.bias_mask is not None:
            bias = bias * self.bias_mask[...]
        return y + bias.astype(self.dtype)


class LayerNorm(nnx.Module):
    """LayerNorm over the last dimension, with statistics in `dtypes.normalization`."""

    def __init__(self, dim: int, epsilon: float, *, dtypes: DTypes):
        self.epsilon = epsilon
        self.dtypes = dtypes
        self.scale = parameter(Constant(1.0), (dim,), ("embed",), dtypes.parameters)
        self.bias = parameter(Constant(0.0), (dim,), ("embed",), dtypes.parameters)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(self.dtypes.normalization)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        y = y * self.scale[...].astype(y.dtype) + self.bias[...].astype(y.dtype)
        return y.astype(self.dtypes.compute)


class LayerScale(nnx.Module):
    """Multiplies a branch's output by a learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float, *, dtypes: DTypes):
        self.scale = parameter(Constant(initial), (dim,), ("embed",), dtypes.parameters)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return x * self.scale[...].astype(x.dtype)


def abstract_arrays(module: Callable[[], nnx.Module], mesh: Mesh | None) -> Any:
    """Returns the shapes, dtypes and shardings of a module's arrays as a nested dict.

    Args:
        module: a function that constructs the module.
        mesh: device mesh; None places every array on the first device.
    """
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def struct(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        """Returns shape, dtype and sharding of an array."""
        axes = variable.get_metadata("logical_axes")
        placed = (
            single
            if mesh is None
            else jax.sharding.NamedSharding(
                mesh, sharding.partition_spec(axes, variable.shape, mesh.shape)
            )
        )
        return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=placed)

    return _of_variables(struct, module())


def logical_axes(module: nnx.Module) -> Any:
    """Returns the dimension names of a module's arrays as a nested dict of tuples."""
    return _of_variables(lambda variable: variable.get_metadata("logical_axes"), module)


def initial_arrays(module: nnx.Module, abstract: Any, seed: int) -> Any:
    """Returns a module's arrays with initial values (`initialization`) as a nested dict.

    Args:
        module: declares the arrays.
        abstract: shapes, dtypes and shardings (`abstract_arrays`) of the sub-modules to
            initialise, keyed by name.
        seed: run seed.

    Raises:
        ValueError: the module has 8-bit kernels, which have no initial value.
    """

    def draw(variable: nnx.Variable, path: Any, struct: jax.ShapeDtypeStruct) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        initializer = variable.get_metadata("initializer")
        if initializer is None:
            raise ValueError(f"{name} has no initial value, expected an array that is read")
        stacked = variable.get_metadata("logical_axes")[:1] == ("layers",)
        return initial_array(initializer, struct, seed, name, stacked)

    drawers = _of_variables(lambda variable: functools.partial(draw, variable), module)
    return jax.tree_util.tree_map_with_path(
        lambda path, struct, drawer: drawer(path, struct),
        abstract,
        {name: drawers[name] for name in abstract},
    )


def _of_variables(function: Callable[[nnx.Variable], Any], module: nnx.Module) -> Any:
    """Applies a function to every variable in a module and returns a nested dict."""
    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(function, nnx.state(module), is_leaf=is_variable))
