"""Methods of modules as compiled functions, and the checks of what enters them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dinotxt_jax.config import DTYPE_NAMES
from dinotxt_jax.errors import UserError, check_choice
from dinotxt_jax.runtime.compiler_options import compiler_options


def run_method(
    graphdef: Any, arrays: Any, method: str, options: tuple[Any, ...], *inputs: Any
) -> Any:
    """One method of a module as a pure function; compiled once per module, options and shapes."""
    leaves = jax.tree.leaves((arrays, inputs))
    # Options are for the outermost function only, which is not this one inside a user's own jit.
    inside = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    dtypes = {str(leaf.dtype) for leaf in leaves}
    chosen = {} if inside else compiler_options(dtypes)
    return _compiled(tuple(chosen.items()))(graphdef, arrays, method, options, *inputs)


@functools.cache
def _compiled(chosen: tuple[tuple[str, str], ...]) -> Callable[..., Any]:
    return jax.jit(
        _run_method,
        static_argnames=("graphdef", "method", "options"),
        compiler_options=dict(chosen),
    )


def _run_method(
    graphdef: Any, arrays: Any, method: str, options: tuple[Any, ...], *inputs: Any
) -> Any:
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
    """The name of a dtype of arrays and products, if it is one."""
    check_choice("dtype", dtype, DTYPE_NAMES)
    return dtype
