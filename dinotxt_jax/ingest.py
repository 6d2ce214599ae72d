"""Copies image-text pairs from any source into ArrayRecord shards with a manifest.

    python -m dinotxt_jax.ingest --output=DIR [--config=FILE] --config.data.source=webdataset \\
        --config.data.path='data/*.tar' [--config.KEY=VALUE ...]

Training reads the result with --config.data.source=array_record --config.data.path=DIR. Examples
that cannot be stored are listed with reasons in DIR/quarantine.jsonl. After an interruption, run
the same command again to continue; run on a finished DIR, it verifies all shards and writes damaged
ones again. With --runner, the same work is an Apache Beam pipeline, for clusters
(pip install 'dinotxt_jax[beam]').
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_config
from dinotxt_jax.config import IngestionConfig
from dinotxt_jax.errors import UserError

if TYPE_CHECKING:
    from dinotxt_jax.ingestion.local import IngestionRunner

_CONFIG = define_config(
    "config", IngestionConfig, "File with get_config(); optional.", default=IngestionConfig()
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the shards, local or gs://BUCKET/....", required=True
)
_RUNNER = flags.DEFINE_string(
    "runner",
    "",
    "Apache Beam runner, such as DirectRunner, DataflowRunner, FlinkRunner or SparkRunner; by "
    "default processes on this machine do the work.",
)
_BEAM = flags.DEFINE_string(
    "beam_options", "", 'Options for the runner: "--project=P --region=R ...".'
)


def _runner() -> IngestionRunner:
    from dinotxt_jax.ingestion.local import run_in_processes

    if not _RUNNER.value:
        if _BEAM.value:
            raise UserError("--beam_options is given without --runner; give the runner, too.")
        return run_in_processes
    if importlib.util.find_spec("apache_beam") is None:
        raise UserError(
            f"--runner={_RUNNER.value} needs Apache Beam, which is not installed; run pip install "
            "'dinotxt_jax[beam]', or leave out --runner."
        )
    from dinotxt_jax.ingestion.beam_pipeline import BeamRunner

    return BeamRunner(_RUNNER.value, _BEAM.value)


def _body() -> None:
    from dinotxt_jax.ingestion.run import ingest

    counts = ingest(_CONFIG.value, _OUTPUT.value, _runner())["counts"]
    print(
        f"{_OUTPUT.value}: {counts['records']} records of {counts['examples']} examples "
        f"({counts['duplicates']} duplicates, {counts['quarantined']} in quarantine)"
    )


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
