"""Implements `python -m dinotxt_jax.plan`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dinotxt_jax.config import DTYPE_NAMES, Config, EvaluationConfig, check
from dinotxt_jax.errors import UserError, check_choice
from dinotxt_jax.planning.abstract import abstract_run
from dinotxt_jax.planning.compiling import Target, target
from dinotxt_jax.planning.encoders import evaluation_run, plan_encoders
from dinotxt_jax.planning.estimates import Plan, plan_step
from dinotxt_jax.planning.picture import check_drawing, draw
from dinotxt_jax.planning.proposals import Proposal, propose
from dinotxt_jax.planning.report import (
    as_json,
    described,
    described_encoders,
    described_proposal,
    encoder_json,
)
from dinotxt_jax.planning.topologies import parse_topology
from dinotxt_jax.runtime.progress import progress_bar
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.files import new_file, write_text


def named_targets(names: Sequence[str]) -> list[Target]:
    """Returns targets by topology name; the first is planned, the others are compared with it.

    Raises:
        UserError: there is no name, a topology is unknown, or libtpu is missing.
    """
    if not any(names):
        raise UserError(
            "no topology is named, and the config names none; give one with --topology, such as "
            "--topology=v6e:16x16."
        )
    return [target(topology) for topology in [parse_topology(name) for name in names]]


def plan(
    config: Config,
    targets: Sequence[Target],
    *,
    caption_tokens: float,
    evaluation: EvaluationConfig | None = None,
    evaluation_dtype: str = "float32",
    output: Address | None = None,
    proposals: int = 4,
    price: float | None = None,
) -> bool:
    """Compiles the step for all targets, and prints a report.

    Args:
        config: the run.
        targets: the target that would run it, then targets to compare with.
        caption_tokens: mean caption length, used if captions are packed.
        evaluation: if set, also compile the encoders for these tasks.
        evaluation_dtype: dtype for these encoders.
        output: folder for plan.json and plan.png.
        proposals: maximum number of changes to try if the step does not fit.
        price: price per chip-hour, in any currency.

    Returns:
        Whether everything fits on the first target.

    Raises:
        UserError: the settings cannot run; raised before anything is compiled.
    """
    check(config, needs=("backbone",))
    if config.epochs:
        raise UserError(
            f"config.epochs is {config.epochs:g}, expected 0 for a plan, which opens no data and "
            "cannot know the number of steps; give --config.epochs=0 --config.steps=N."
        )
    if evaluation is not None:
        check(evaluation, "eval", needs=("tasks",))
    if output is not None:
        check_drawing()
    for candidate in targets:  # report mistakes before minutes of compilation
        abstract_run(config, candidate.devices, caption_tokens)
    if evaluation is not None:
        check_choice("dtype", evaluation_dtype, DTYPE_NAMES)
        evaluation_run(config, evaluation, targets[0])
    plans: list[Plan] = []
    with progress_bar(len(targets), 0, "topology", "compiling the train step") as bar:
        for candidate in targets:
            with bar.stage(candidate.name):
                plans.append(plan_step(config, candidate, caption_tokens))
            bar.write("\n".join(described(plans[-1], price)))
            bar.update()
    fits = plans[0].memory.fits
    contents = {"plans": [as_json(planned, price) for planned in plans]}
    if evaluation is not None:
        encoders = plan_encoders(config, evaluation, targets[0], evaluation_dtype)
        print("\n".join(described_encoders(encoders, targets[0].name)))
        contents["encoders"] = [encoder_json(encoder, targets[0].name) for encoder in encoders]
        fits &= all(encoder.compiled.memory.fits for encoder in encoders)
    if not plans[0].memory.fits:
        proposal = propose(config, targets[0], caption_tokens, proposals)
        print(described_proposal(plans[0], proposal))
        contents["proposals"] = [_proposal_json(proposal)] if proposal else []
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_text(output / "plan.json", json.dumps(contents, indent=2) + "\n")
        with new_file(output / "plan.png") as partial:
            draw(plans, partial)
        print(f"{output / 'plan.json'}\n{output / 'plan.png'}")
    return fits


def _proposal_json(proposal: Proposal) -> dict[str, Any]:
    return {"changes": list(proposal.changes), "plan": as_json(proposal.plan)}
