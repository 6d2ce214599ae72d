"""Evaluates several models by the same protocols and writes one page about them.

    python -m dinotxt_jax.compare --model=DIR --model=NAME=DIR ... --config=configs/eval/paper.py \
        --output=DIR

The output folder receives comparison.md, comparison.html, and a folder with the evaluation of each
model. After an interruption, run the same command again to continue; finished tasks are not
repeated.
"""

from __future__ import annotations

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import DTYPE_NAMES, EvaluationConfig

_CONFIG = define_config("config", EvaluationConfig, "File with get_config().", needs=("tasks",))
_MODELS = flags.DEFINE_multi_string(
    "model", None, "Model (as for evaluate), or NAME=MODEL; repeat it for each.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder for results and page.", required=True)
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPE_NAMES, "float32 or bfloat16.")
cli.define_process_flags()


def _body() -> None:
    from dinotxt_jax.evaluation.comparison import compare_models, named_models
    from dinotxt_jax.hub.fetched import local_model

    models = [f"{name}={local_model(path)}" for name, path in named_models(_MODELS.value).items()]
    for path in compare_models(models, _CONFIG.value, _OUTPUT.value, _DTYPE.value):
        print(path)


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
