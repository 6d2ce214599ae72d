"""Products of a frozen backbone in 8 bits: kernels quantised once, activations as they come.

A kernel is stored as 8-bit numbers and one float32 factor per output channel; activations get a
factor per token when they meet it. Both are the largest magnitude over what the product sums up,
so that sums are of 8-bit numbers alone (int8: exact in int32; float8: in float32) and the factors
multiply the result. (Qwix 0.1.8 does the same arithmetic but leaves kernels of stacked, scanned
blocks as they are: it looks for parameters of the module that runs, and a scan makes its own.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dinotxt_jax.storage.quantized_kernels import quantized


def product(
    x: Float[Array, "..."], kernel: Num[Array, "..."], scale: Float[Array, "..."], contracted: int
) -> Float[Array, "..."]:
    """`x @ kernel` over the last dimensions of `x` and the first of the kernel, in float32.

    Args:
        x: activations.
        kernel, scale: what `quantized` made of a kernel over the dimensions that are contracted.
        contracted: how many those are.
    """
    last = tuple(range(x.ndim - contracted, x.ndim))
    first = tuple(range(contracted))
    numbers, factors = quantized(x, kernel.dtype.name, last)
    sums = jax.lax.dot_general(
        numbers,
        kernel,
        ((last, first), ((), ())),
        preferred_element_type="int32" if jnp.issubdtype(kernel.dtype, jnp.integer) else "float32",
    )
    outputs = kernel.ndim - contracted
    by_token = factors.reshape(*x.shape[: x.ndim - contracted], *(1,) * outputs)
    return sums.astype("float32") * by_token * scale.squeeze(first)
