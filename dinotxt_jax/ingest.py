"""Copies image-text pairs from any source into ArrayRecord shards with a manifest.

    python -m dinotxt_jax.ingest --output=DIR [--config=FILE] --config.data.source=webdataset \\
        --config.data.path='data/*.tar' [--config.KEY=VALUE ...]

Training reads the result with --config.data.source=array_record --config.data.path=DIR. Examples
that cannot be stored are listed with reasons in DIR/quarantine.jsonl. After an interruption, run
the same command again to continue; run on a finished DIR, it verifies all shards and writes damaged
ones again. Several processes that are started together, such as those of a pod's hosts, share the
work. With --runner, the same work is an Apache Beam pipeline, for clusters
(pip install 'dinotxt_jax[beam]').
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags

from dinotxt_jax import cli
from dinotxt_jax.cli_flags import define_beam, define_config
from dinotxt_jax.config import IngestionConfig

if TYPE_CHECKING:
    from dinotxt_jax.ingestion.local import IngestionRunner

_CONFIG = define_config(
    "config", IngestionConfig, "File with get_config(); optional.", default=IngestionConfig()
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder for the shards, local or gs://BUCKET/....", required=True
)
cli.define_process_flags()
_PIPELINES = define_beam()


def _runner() -> IngestionRunner:
    from dinotxt_jax.ingestion.local import run_in_processes

    pipelines = _PIPELINES()
    if pipelines is None:
        return run_in_processes
    from dinotxt_jax.ingestion.beam_pipeline import BeamRunner

    return BeamRunner(pipelines)


def _body() -> None:
    from dinotxt_jax.ingestion.run import ingest
    from dinotxt_jax.runtime import processes

    counts = ingest(_CONFIG.value, _OUTPUT.value, _runner())["counts"]
    if not processes.is_first():
        return
    print(
        f"{_OUTPUT.value}: {counts['records']} records of {counts['examples']} examples "
        f"({counts['duplicates']} duplicates, {counts['quarantined']} in quarantine)"
    )


def main() -> None:
    """The command."""
    cli.run(_body)


if __name__ == "__main__":
    main()
