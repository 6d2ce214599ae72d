"""Accelerator peak rates and memory, from the vendors' specifications."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of TPU chip; rates are the vendor's peaks.

    Attributes:
        device_kinds: `device_kind` in JAX, depending on the runtime.
        flops: bfloat16 operations per second.
        hbm: nominal memory in bytes; a program can use slightly less (`Topology.limit`).
        hbm_rate: bytes per second.
        ici_rate: bytes per second sent over all links to other chips in the slice.
        dcn_rate: the chip's share in the host's network to other slices, bytes per second.
        dimensions: number of torus dimensions.
        largest: maximum number of chips in a slice.
        devices: JAX devices per chip. Two cores that act as one ("megacore") are one device.
        usable: bytes that the compiler gives a program on one device.
        options: arguments for `get_topology_desc`.
        accelerator: the generation in the accelerator types that Google Cloud's TPU API knows;
            empty if slices are requested by topology only.
        counted: what an accelerator type counts, per chip: its TensorCores (v4, v5p) or itself.
    """

    device_kinds: tuple[str, ...]
    flops: float
    hbm: float
    hbm_rate: float
    ici_rate: float
    dcn_rate: float
    dimensions: int
    largest: int
    usable: float
    devices: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    accelerator: str = ""
    counted: int = 1


GIB = 2.0**30
# Sources: the pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" on docs.cloud.google.com/tpu; links
# count one direction, half the "bidirectional" figure. v4's links and the DCN share for v4 and
# TPU7x are from "How to Scale Your Model" (jax-ml.github.io/scaling-book). `usable` is the limit in
# libtpu 0.0.42's out-of-memory message.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        *(("TPU v4",), 275e12, 32 * GIB, 1200e9, 270e9, 6.25e9, 3, 4096, 30.75 * GIB),
        options={"chip_config_name": "megacore"},
        accelerator="v4",
        counted=2,
    ),
    "v5e": Chip(
        *(("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9, 3.125e9, 2, 256, 15.75 * GIB),
        accelerator="v5litepod",
    ),
    "v5p": Chip(
        *(("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, 3, 6144, 95.74 * GIB),
        accelerator="v5p",
        counted=2,
    ),
    "v6e": Chip(
        *(("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 400e9, 12.5e9, 2, 256, 31.25 * GIB),
        accelerator="v6e",
    ),
    "tpu7x": Chip(
        ("TPU7x",), 2307e12, 192 * GIB, 7380e9, 600e9, 12.5e9, 3, 9216, 94.75 * GIB, devices=2
    ),
}

# Dense bfloat16 operations per second from NVIDIA's data sheets. The first name that occurs in the
# device kind applies, so longer names come first.
_GPU_FLOPS = {
    "GB200": 2250e12,
    "B200": 2250e12,
    "H200 NVL": 835e12,
    "H200": 989e12,
    "GH200": 989e12,
    "H100 NVL": 835e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "A40": 149.7e12,
    "A10G": 70e12,
    "A10": 125e12,
    "L4": 121e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns a device kind's bfloat16 operations per second, or None if unknown."""
    for chip in CHIPS.values():
        if device_kind in chip.device_kinds:
            return chip.flops / chip.devices
    for name, flops in _GPU_FLOPS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return flops
    return None
