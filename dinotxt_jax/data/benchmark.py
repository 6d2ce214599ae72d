"""Measures the speed of a config's input pipeline, for each stage and for the whole pipeline.

    python -m dinotxt_jax.data.benchmark --config=configs/NAME.py [--examples=512] \\
        [--config.KEY=VALUE ...]

Prints images per second for reading, decoding, crop and resize, tokenization and assembly in a
single thread, then for the whole pipeline with the config's threads and workers, and with an
alternative. The last line names the bottleneck and the setting to change. Nothing is trained or
written.
"""

from __future__ import annotations

import tempfile

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import Config

_CONFIG = define_config("config", Config, "File with get_config().")
_EXAMPLES = flags.DEFINE_integer(
    "examples", 512, "Number of examples per measurement.", lower_bound=1
)


def _body() -> None:
    from dinotxt_jax.data.examples import SECTION, check_images_found
    from dinotxt_jax.data.sources import open_source
    from dinotxt_jax.data.stage_speed import measure_input
    from dinotxt_jax.errors import UserError
    from dinotxt_jax.storage.addresses import to_address
    from dinotxt_jax.training.texts import make_tokenizer

    config = _CONFIG.value
    if config.features:
        raise UserError(
            f"config.features is {config.features!r}, so training reads cached tokens instead of "
            "images, expected no cache; add --config.features= to measure the images."
        )
    source = open_source(config.data)
    check_images_found(source, config.data, SECTION)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = make_tokenizer(config, to_address(folder), source)
    speed = measure_input(
        source, config.data, tokenizer.encode, examples=_EXAMPLES.value, seed=config.seed
    )
    print("\n".join(speed.lines()))


def main() -> None:
    """Runs the command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
