"""Evaluates a model by named protocols and writes a report.

    python -m dinotxt_jax.evaluate --model=DIR --config=configs/eval/NAME.py --output=DIR

The output folder receives results.json, report.md, report.html (pictures inside) and a picture for
each task. After an interruption, run the same command again to continue; finished tasks are not
repeated.
"""

from __future__ import annotations

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import DTYPE_NAMES, EvaluationConfig

_CONFIG = define_config("config", EvaluationConfig, "File with get_config().", needs=("tasks",))
_MODEL = flags.DEFINE_string("model", None, cli.MODEL_HELP, required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for results and report.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPE_NAMES, "float32 or bfloat16.")
cli.define_process_flags()


def _body() -> None:
    from dinotxt_jax.evaluation.report import evaluate
    from dinotxt_jax.hub.fetched import local_model

    folder = str(local_model(_MODEL.value))
    for path in evaluate(folder, _CONFIG.value, _OUTPUT.value, _DTYPE.value, name=_MODEL.value):
        print(path)


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
