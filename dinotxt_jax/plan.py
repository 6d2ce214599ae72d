"""Compiles a train step for a TPU topology, on any machine, and reports memory, time and cost.

    python -m dinotxt_jax.plan --config=configs/NAME.py --topology=v6e:16x16
    python -m dinotxt_jax.plan --config=configs/NAME.py --topology=v5e:16x16 \\
        --compare=v5p:4x4x8 --compare='2*v6e:16x16' --output=DIR [--config.KEY=VALUE ...]

No TPU is needed, but libtpu is (pip install 'jax[tpu]'), and some minutes for each topology.
Backbone and data may be missing: the architecture is then taken from the directory name
(dinov2_vitl14_reg, ...), and captions are assumed to have --caption_tokens tokens on average.

Memory, FLOPs and collectives come from the compiler. Times, pairs per second and chip-hours are
estimated from them and from peak rates; the report says which is which.

If a step does not fit, a config change that fits (and was compiled) is proposed. Exit code: 0 if
everything fits on --topology, 1 if not, 2 for unusable input.
"""

from __future__ import annotations

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import DTYPE_NAMES, Config, EvaluationConfig

_CONFIG = define_config(
    "config", Config, "File with get_config(), of training.", needs=("backbone",)
)
_TOPOLOGY = flags.DEFINE_string(
    "topology",
    "",
    "KIND:AxB or KIND:AxBxC, for several slices N*KIND:...; kinds are v4, v5e, v5p, v6e and tpu7x. "
    "Default: the topology in the config.",
)
_COMPARE = flags.DEFINE_multi_string("compare", [], "Another topology to compare; may be repeated.")
_CAPTION_TOKENS = flags.DEFINE_float(
    "caption_tokens", 20.0, "Mean tokens per caption; determines the rows for packed captions."
)
_EVAL = define_config(
    "eval",
    EvaluationConfig,
    "File with get_config(), of evaluation: compiles its encoders too.",
    needs=("tasks",),
    required=False,
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", DTYPE_NAMES, "With --eval: float32 or bfloat16.")
_OUTPUT = flags.DEFINE_string("output", "", "Folder for plan.json and plan.png.")
_PROPOSALS = flags.DEFINE_integer(
    "proposals",
    4,
    "Maximum number of changes to compile when the step does not fit.",
    lower_bound=0,
)
_PRICE = flags.DEFINE_float(
    "price",
    None,
    "What a chip-hour costs, in any currency; the plan then says what the run costs.",
    lower_bound=0.0,
)


def _body() -> None:
    from dinotxt_jax.planning.compiling import keep_from_devices
    from dinotxt_jax.planning.run import named_targets, plan
    from dinotxt_jax.storage.addresses import to_output

    keep_from_devices()
    config = _CONFIG.value
    fits = plan(
        config,
        named_targets([_TOPOLOGY.value or config.topology, *_COMPARE.value]),
        caption_tokens=_CAPTION_TOKENS.value,
        evaluation=_EVAL.value,
        evaluation_dtype=_DTYPE.value,
        output=to_output(_OUTPUT.value, "--output") if _OUTPUT.value else None,
        proposals=_PROPOSALS.value,
        price=_PRICE.value,
    )
    if not fits:
        raise SystemExit(1)


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
