"""A step's plan: what the compiler says of it, and what follows for time and cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from dinotxt_jax.config import Config
from dinotxt_jax.planning import costs
from dinotxt_jax.planning.abstract import abstract_run
from dinotxt_jax.planning.compiling import Memory, Target, compile_for
from dinotxt_jax.runtime.flops import matmul_flops

# The part of every peak rate that well-written programs reach; the second estimate divides by it.
REACHED = 0.5


@dataclasses.dataclass(frozen=True)
class Work:
    """What a device does in one step, counted in the optimised program.

    Attributes:
        flops: of matrix products, recomputed ones included.
        hbm_bytes: estimated memory traffic (`costs.memory_traffic`).
        collectives: what it sends.
        unknown_loops: loops whose length the program does not tell; their bodies count once.
    """

    flops: float
    hbm_bytes: float
    collectives: tuple[costs.Collective, ...]
    unknown_loops: int

    def seconds(self, target: Target) -> dict[str, float]:
        """What each resource needs at its peak rate, each as if alone."""
        chip, share = target.chip, target.chip.devices
        ici = sum(row.bytes - row.dcn_bytes for row in self.collectives)
        dcn = sum(row.dcn_bytes for row in self.collectives)
        times = {
            "compute": self.flops * share / chip.flops,
            "hbm": self.hbm_bytes * share / chip.hbm_rate,
            "ici": ici * share / chip.ici_rate,
        }
        return times | ({"dcn": dcn * share / chip.dcn_rate} if target.slices > 1 else {})


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step compiled for one topology. Bytes and FLOPs of a device unless something else is said.

    Attributes:
        target: what it was compiled for.
        settings: of the config, that decide about memory.
        mesh: sizes of its axes.
        pairs_per_step, steps: of the config.
        memory: compiled.
        parts: bytes of the arguments by what they are, from their shardings.
        traced_flops: of matrix products in a step, all devices, counted through scans.
        work: counted in the compiled program; None if it did not fit.
        compile_seconds: what compiling took.
    """

    target: Target
    settings: Mapping[str, Any]
    mesh: Mapping[str, int]
    pairs_per_step: int
    steps: int
    memory: Memory
    parts: Mapping[str, float]
    traced_flops: float
    work: Work | None
    compile_seconds: float

    @property
    def seconds(self) -> dict[str, float]:
        """At peak rates, by resource; empty if the step did not fit."""
        return {} if self.work is None else self.work.seconds(self.target)

    @property
    def bound(self) -> str:
        """The resource that takes longest."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    def step_seconds(self, reached: float = 1.0) -> float:
        """Time of a step if all resources work at the same time, at that part of their peaks."""
        return max(self.seconds.values()) / reached

    def pairs_per_second(self, reached: float = 1.0) -> float:
        return self.pairs_per_step / self.step_seconds(reached)

    def chip_hours(self, reached: float = 1.0) -> float:
        """For all of the config's steps."""
        return self.steps * self.step_seconds(reached) * self.target.chips / 3600


def settings_of(config: Config) -> dict[str, Any]:
    """The settings that decide whether a step fits, as they are given on a command line."""
    return {
        "batch_size": config.batch_size,
        "accumulate_steps": config.accumulate_steps,
        "remat": config.remat,
        "mesh.fsdp": config.mesh.fsdp,
    }


def plan_step(config: Config, target: Target, caption_tokens: float) -> Plan:
    """Compiles the train step of a config for a target.

    Args:
        config: the run.
        target: where it would run.
        caption_tokens: mean length of captions, for packed ones.

    Raises:
        UserError: settings that cannot be run on so many devices.
    """
    run = abstract_run(config, target.devices, caption_tokens)
    arguments = tuple(run.arguments.values())
    with jax.set_mesh(run.mesh):
        traced = matmul_flops(run.trainer.train_step, *arguments)
    compiled = compile_for(target, run.mesh, run.trainer.train_step, arguments, donated=(0,))
    work = None
    if compiled.program is not None:
        work = Work(
            flops=costs.product_flops(compiled.program),
            hbm_bytes=costs.memory_traffic(compiled.program),
            collectives=tuple(costs.collectives(compiled.program, dict(run.mesh.shape))),
            unknown_loops=compiled.program.unknown_loops(),
        )
    return Plan(
        target=target,
        settings=settings_of(config),
        mesh=dict(run.mesh.shape),
        pairs_per_step=config.pairs_per_step,
        steps=config.steps,
        memory=compiled.memory,
        parts=run.bytes_by_part(),
        traced_flops=traced,
        work=work,
        compile_seconds=compiled.seconds,
    )
