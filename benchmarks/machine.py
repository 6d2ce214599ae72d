"""Names the machine on which figures were measured."""

from __future__ import annotations

import os
from pathlib import Path


def processor() -> str:
    """Returns the processor name from Linux, and the number of CPUs."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    return f"unknown processor, {os.cpu_count()} CPUs"


def device() -> str:
    """Returns the JAX version and the device kind (on CPUs: the processor name)."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"JAX {jax.__version__}, {processor() if kind == 'cpu' else kind}"
