"""Trains the head and the text transformer against a frozen backbone, or resumes.

    python -m dinotxt_jax.train --config=configs/NAME.py --workdir=DIR [--config.KEY=VALUE ...]

Running the same command again continues from the newest checkpoint in DIR. DIR receives
metrics.jsonl, curves.png, tensorboard/, checkpoints/ and, at the end, model/ (see `dt.load`).
"""

from __future__ import annotations

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import Config

_CONFIG = define_config("config", Config, "File with get_config().", needs=("backbone",))
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for everything the run writes, local or gs://BUCKET/....",
    required=True,
)
cli.define_process_flags()


def _body() -> None:
    from dinotxt_jax.runtime import processes
    from dinotxt_jax.training.loop import train

    model = train(_CONFIG.value, _WORKDIR.value)
    if processes.is_first():
        print(f"model: {model}")


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
