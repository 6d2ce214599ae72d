"""Formats plans as text and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from dinotxt_jax.planning.compiling import Target
from dinotxt_jax.planning.encoders import EncoderPlan
from dinotxt_jax.planning.estimates import REACHED, Plan, Work
from dinotxt_jax.planning.proposals import Proposal
from dinotxt_jax.runtime.chips import GIB

_RESOURCES = {
    "compute": "matrix products",
    "hbm": "memory traffic",
    "ici": "links between chips",
    "dcn": "network between slices",
}


def described(plan: Plan, price: float | None = None) -> list[str]:
    """Formats a plan as text lines; `price` is the price per chip-hour."""
    target, memory = plan.target, plan.memory
    axes = " x ".join(f"{name} {size}" for name, size in plan.mesh.items() if size > 1) or "of 1"
    settings = ", ".join(f"{name} {value}" for name, value in plan.settings.items())
    lines = [
        f"{target.name}: {target.chips} chips, {len(target.devices)} devices, mesh {axes}"
        f"{_request(target)}",
        f"  config: {settings}; compiled in {plan.compile_seconds:.0f} s",
        "  memory per device, GiB (from the compiler):",
    ]
    if memory.refused:
        lines.append(
            f"    does not fit: needs {_gib(memory.refused)}, available {_gib(memory.limit)}"
        )
    else:
        lines += [
            f"    {name:<12}{_gib(value):>8}"
            for name, value in (
                ("arguments", memory.arguments),
                ("outputs", memory.outputs),
                ("temporaries", memory.temporaries),
                ("program", memory.code),
                ("peak", memory.peak),
                ("available", memory.limit),
                ("headroom", memory.headroom),
            )
        ]
    parts = ", ".join(f"{name} {_gib(value)}" for name, value in plan.parts.items())
    lines.append(f"    arguments by part, from their shapes: {parts}")
    lines.append(f"  FLOPs per step, all devices, counted through scans: {plan.traced_flops:.3e}")
    return lines + (_work_lines(plan, plan.work, price) if plan.work else [])


def _request(target: Target) -> str:
    """Returns a clause with the flags for requesting the target from Google Cloud."""
    if not target.accelerator_type:
        return ""
    slices = f" --slices={target.slices}" if target.slices > 1 else ""
    return f"; to request: --type={target.accelerator_type}{slices}"


def _work_lines(plan: Plan, work: Work, price: float | None) -> list[str]:
    lines = [
        f"  FLOPs per device in the compiled program, with recomputation: {work.flops:.3e}",
        "  sent by a device per step, MiB (from the compiled program, ring algorithms):",
    ]
    lines += [
        f"    {row.kind:<20}{row.axes:<16}{row.bytes / 2**20:>10.1f}  in {row.count} runs"
        for row in work.collectives
    ]
    if work.unknown_loops:
        lines.append(f"    ({work.unknown_loops} loops of unknown length count once)")
    lines.append("  estimated from these and the chip's peak rates, ms per step, independently:")
    lines += [
        f"    {_RESOURCES[name]:<24}{1e3 * seconds:>8.1f}" for name, seconds in plan.seconds.items()
    ]
    for reached in (1.0, REACHED):
        lines.append(
            f"  estimated at {reached:.0%} of the peaks, bound by {_RESOURCES[plan.bound]}: "
            f"{1e3 * plan.step_seconds(reached):.0f} ms per step, "
            f"{plan.pairs_per_second(reached):,.0f} pairs/s, "
            f"{plan.chip_hours(reached):,.0f} chip-hours for {plan.steps} steps"
            + ("" if price is None else f", {price * plan.chip_hours(reached):,.0f} by --price")
        )
    return lines


def described_encoders(plans: Sequence[EncoderPlan], topology: str) -> list[str]:
    """Formats an evaluation's encoders as text lines."""
    lines = [f"{topology}: evaluation, memory per device, GiB (from the compiler):"]
    for plan in plans:
        memory = plan.compiled.memory
        verdict = "" if memory.fits else ": does not fit, lower batch_size in --eval"
        lines.append(
            f"    {plan.name}, {plan.batch_size} at once: peak {_gib(memory.peak)} of "
            f"{_gib(memory.limit)}{verdict}"
        )
    return lines


def described_proposal(plan: Plan, proposal: Proposal | None) -> str:
    """Formats the proposal that makes a step fit, or general advice without a proposal."""
    if proposal is None:
        return (
            f"{plan.target.name}: the step does not fit, and none of the compiled changes makes it "
            "fit; use a larger topology, or try more changes with --proposals."
        )
    memory = proposal.plan.memory
    return (
        f"{plan.target.name}: the step does not fit; with {' '.join(proposal.changes)} it does "
        f"(compiled: peak {_gib(memory.peak)} of {_gib(memory.limit)} GiB)."
    )


def as_json(plan: Plan, price: float | None = None) -> dict[str, Any]:
    """Converts a plan to JSON values; `price` is the price per chip-hour.

    "compiled" values come from the compiler, "traced" values from shapes, "estimated" values from
    both and the chip's peak rates.
    """
    target, memory, work = plan.target, plan.memory, plan.work
    return {
        "topology": target.name,
        "accelerator_type": target.accelerator_type or None,
        "slices": target.slices,
        "chips": target.chips,
        "devices": len(target.devices),
        "mesh": dict(plan.mesh),
        "settings": dict(plan.settings),
        "steps": plan.steps,
        "fits": memory.fits,
        "compiled": {
            "seconds": plan.compile_seconds,
            "memory_bytes_per_device": dataclasses.asdict(memory)
            | {"peak": memory.peak, "headroom": memory.headroom},
            "flops_per_device": work and work.flops,
            "collectives_per_device": work and [dataclasses.asdict(c) for c in work.collectives],
            "loops_of_unknown_length": work and work.unknown_loops,
        },
        "traced": {
            "argument_bytes_per_device": dict(plan.parts),
            "flops_all_devices": plan.traced_flops,
        },
        "estimated": work
        and {
            "hbm_bytes_per_device": work.hbm_bytes,
            "seconds_at_peak": plan.seconds,
            "bound": plan.bound,
            **{
                f"at_{reached:.0%}": {
                    "step_seconds": plan.step_seconds(reached),
                    "pairs_per_second": plan.pairs_per_second(reached),
                    "chip_hours": plan.chip_hours(reached),
                    "price": None if price is None else price * plan.chip_hours(reached),
                }
                for reached in (1.0, REACHED)
            },
        },
    }


def encoder_json(plan: EncoderPlan, topology: str) -> dict[str, Any]:
    """Converts an encoder plan to JSON values."""
    memory = plan.compiled.memory
    return {
        "topology": topology,
        "encoder": plan.name,
        "batch_size": plan.batch_size,
        "fits": memory.fits,
        "memory_bytes_per_device": dataclasses.asdict(memory) | {"peak": memory.peak},
    }


def _gib(value: float) -> str:
    return f"{value / GIB:.2f}"
