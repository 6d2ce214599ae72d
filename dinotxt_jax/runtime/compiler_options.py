"""What the compiler is told on CPUs, because its own choice is slow there."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable

import jax

# XLA gives float32 products to YNNPACK, which takes twice as long as Eigen for those of attention
# and a tenth longer for the others (benchmarks/torch_train_step.py, JAX 0.10 and 0.12); in bfloat16
# it is the faster one.
_LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
# XLA takes this one from the environment only.
_ONEDNN = re.compile(r"--xla_cpu_experimental_onednn_custom_call(=(true|1))?(\s|$)")


def compiler_options(dtypes: Iterable[str]) -> dict[str, str]:
    """`compiler_options` of `jax.jit` for a function of the models.

    Args:
        dtypes: names of what its matrix products run in.

    Returns:
        None of them on accelerators, in half precision, where this JAX does not know them, and
        where `XLA_FLAGS` has them or gives products to oneDNN.
    """
    if "bfloat16" in dtypes or jax.default_backend() != "cpu":
        return {}
    if uses_onednn() or _LIBRARY in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {_LIBRARY: ""} if _is_known() else {}


def uses_onednn() -> bool:
    """Whether `XLA_FLAGS` lets CPUs give products to oneDNN (JAX 0.12)."""
    return _ONEDNN.search(os.environ.get("XLA_FLAGS", "")) is not None


@functools.cache
def _is_known() -> bool:
    try:
        jax.jit(lambda: 0, compiler_options={_LIBRARY: ""}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
