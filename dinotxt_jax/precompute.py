"""Runs the frozen backbone once over the images of a config and keeps its tokens.

    python -m dinotxt_jax.precompute --config=configs/NAME.py --config.features=DIR \\
        [--config.feature_views=K] [--config.KEY=VALUE ...]

Training with the same --config.features then never runs the backbone; its evaluation tasks are
encoded too. Interrupted, the same command goes on. docs/data.md says how large DIR becomes.
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
