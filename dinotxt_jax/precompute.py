"""Runs the frozen backbone once over all images in a config and stores the tokens.

    python -m dinotxt_jax.precompute --config=configs/NAME.py --config.features=DIR \\
        [--config.feature_views=K] [--config.KEY=VALUE ...]

Training with the same --config.features then never runs the backbone; images for the evaluation
tasks in the config are encoded, too. After an interruption, run the same command again to continue.
docs/data.md says how large DIR becomes.
"""

from __future__ import annotations

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import Config

_CONFIG = define_config("config", Config, "File with get_config().", needs=("features", "backbone"))
cli.define_process_flags()


def _body() -> None:
    from dinotxt_jax.runtime import processes
    from dinotxt_jax.training.precompute import precompute

    config = _CONFIG.value
    precompute(config)
    if processes.is_first():
        print(f"features: {config.features}")


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
