"""XLA options for CPUs, where the compiler's default is slow."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable

import jax

# XLA gives float32 products to YNNPACK, which takes twice as long as Eigen for attention and 10 %
# longer for other products (benchmarks/torch_train_step.py, JAX 0.10 and 0.12). In bfloat16
# YNNPACK is faster.
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
# XLA reads this option from the environment only.
_ONEDNN = re.compile(r"--xla_cpu_experimental_onednn_custom_call(=(true|1))?(\s|$)")


def compiler_options(dtypes: Iterable[str]) -> dict[str, str]:
    """Returns `compiler_options` for `jax.jit` of a model function.

    Args:
        dtypes: dtypes of the matrix products.

    Returns:
        The options; empty on accelerators, in bfloat16, if this JAX version does not know them, and
        if `XLA_FLAGS` sets them or gives products to oneDNN.
    """
    if "bfloat16" in dtypes or jax.default_backend() != "cpu":
        return {}
    if uses_onednn() or _LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {_LIBRARY: ""} if _is_known() else {}


def uses_onednn() -> bool:
    """Returns whether `XLA_FLAGS` lets XLA use oneDNN on CPUs (JAX 0.12)."""
    return _ONEDNN.search(os.environ.get("XLA_FLAGS", "")) is not None


@functools.cache
def _is_known() -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={_LIBRARY: ""}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
