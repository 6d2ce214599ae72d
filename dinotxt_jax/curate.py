"""Chooses training examples from a pool, by their captions and images.

    python -m dinotxt_jax.curate combine LIST LIST ... --output=LIST [--config=FILE] \\
        [--config.KEY=VALUE ...]

The result is a list for --config.data.kept in training; images are not copied. --config.data names
the pool. docs/curation.md explains the steps and all settings.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import CurationConfig
from dinotxt_jax.errors import UserError, closest

_CONFIG = define_config(
    "config", CurationConfig, "File with get_config().", default=CurationConfig()
)
_OUTPUT = flags.DEFINE_string("output", None, "File or folder to write.", required=True)


def _body(arguments: Sequence[str]) -> None:
    from dinotxt_jax.curation.steps import CURATION_STEPS
    from dinotxt_jax.storage.addresses import to_output

    name, *rest = arguments or ("",)
    if name not in CURATION_STEPS:
        suggestion = closest(name, CURATION_STEPS)
        advice = (
            f"did you mean {suggestion}?"
            if suggestion
            else f"choose among {', '.join(CURATION_STEPS)}."
        )
        raise UserError(f"{name!r} is not a step of curate; {advice}")
    print(CURATION_STEPS[name].run(_CONFIG.value, rest, to_output(_OUTPUT.value, "--output")))


def main() -> None:
    """The command."""
    cli.run_with_paths(_body, "run the same command again to continue")


if __name__ == "__main__":
    main()
