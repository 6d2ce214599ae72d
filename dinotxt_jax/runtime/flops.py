"""Counts the matrix-product FLOPs of a function in the program that JAX traces.

A compiler counts the body of a scan once; here it counts as often as it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

# Number of products in cuDNN's fused attention. Forward: scores, weighted values. Backward: the
# recomputed scores and a gradient for each of the four factors.
_FUSED_ATTENTION = {"dot_product_attention_fwd": 2, "dot_product_attention_bwd": 5}


def matmul_flops(function: Callable[..., Any], *abstract_args: Any) -> float:
    """Counts the floating-point operations of all matrix products and convolutions in one call.

    A multiplication and an addition count one each. Everything that is computed counts, including
    masked scores and recomputation in a rematerialised backward pass (trace with remat "none" for
    the model's FLOPs). Of a conditional, the most expensive branch counts. The body of `shard_map`
    counts once per device and the body of a Pallas kernel once per grid point.

    Args:
        function: a function for `jax.jit`; it is traced, not run.
        abstract_args: the arguments, for example `jax.ShapeDtypeStruct`.

    Returns:
        The sum over all devices.

    Raises:
        ValueError: a loop with products has a length that is unknown before it runs.
    """
    return _jaxpr_flops(jax.make_jaxpr(function)(*abstract_args).jaxpr)


def _jaxpr_flops(jaxpr: Any) -> float:
    return sum(_equation_flops(equation) for equation in jaxpr.eqns)


def _equation_flops(equation: Any) -> float:
    name, parameters = equation.primitive.name, equation.params
    fused = name.removesuffix("_wrapper")
    if name == "dot_general":
        return _dot_flops(equation)
    if name == "conv_general_dilated":
        return _convolution_flops(equation)
    if fused in _FUSED_ATTENTION:
        query, key = (variable.aval for variable in equation.invars[:2])
        length = key.shape[1 if parameters["layout"] == 0 else 2]
        return 2.0 * _FUSED_ATTENTION[fused] * query.size * length
    inner = [_jaxpr_flops(jaxpr) for jaxpr in _inner_jaxprs(parameters)]
    if name == "cond":
        return max(inner)
    if name == "while" and any(inner):
        raise ValueError(
            "a while loop with matrix products has a length that is unknown before it runs; use "
            "jax.lax.scan or a fori_loop with constant bounds, so that they can be counted"
        )
    return sum(inner) * _repetitions(name, parameters)


def _repetitions(name: str, parameters: dict[str, Any]) -> int:
    """Returns how often the body of an equation runs, summed over all devices."""
    if name == "scan":
        return parameters["length"]
    if name == "shard_map":
        shape = parameters["mesh"].shape
        return math.prod(shape[axis] for axis in parameters["newly_manual_axes"])
    if name == "pallas_call":
        return math.prod(parameters["grid_mapping"].grid)
    return 1


def _inner_jaxprs(parameters: dict[str, Any]) -> Iterator[Any]:
    for parameter in parameters.values():
        for value in parameter if isinstance(parameter, (tuple, list)) else (parameter,):
            inner = getattr(value, "jaxpr", value)  # unwrap a ClosedJaxpr
            if hasattr(inner, "eqns"):
                yield inner


def _dot_flops(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval
    depth = math.prod(left.shape[axis] for axis in contracted)
    return 2.0 * equation.outvars[0].aval.size * depth


def _convolution_flops(equation: Any) -> float:
    kernel = equation.invars[1].aval
    features = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2.0 * equation.outvars[0].aval.size * kernel.size / features
