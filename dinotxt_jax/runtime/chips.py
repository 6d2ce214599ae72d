"""What accelerators can do, as their vendors say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU; rates are the vendor's peaks.

    Attributes:
        device_kinds: what JAX calls its devices, by runtime.
        flops: bfloat16 operations a second.
        hbm: bytes of memory sold with the chip; a program gets a little less (`Topology.limit`).
        hbm_rate: bytes a second.
        ici_rate: bytes a second that leave it over all its links to other chips of the slice.
        dcn_rate: its part of what leaves a host for other slices, bytes a second.
        dimensions: of the torus.
        largest: most chips of a slice.
        devices: JAX devices of a chip. Two cores that act as one ("megacore") are one device.
        usable: bytes of memory that the compiler gives a program on one device.
        options: what `get_topology_desc` wants for this kind.
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


GIB = 2.0**30
# The pages "TPU v4", "v5e", "v5p", "v6e" and "TPU7x" of docs.cloud.google.com/tpu; links count one
# way, half of the "bidirectional" figure. v4's links and the share in the data centre network of
# v4 and TPU7x are those of "How to Scale Your Model" (jax-ml.github.io/scaling-book). `usable` is
# what libtpu 0.0.42 names when a program asks for too much.
CHIPS: Mapping[str, Chip] = {
    "v4": Chip(
        *(("TPU v4",), 275e12, 32 * GIB, 1200e9, 270e9, 6.25e9, 3, 4096, 30.75 * GIB),
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip(
        ("TPU v5 lite", "TPU v5e"), 197e12, 16 * GIB, 819e9, 200e9, 3.125e9, 2, 256, 15.75 * GIB
    ),
    "v5p": Chip(
        ("TPU v5", "TPU v5p"), 459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, 3, 6144, 95.74 * GIB
    ),
    "v6e": Chip(
        ("TPU v6 lite", "TPU v6e"), 918e12, 32 * GIB, 1638e9, 400e9, 12.5e9, 2, 256, 31.25 * GIB
    ),
    "tpu7x": Chip(
        ("TPU7x",), 2307e12, 192 * GIB, 7380e9, 600e9, 12.5e9, 3, 9216, 94.75 * GIB, devices=2
    ),
}

# bfloat16 products without sparsity, operations a second, as NVIDIA's data sheets have them; the
# first name that occurs in a device's is its.
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
    """bfloat16 operations a second of a device (`jax.Device.device_kind`), if they are known."""
    for chip in CHIPS.values():
        if device_kind in chip.device_kinds:
            return chip.flops / chip.devices
    for name, flops in _GPU_FLOPS.items():
        if re.search(rf"\b{name}\b", device_kind):
            return flops
    return None
