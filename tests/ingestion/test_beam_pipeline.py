"""Beam writes the same bytes as processes on one machine (`make beam`; skipped without Beam)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import commands
import pytest
from small_sets import png, write_index

from dinotxt_jax.config import DataConfig, IngestionConfig
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.run import ingest

pytest.importorskip("apache_beam", reason="Apache Beam is not installed (make beam)")
from dinotxt_jax.ingestion.beam_pipeline import BeamRunner
from dinotxt_jax.runtime.beam_pipelines import BeamPipelines


@pytest.fixture
def config(tmp_path: Path) -> IngestionConfig:
    """Writes 50 images, of which 30 differ and two cannot be stored."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    lines = []
    for number in range(50):
        (folder / f"{number}.png").write_bytes(png(number % 30) if number % 25 else b"")
        lines.append(
            {"image": f"{number}.png", "caption": f"text {number % (15 if number < 40 else 50)}"}
        )
    index = str(write_index(folder, *lines))
    data = DataConfig(source="jsonl", path=index, threads=2, max_bad_fraction=0.1)
    return IngestionConfig(data=data, shard_size=8, workers=1)


def contents(folder: Path) -> dict[str, bytes]:
    """Returns all files of an output folder by their path in it."""
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize("kind", ["none", "image", "pair"])
def test_beam_writes_the_same_bytes(kind: str, config: IngestionConfig, tmp_path: Path) -> None:
    config = dataclasses.replace(config, deduplicate=kind)
    manifest = ingest(config, str(tmp_path / "local"))
    assert (
        ingest(config, str(tmp_path / "beam"), BeamRunner(BeamPipelines("DirectRunner", "")))
        == manifest
    )
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    assert manifest["counts"]["quarantined"] == 2
    assert (manifest["counts"]["duplicates"] > 0) == (kind != "none")


def test_beam_continues_what_processes_began(config: IngestionConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = dataclasses.replace(config, deduplicate="image")
    ingest(config, str(out))
    before = contents(out)
    for name in ("manifest.json", "parts/00003.json", "pairs-00005-of-00007.array_record"):
        (out / name).unlink()
    kept = out / "pairs-00001-of-00007.array_record"
    written = kept.stat().st_mtime_ns
    ingest(config, str(out), BeamRunner(BeamPipelines("DirectRunner", "--direct_num_workers=1")))
    assert contents(out) == before
    assert kept.stat().st_mtime_ns == written


def test_errors_of_workers_stay_one_sentence(config: IngestionConfig, tmp_path: Path) -> None:
    runner = BeamRunner(BeamPipelines("DirectRunner", ""))
    few = dataclasses.replace(config.data, max_bad_fraction=0.01)
    with pytest.raises(UserError, match=r"^2 of 50 examples cannot be stored \(for instance exam"):
        ingest(dataclasses.replace(config, data=few), str(tmp_path / "few"), runner)
    # The index shrinks between the start and the work.
    index = Path(config.data.path)

    def after_a_change(*arguments: Any) -> None:
        index.write_text(index.read_text().split("\n")[0] + "\n")
        runner(*arguments)

    with pytest.raises(UserError) as raised:
        ingest(config, str(tmp_path / "out"), after_a_change)
    assert str(raised.value) == (
        "the source has 1 examples on a worker, expected 50; give all workers access to the same "
        "files."
    )


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("NoRunner", "", "Unexpected pipeline runner: NoRunner"),
        ("DataflowRunner", "", "Missing required option: project"),
        ("DirectRunner", "--direct_num_workers=x", "--direct_num_workers=x"),
        ("DirectRunner", "'", "No closing quotation"),
    ],
)
def test_wrong_runners_end_before_anything_is_written(
    runner: str, options: str, message: str
) -> None:
    with pytest.raises(UserError) as raised:
        BeamPipelines(runner, options)
    assert message in str(raised.value)


def test_the_command_takes_a_runner(config: IngestionConfig, tmp_path: Path) -> None:
    arguments = [
        *("-m", "dinotxt_jax.ingest", "--output=out", "--config.data.source=jsonl"),
        *(f"--config.data.path={config.data.path}", "--config.data.max_bad_fraction=0.1"),
    ]
    environment = commands.environment(DINOTXT_CACHE=str(tmp_path / "cache"))
    result = commands.run(
        [*arguments, "--runner=DirectRunner", "--beam_options=--direct_num_workers=1"],
        cwd=tmp_path,
        env=environment,
    )
    assert result.returncode == 0, result.stderr
    assert "out: 48 records of 50 examples (0 duplicates, 2 in quarantine)" in result.stdout
    refused = commands.run([*arguments, "--runner=NoRunner"], cwd=tmp_path, env=environment)
    assert refused.returncode == 2
    assert "--runner=NoRunner" in refused.stderr
    assert "Traceback" not in refused.stderr
