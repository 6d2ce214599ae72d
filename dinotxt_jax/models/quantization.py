"""8-bit products of a frozen backbone: kernels are quantised once, activations on the fly.

A kernel is stored as 8-bit numbers with one float32 factor per output channel. Activations get one
factor per token. Both factors are the largest magnitude over the summed dimensions, so the sums
contain 8-bit numbers only (int8: exact in int32; float8: in float32) and the factors multiply the
result. (Qwix 0.1.8 does the same arithmetic but does not quantise kernels of stacked, scanned
blocks.)
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num

from dinotxt_jax.storage.quantized_kernels import quantized


def product(
    x: Float[Array, "..."], kernel: Num[Array, "..."], scale: Float[Array, "..."], contracted: int
) -> Float[Array, "..."]:
    """Contracts the last dimensions of `x` with the first dimensions of a kernel, in float32.

    Args:
        x: activations.
        kernel, scale: a kernel quantised by `quantized` over the contracted dimensions.
        contracted: number of contracted dimensions.
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
