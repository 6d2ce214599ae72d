"""Uploads a model directory to the Hugging Face hub, with a model card.

    python -m dinotxt_jax.push --model=DIR --to=hf://ORG/NAME [--results=DIR] [--licence=mit]

The card says what the model is, how to load it, and the figures of an evaluation (--results: its
output folder). The repository is created if it does not exist. Log in first: hf auth login.
"""

from __future__ import annotations

from absl import flags

from dinotxt_jax import cli

_MODEL = flags.DEFINE_string("model", None, "Model directory.", required=True)
_TO = flags.DEFINE_string("to", None, "Repository, hf://ORG/NAME.", required=True)
_RESULTS = flags.DEFINE_string("results", "", "Output folder of an evaluation, for the card.")
_LICENCE = flags.DEFINE_string("licence", "other", "Identifier of the licence on the hub.")
_PRIVATE = flags.DEFINE_bool("private", True, "Whether a new repository is private.")


def _body() -> None:
    from dinotxt_jax.hub.pushing import push

    print(
        push(
            _MODEL.value,
            _TO.value,
            results=_RESULTS.value,
            licence=_LICENCE.value,
            private=_PRIVATE.value,
        )
    )


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
