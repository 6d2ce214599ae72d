"""The parts with parameters that blocks are made of, and how a parameter is declared.

Arrays are declared once, with shape, initialiser and the logical name of every dimension
(`dinotxt_jax.sharding`); from that declaration come the abstract array, its sharding and its value.

Shapes: b batch, d width of the residual stream.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from dinotxt_jax import sharding
from dinotxt_jax.models import quantization
from dinotxt_jax.storage.quantized_kernels import quantized

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class DTypes:
    """The three precisions of a model.

    Attributes:
        parameters: what parameters are stored in.
        compute: what matrix products run in (and activations are kept in).
        normalization: softmax, LayerNorm statistics and pooling of features.
        products: "none", or the 8-bit dtype that kernels of blocks are stored in and multiplied in
            (`models.quantization`): of arrays that are not trained.
    """

    parameters: str = "float32"
    compute: str = "float32"
    normalization: str = "float32"
    products: str = "none"


def parameter(
    rngs: nnx.Rngs,
    initializer: Initializer,
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtypes: DTypes,
) -> nnx.Param:
    """Declares an array: shape, logical axes, initialiser and dtype in one place."""
    if len(shape) != len(axes):
        raise ValueError(f"{len(axes)} logical axes {axes} for an array of shape {shape}")
    value = initializer(rngs.params(), shape, jnp.dtype(dtypes.parameters))
    return nnx.Param(value, logical_axes=axes)


def constant(value: float) -> Initializer:
    """An initialiser that fills with one value."""
    return jax.nn.initializers.constant(value)


def normal(stddev: float) -> Initializer:
    """An initialiser that draws from N(0, stddev^2)."""
    return jax.nn.initializers.normal(stddev)


class Dense(nnx.Module):
    """`x @ kernel + bias` over one or several trailing dimensions.

    With `use_bias_mask` the bias is multiplied by a stored mask (DINOv3's keys have no bias). With
    8-bit `dtypes.products` the kernel has factors per output channel beside it.
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
        rngs: nnx.Rngs,
        use_bias_mask: bool = False,
    ):
        self.contracted = len(inputs)
        self.dtype = dtypes.compute
        kernel, scale = parameter(rngs, initializer, inputs + outputs, axes, dtypes), None
        if dtypes.products != "none":
            summed = tuple(range(len(inputs)))
            pair = quantized(kernel[...], dtypes.products, summed)
            kernel, scale = (nnx.Param(array, logical_axes=axes) for array in pair)
        self.kernel, self.kernel_scale = kernel, scale
        rest = axes[len(inputs) :]
        self.bias = parameter(rngs, constant(0.0), outputs, rest, dtypes) if use_bias else None
        self.bias_mask = (
            parameter(rngs, constant(1.0), outputs, rest, dtypes) if use_bias_mask else None
        )

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
    """LayerNorm over the last dimension, statistics in `dtypes.normalization`."""

    def __init__(self, dim: int, epsilon: float, *, dtypes: DTypes, rngs: nnx.Rngs):
        self.epsilon = epsilon
        self.dtypes = dtypes
        self.scale = parameter(rngs, constant(1.0), (dim,), ("embed",), dtypes)
        self.bias = parameter(rngs, constant(0.0), (dim,), ("embed",), dtypes)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        wide = x.astype(self.dtypes.normalization)
        centred = wide - wide.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + self.epsilon)
        y = y * self.scale[...].astype(y.dtype) + self.bias[...].astype(y.dtype)
        return y.astype(self.dtypes.compute)


class LayerScale(nnx.Module):
    """A learned factor per channel on a branch's output (arXiv 2103.17239)."""

    def __init__(self, dim: int, initial: float, *, dtypes: DTypes, rngs: nnx.Rngs):
        self.scale = parameter(rngs, constant(initial), (dim,), ("embed",), dtypes)

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        return x * self.scale[...].astype(x.dtype)


def abstract_arrays(module: Callable[[], nnx.Module], mesh: Mesh | None) -> Any:
    """Shapes, dtypes and shardings of a module's arrays, as a nested dict, without making them.

    Args:
        module: makes the module.
        mesh: None puts everything on the first device.
    """
    state = nnx.state(nnx.eval_shape(module))
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])

    def struct(variable: nnx.Variable) -> jax.ShapeDtypeStruct:
        axes = variable.get_metadata("logical_axes")
        placed = (
            single
            if mesh is None
            else jax.sharding.NamedSharding(
                mesh, sharding.partition_spec(axes, variable.shape, mesh.shape)
            )
        )
        return jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=placed)

    is_variable = lambda leaf: isinstance(leaf, nnx.Variable)  # noqa: E731
    return nnx.to_pure_dict(jax.tree.map(struct, state, is_leaf=is_variable))
