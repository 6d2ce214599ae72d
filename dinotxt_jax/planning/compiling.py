"""Compiling for devices that are not there, and the memory that the compiler assigned."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from dinotxt_jax.planning.hlo import Program, parse
from dinotxt_jax.planning.topologies import Topology, parse_topology
from dinotxt_jax.runtime.chips import CHIPS, Chip


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled for.

    Attributes:
        name: of the topology.
        chip: its kind.
        devices: all of them.
        slices: how many slices they are.
    """

    name: str
    chip: Chip
    devices: Sequence[jax.Device]
    slices: int = 1

    @property
    def chips(self) -> int:
        return len(self.devices) // self.chip.devices


def target(topology: Topology | str) -> Target:
    """The target of a topology; raises `UserError` where it, or libtpu, is not to be had."""
    found = parse_topology(topology) if isinstance(topology, str) else topology
    return Target(found.name, CHIPS[found.kind], found.devices(), found.slices)


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device, as the compiler assigned them.

    Attributes:
        arguments: what the program is given; what it changes in place is here.
        outputs: results that have no argument's place.
        temporaries: everything that exists while it runs, at its most.
        code: the program.
        limit: what there is.
        refused: what the compiler says it would have needed when it gave up; the other numbers
            are 0 then.
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
    """What came out: memory, the program's text read (None if it did not fit), seconds it took."""

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
    """Compiles a function as `jax.jit` would, for devices that need not be there.

    Args:
        target: where `mesh` lies.
        mesh: set while tracing.
        function: what `jax.jit` would take.
        arguments: of it, abstract, with shardings.
        donated: numbers of arguments whose places results take.
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
    # Typed as optional for backends that know neither; the CPU's and the TPU's do.
    found: Any = compiled.memory_analysis()
    memory = Memory(
        arguments=float(found.argument_size_in_bytes),
        outputs=float(found.output_size_in_bytes - found.alias_size_in_bytes),
        temporaries=float(found.temp_size_in_bytes),
        code=float(found.generated_code_size_in_bytes),
        limit=target.chip.usable,
    )
    return Compiled(memory, parse(str(compiled.as_text())), time.monotonic() - start)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def asked_bytes(message: str) -> float | None:
    """What a program needs, from the compiler's sentence of why it cannot have it."""
    found = re.search(r"Used ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message) or re.search(
        r"\(([\d.]+)([KMGT]?)B?\) exceeds available HBM", message
    )
    return float(found[1]) * _UNITS[found[2]] if found else None
