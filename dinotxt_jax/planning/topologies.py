"""Parses TPU topology names, and creates devices to compile for without owning a TPU."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import re

import jax

from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.chips import CHIPS, Chip

_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or more slices with the same chip kind and shape.

    Attributes:
        name: `KIND:AxB[xC]`, or `N*KIND:AxB[xC]` for N slices.
        kind: a key of `CHIPS`.
        shape: number of chips along each torus dimension, per slice.
        slices: number of slices.
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
        """Returns devices that programs can be compiled for, but not run on.

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
                f"libtpu does not provide the topology {self.name} ({reason}); install the libtpu "
                "that this JAX asks for with pip install 'jax[tpu]', or choose another topology."
            ) from error
        return list(described.devices)


def parse_topology(name: str) -> Topology:
    """Parses a name such as "v5e:16x16", "v5p:4x4x8" or "2*v6e:16x16".

    Raises:
        UserError: the kind or shape does not exist.
    """
    matched = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)+)", name)
    if matched is None:
        raise UserError(
            f"the topology {name!r} does not have the form KIND:AxB or KIND:AxBxC; give a name "
            "such as v6e:16x16, v5p:4x4x8 or, for two slices, 2*v5e:16x16."
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
