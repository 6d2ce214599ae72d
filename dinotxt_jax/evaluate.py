"""Evaluates a model by named protocols and writes a report.

    python -m dinotxt_jax.evaluate --model=DIR --config=configs/eval/NAME.py --output=DIR

The output folder receives results.json, report.md, report.html (pictures inside) and a picture for
each task. The same command goes on where it was interrupted, and runs no finished task again.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dinotxt_jax import cli
from dinotxt_jax.config import EvaluationConfig

_CONFIG = config_flags.DEFINE_config_file("config", None, "File with get_config().")
_MODEL = flags.DEFINE_string("model", None, "Model directory.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for results and report.", required=True)
_DTYPE = flags.DEFINE_string("dtype", "float32", "float32 or bfloat16.")
flags.mark_flag_as_required("config")
cli.define_process_flags()


def _body() -> None:
    from dinotxt_jax.evaluation.report import evaluate

    config = cli.checked(_CONFIG.value, EvaluationConfig)
    for path in evaluate(_MODEL.value, config, Path(_OUTPUT.value), _DTYPE.value):
        print(path)


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
