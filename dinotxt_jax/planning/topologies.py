"""TPU slices by name: what their chips can do, and devices to compile for where there are none."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re
from collections.abc import Mapping
from typing import Any

import jax

from dinotxt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU; rates are the vendor's peaks.

    Attributes:
        device_kind: what JAX calls its devices.
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

    device_kind: str
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
        *("TPU v4", 275e12, 32 * GIB, 1200e9, 270e9, 6.25e9, 3, 4096, 30.75 * GIB),
        options={"chip_config_name": "megacore"},
    ),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9, 3.125e9, 2, 256, 15.75 * GIB),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 600e9, 6.25e9, 3, 6144, 95.74 * GIB),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 400e9, 12.5e9, 2, 256, 31.25 * GIB),
    "tpu7x": Chip(
        "TPU7x", 2307e12, 192 * GIB, 7380e9, 600e9, 12.5e9, 3, 9216, 94.75 * GIB, devices=2
    ),
}
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True)
class Topology:
    """Slices of one kind and shape.

    Attributes:
        name: as given, `KIND:AxB[xC]`, several slices as `N*KIND:AxB[xC]`.
        kind: a key of `CHIPS`.
        shape: chips of a slice along each dimension of its torus.
        slices: how many.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def chip(self) -> Chip:
        return CHIPS[self.kind]

    @property
    def chips(self) -> int:
        return self.slices * math.prod(self.shape)

    @property
    def device_count(self) -> int:
        return self.chips * self.chip.devices

    def devices(self) -> list[jax.Device]:
        """Devices that can be compiled for, and nothing else.

        Raises:
            UserError: libtpu is not installed, or refuses the topology.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                "compiling for a TPU needs libtpu, which is not installed; run pip install "
                "'jax[tpu]' (any x86-64 Linux machine will do, no TPU is needed)."
            )
        from jax.experimental import topologies

        name = f"{self.kind}:{'x'.join(map(str, self.shape))}"
        options = dict(self.chip.options)
        if self.slices > 1:
            options["num_slices"] = self.slices
        try:
            described = topologies.get_topology_desc(name, platform="tpu", **options)
        except jax.errors.JaxRuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"libtpu does not give the topology {self.name} ({reason}); install the libtpu "
                "that this JAX asks for with pip install 'jax[tpu]', or choose another topology."
            ) from error
        return list(described.devices)


def parse_topology(name: str) -> Topology:
    """The topology of a name such as "v5e:16x16", "v5p:4x4x8" or "2*v6e:16x16".

    Raises:
        UserError: a kind or shape that there is not.
    """
    matched = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)+)", name)
    if matched is None:
        raise UserError(
            f"the topology {name!r} is not of the form KIND:AxB or KIND:AxBxC; give one such as "
            "v6e:16x16, v5p:4x4x8 or, of two slices, 2*v5e:16x16."
        )
    slices, kind, shape = int(matched[1] or 1), matched[2], matched[3]
    if kind not in CHIPS:
        raise UserError(f"the TPU kind {kind!r} is unknown; choose among {', '.join(CHIPS)}.")
    chip, sizes = CHIPS[kind], tuple(map(int, shape.split("x")))
    if chip.dimensions == 2:
        valid, choices = shape in _FLAT, ", ".join(_FLAT)
    else:
        cubes = len(sizes) == 3 and all(size and size % 4 == 0 for size in sizes)
        valid = shape in _SMALL_CUBES or (cubes and math.prod(sizes) <= chip.largest)
        choices = (
            f"{', '.join(_SMALL_CUBES)} or three multiples of 4 of at most {chip.largest} chips"
        )
    if not valid or slices < 1:
        raise UserError(f"there is no slice {name}; a slice of {kind} has the shape {choices}.")
    return Topology(name, kind, sizes, slices)
