"""Proposes changes that make a step fit, trying cheap changes first."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from dinotxt_jax.config import Config
from dinotxt_jax.errors import UserError
from dinotxt_jax.planning.compiling import Target
from dinotxt_jax.planning.estimates import Plan, plan_step
from dinotxt_jax.runtime.progress import progress_bar

_FACTORS = (2, 4, 8)


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A config change that was compiled and fits.

    Attributes:
        changes: flags for `dinotxt_jax.train` and `.plan`.
        plan: plan for the changed config.
    """

    changes: tuple[str, ...]
    plan: Plan


def changed(config: Any, changes: Mapping[str, Any]) -> Any:
    """Replaces settings in a config; `changes` maps dotted names to values."""
    for name, value in changes.items():
        first, _, rest = name.partition(".")
        new = changed(getattr(config, first), {rest: value}) if rest else value
        config = dataclasses.replace(config, **{first: new})
    return config


def candidates(config: Config, devices: int, slices: int = 1) -> Iterator[dict[str, Any]]:
    """Yields changes worth trying, cheapest first, as settings by dotted name.

    Recomputation costs FLOPs; sharding parameters further costs traffic; accumulation costs a
    second pass over the text transformer and the head. A smaller batch comes last, because it
    changes the recipe.

    Args:
        config: the run.
        devices: number of devices over all slices.
        slices: number of slices.
    """
    weaker = {"none": ("dots", "full"), "dots": ("full",)}.get(config.remat, ())
    full_remat = {"remat": "full"} if config.remat != "full" else {}
    replicas = {} if config.mesh.data == -1 else {"mesh.data": -1}
    parts = devices // config.mesh.tensor  # number of shards that the batch is split into
    widest = parts // slices
    wider = [
        {"mesh.fsdp": fsdp} | replicas
        for fsdp in (4 * config.mesh.fsdp, widest)
        if config.mesh.fsdp < fsdp and widest % fsdp == 0
    ]
    whole = [count for count in _FACTORS if config.batch_size % (parts * count) == 0]
    smaller = [{"batch_size": config.batch_size // count} for count in whole]
    split = [
        {"accumulate_steps": config.accumulate_steps * count} | batch
        for count, batch in zip(whole, smaller, strict=True)
    ]
    tried: list[dict[str, Any]] = []
    in_order: Iterator[dict[str, Any]] = itertools.chain(
        ({"remat": policy} for policy in weaker),
        (full_remat | change for change in wider),
        (full_remat | change for change in split),
        (full_remat | change for change in smaller),
        (full_remat | wider[-1] | change for change in (*split, *smaller) if wider),
    )
    for changes in in_order:
        if changes not in tried:
            tried.append(changes)
            yield changes


def propose(
    config: Config,
    target: Target,
    caption_tokens: float,
    max_changes: int,
    compile_step: Callable[[Config, Target, float], Plan] = plan_step,
) -> Proposal | None:
    """Returns the first change that makes a step fit, verified by compiling; None if none does.

    Args:
        config: a run that does not fit.
        target: the devices.
        caption_tokens: as for `plan_step`.
        max_changes: maximum number of changes to try.
        compile_step: compiles a step, like `plan_step`.
    """
    changes_to_try = list(
        itertools.islice(candidates(config, len(target.devices), target.slices), max_changes)
    )
    with progress_bar(
        len(changes_to_try), 0, "change", f"{target.name}: searching for settings that fit"
    ) as bar:
        for changes in changes_to_try:
            try:
                with bar.stage(" ".join(f"{name}={value}" for name, value in changes.items())):
                    plan = compile_step(changed(config, changes), target, caption_tokens)
            except UserError:  # the devices or the batch cannot be divided over this mesh
                continue
            finally:
                bar.update()
            if plan.memory.fits:
                flags = tuple(f"--config.{name}={value}" for name, value in changes.items())
                return Proposal(flags, plan)
    return None
