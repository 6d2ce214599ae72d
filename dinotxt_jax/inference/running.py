"""Methods of modules as compiled functions, and the checks of what enters them."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinotxt_jax.config import DTYPE_NAMES
from dinotxt_jax.errors import UserError


@functools.partial(jax.jit, static_argnames=("graphdef", "method", "options"))
def run_method(
    graphdef: Any, arrays: Any, method: str, options: tuple[Any, ...], *inputs: Any
) -> Any:
    """One method of a module as a pure function; compiled once per module, options and shapes."""
    return getattr(nnx.merge(graphdef, arrays), method)(*inputs, *options)


def checked_images(images: Any) -> jax.Array:
    """Images as an array, or a `UserError` that says what is expected."""
    found = images if isinstance(images, jax.Array) else np.asarray(images)
    if found.ndim != 4 or found.shape[-1] != 3 or not jnp.issubdtype(found.dtype, jnp.floating):
        raise UserError(
            f"images are {found.dtype}{list(found.shape)}, expected floating point [b h w 3], "
            "normalised with description.preprocessing (data.transforms.normalize does it)."
        )
    return jnp.asarray(found)


def checked_dtype(dtype: str) -> str:
    if dtype not in DTYPE_NAMES:
        raise UserError(f"dtype={dtype!r} is unknown; choose {' or '.join(DTYPE_NAMES)}.")
    return dtype
