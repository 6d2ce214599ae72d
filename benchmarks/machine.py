"""Names the machine that figures come from."""

from __future__ import annotations

import os
from pathlib import Path


def processor() -> str:
    """Returns the name of the processor, as Linux gives it, and the number of CPUs."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{line.partition(':')[2].strip()}, {os.cpu_count()} CPUs"
    return f"unknown processor, {os.cpu_count()} CPUs"


def device() -> str:
    """Returns the names of JAX and of the device that it computes on."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"JAX {jax.__version__}, {processor() if kind == 'cpu' else kind}"
