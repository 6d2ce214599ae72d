"""Chooses training examples from a pool, by their captions and images.

    python -m dinotxt_jax.curate metadata --output=DIR
    python -m dinotxt_jax.curate text METADATA --output=DIR [--runner=RUNNER]
    python -m dinotxt_jax.curate cluster EMBEDDINGS --output=CLUSTERS
    python -m dinotxt_jax.curate deduplicate EMBEDDINGS CLUSTERS --output=LIST
    python -m dinotxt_jax.curate sample CLUSTERS [LIST ...] --output=LIST --config.target=N
    python -m dinotxt_jax.curate combine LIST LIST ... --output=LIST
    python -m dinotxt_jax.curate report RESULT ... --output=FILE.html
    python -m dinotxt_jax.curate plan [METADATA] --pairs=2.3e9 --output=PLAN.md

Every step takes [--config=FILE] [--config.KEY=VALUE ...]; --config.data names the pool. EMBEDDINGS
is a folder that python -m dinotxt_jax.embed has written. A LIST is for --config.data.kept in
training; images are not copied. docs/curation.md explains the steps and all settings. Of several
processes that are started together, all work on text and cluster, and the first on other steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_beam, define_config
from dinotxt_jax.config import CurationConfig, check
from dinotxt_jax.errors import UserError, closest

if TYPE_CHECKING:
    from dinotxt_jax.storage.addresses import Address

_CONFIG = define_config(
    "config", CurationConfig, "File with get_config().", default=CurationConfig()
)
cli.define_process_flags()
_OUTPUT = flags.DEFINE_string("output", None, "File or folder to write.", required=True)
_PIPELINES = define_beam()
_PAIRS = flags.DEFINE_list(
    "pairs", [], "plan: numbers of pairs, such as 1e6,2.3e9, instead of config.plan.pairs."
)


def _settings(step: str) -> CurationConfig:
    """Returns the settings, with the numbers of --pairs."""
    config: CurationConfig = _CONFIG.value
    if not _PAIRS.value:
        return config
    if step != "plan":
        raise UserError(f"--pairs is given, but {step} reads the pool; remove --pairs.")
    try:
        pairs = tuple(int(float(text)) for text in _PAIRS.value)
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"--pairs={','.join(_PAIRS.value)} is no list of numbers, expected some such as "
            "1e6,2.3e9; correct it."
        ) from error
    changed = dataclasses.replace(config, plan=dataclasses.replace(config.plan, pairs=pairs))
    check(changed)
    return changed


def _plan(config: CurationConfig, arguments: Sequence[str], output: Address) -> str:
    # Above curation, whose programs it compiles; other steps do not wait for the import.
    from dinotxt_jax.planning.curation import plan_curation

    return plan_curation(config, arguments, output)


def _body(arguments: Sequence[str]) -> None:
    from dinotxt_jax.curation.steps import CURATION_STEPS, local_step
    from dinotxt_jax.runtime import processes
    from dinotxt_jax.runtime.team import Team
    from dinotxt_jax.storage.addresses import to_output

    name, *rest = arguments or ("",)
    plan = local_step("plan", _plan, "plan [METADATA]: what a curation will take")
    steps = {**CURATION_STEPS, "plan": plan}
    if name not in steps:
        suggestion = closest(name, steps)
        advice = (
            f"did you mean {suggestion}?" if suggestion else f"choose among {', '.join(steps)}."
        )
        raise UserError(f"{name!r} is not a step of curate; {advice}")
    step, config = steps[name], _settings(name)
    output, pipelines = to_output(_OUTPUT.value, "--output"), _PIPELINES()

    def run() -> str:
        return step.run(config, rest, output, pipelines)

    result = run() if step.is_shared else Team().first(run)
    if processes.is_first():
        print(result)


def main() -> None:
    """The command."""
    cli.run_with_paths(_body, "run the same command again to continue")


if __name__ == "__main__":
    main()
