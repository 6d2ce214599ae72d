"""Plans a step: reads facts from the compiler, and estimates time and cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from dinotxt_jax.config import Config
from dinotxt_jax.planning import costs
from dinotxt_jax.planning.abstract import abstract_run
from dinotxt_jax.planning.compiling import Compiled, Memory, Target, compile_for
from dinotxt_jax.runtime.flops import matmul_flops

# The fraction of the peak rates that well-written programs reach; used for the second estimate.
REACHED = 0.5


@dataclasses.dataclass(frozen=True)
class Work:
    """A device's work per step, counted in the optimised program.

    Attributes:
        flops: matrix product FLOPs, including recomputation.
        hbm_bytes: estimated memory traffic (`costs.memory_traffic`).
        collectives: communication.
        unknown_loops: number of loops with unknown length; their bodies count once.
    """

    flops: float
    hbm_bytes: float
    collectives: tuple[costs.Collective, ...]
    unknown_loops: int

    def seconds(self, target: Target) -> dict[str, float]:
        """Returns the seconds that each resource needs at peak rate, independently."""
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
    """A step compiled for a topology; bytes and FLOPs are per device unless stated otherwise.

    Attributes:
        target: the devices.
        settings: config settings that affect memory.
        mesh: mesh axis sizes.
        pairs_per_step, steps: from the config.
        memory: memory assigned by the compiler.
        parts: argument bytes by group, from their shardings.
        traced_flops: matrix product FLOPs per step on all devices, counted through scans.
        work: work counted in the compiled program; None if it did not fit.
        compile_seconds: compile time.
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
        """Seconds per resource at peak rates; empty if the step did not fit."""
        return {} if self.work is None else self.work.seconds(self.target)

    @property
    def bound(self) -> str:
        """The resource that takes the most time."""
        return max(self.seconds, key=lambda name: self.seconds[name])

    def step_seconds(self, reached: float = 1.0) -> float:
        """Returns the step time if all resources work concurrently at a fraction of peak."""
        return max(self.seconds.values()) / reached

    def pairs_per_second(self, reached: float = 1.0) -> float:
        return self.pairs_per_step / self.step_seconds(reached)

    def chip_hours(self, reached: float = 1.0) -> float:
        """Returns the chip-hours that all steps in the config take."""
        return self.steps * self.step_seconds(reached) * self.target.chips / 3600


def work_of(compiled: Compiled, mesh: Mesh) -> Work | None:
    """Counts the work in a compiled program; returns None if the program did not fit."""
    program = compiled.program
    if program is None:
        return None
    return Work(
        flops=costs.product_flops(program),
        hbm_bytes=costs.memory_traffic(program),
        collectives=tuple(costs.collectives(program, dict(mesh.shape))),
        unknown_loops=program.unknown_loops(),
    )


def settings_of(config: Config) -> dict[str, Any]:
    """Returns the settings that decide whether a step fits, by command-line key."""
    return {
        "batch_size": config.batch_size,
        "accumulate_steps": config.accumulate_steps,
        "remat": config.remat,
        "mesh.fsdp": config.mesh.fsdp,
    }


def plan_step(config: Config, target: Target, caption_tokens: float) -> Plan:
    """Compiles a config's train step for a target.

    Args:
        config: the run.
        target: the devices.
        caption_tokens: mean caption length, used if captions are packed.

    Raises:
        UserError: the settings cannot run on this number of devices.
    """
    run = abstract_run(config, target.devices, caption_tokens)
    arguments = tuple(run.arguments.values())
    with jax.set_mesh(run.mesh):
        traced = matmul_flops(run.trainer.train_step, *arguments)
    compiled = compile_for(target, run.mesh, run.trainer.train_step, arguments, donated=(0,))
    return Plan(
        target=target,
        settings=settings_of(config),
        mesh=dict(run.mesh.shape),
        pairs_per_step=config.pairs_per_step,
        steps=config.steps,
        memory=compiled.memory,
        parts=run.bytes_by_part(),
        traced_flops=traced,
        work=work_of(compiled, run.mesh),
        compile_seconds=compiled.seconds,
    )
