"""Compiles for devices that need not exist, and reads the memory that the compiler assigned."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dinotxt_jax.planning.hlo import Program, parse
from dinotxt_jax.planning.topologies import Topology, parse_topology
from dinotxt_jax.runtime.chips import CHIPS, Chip


def keep_from_devices() -> None:
    """Keeps JAX and libtpu from searching for a TPU, which would claim this machine's TPU.

    Must be called before the first computation.
    """
    jax.config.update("jax_platforms", "cpu")
    # Programs from the cache do not always report their memory.
    jax.config.update("jax_enable_compilation_cache", False)
    # Nothing runs on a TPU, so several processes may load libtpu at the same time. The last three
    # variables silence libtpu's warnings about an unknown environment.
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
    }


@dataclasses.dataclass(frozen=True)
class Target:
    """The devices that a program is compiled for.

    Attributes:
        name: topology name.
        chip: chip kind.
        devices: all devices.
        slices: number of slices.
    """

    name: str
    chip: Chip
    devices: Sequence[jax.Device]
    slices: int = 1

    @property
    def chips(self) -> int:
        return len(self.devices) // self.chip.devices

    @property
    def accelerator_type(self) -> str:
        """The accelerator type to request per slice, such as v5p-256; "" if Cloud has none."""
        counted = self.chips // self.slices * self.chip.counted
        return f"{self.chip.accelerator}-{counted}" if self.chip.accelerator else ""


def target(topology: Topology | str) -> Target:
    """Returns a topology's target; raises `UserError` if the topology or libtpu is missing."""
    parsed = parse_topology(topology) if isinstance(topology, str) else topology
    return Target(parsed.name, CHIPS[parsed.kind], parsed.devices(), parsed.slices)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device, as the compiler assigned them.

    Attributes:
        arguments: arguments, including those updated in place.
        outputs: results that do not reuse an argument's memory.
        temporaries: peak size of the intermediate arrays.
        code: the program.
        limit: available memory.
        refused: if the compiler gave up, the memory that it would have needed, otherwise 0; all
            sizes above are then 0, except `limit`.
    """

    arguments: float
    outputs: float
    temporaries: float
    code: float
    limit: float
    refused: float = 0.0

    @property
    def peak(self) -> float:
        return self.refused or self.arguments + self.outputs + self.temporaries + self.code

    @property
    def headroom(self) -> float:
        return self.limit - self.peak

    @property
    def fits(self) -> bool:
        return not self.refused and self.headroom >= 0


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The result: memory, the parsed program (None if it did not fit), compile time in seconds."""

    memory: Memory
    program: Program | None
    seconds: float


def compile_for(
    target: Target,
    mesh: Mesh,
    function: Callable[..., Any],
    arguments: Sequence[Any],
    donated: Sequence[int] = (),
) -> Compiled:
    """Compiles a function like `jax.jit`, for devices that need not exist.

    Args:
        target: the devices of `mesh`.
        mesh: the mesh, set while tracing.
        function: a function for `jax.jit`.
        arguments: abstract arguments with shardings.
        donated: indices of donated arguments.
    """
    start = time.monotonic()
    with jax.set_mesh(mesh):
        lowered = jax.jit(function, donate_argnums=tuple(donated)).lower(*arguments)
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            refused = asked_bytes(str(error)) or target.chip.usable
            memory = Memory(0.0, 0.0, 0.0, 0.0, target.chip.usable, refused)
            return Compiled(memory, None, time.monotonic() - start)
    # Typed as optional; the CPU and TPU backends always return it.
    analysis: Any = compiled.memory_analysis()
    memory = Memory(
        arguments=float(analysis.argument_size_in_bytes),
        outputs=float(analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        temporaries=float(analysis.temp_size_in_bytes),
        code=float(analysis.generated_code_size_in_bytes),
        limit=target.chip.usable,
    )
    return Compiled(memory, parse(str(compiled.as_text())), time.monotonic() - start)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def asked_bytes(message: str) -> float | None:
    """Parses the memory that a program needs from the compiler's out-of-memory message."""
    matched = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message) or re.search(
        r"\(([\d.]+)([KMGT]?)B?\) exceeds available HBM", message
    )
    return float(matched[1]) * _UNITS[matched[2]] if matched else None
