"""Beam keeps the same set as processes on one machine (`make beam`; skipped without Beam)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from small_sets import write_index

from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.config.curation import BalanceConfig
from dinotxt_jax.curation.runners import OnBeam, in_processes
from dinotxt_jax.curation.steps import CURATION_STEPS
from dinotxt_jax.curation.text_step import balance_text
from dinotxt_jax.errors import UserError

pytest.importorskip("apache_beam", reason="Apache Beam is not installed (make beam)")
from dinotxt_jax.runtime.beam_pipelines import BeamPipelines


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    texts = [f"a {'dog' if n % 3 else 'zebra'} with number {n % 40}" for n in range(300)]
    lines = [{"image": f"{n}.png", "captions": text} for n, text in enumerate(texts)]
    data = DataConfig(source="jsonl", path=str(write_index(tmp_path, *lines)), threads=2)
    (tmp_path / "entries.txt").write_text("dog\nzebra\n" + "\n".join(map(str, range(40))))
    return CurationConfig(data=data, workers=1, balance=BalanceConfig(threshold=3, range_size=40))


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.mark.parametrize(
    "options", ["", "--direct_num_workers=2 --direct_running_mode=multi_threading"]
)
def test_beam_writes_the_same_bytes(options: str, config: CurationConfig, tmp_path: Path) -> None:
    metadata = [str(tmp_path / "entries.txt")]
    balance_text(config, metadata, tmp_path / "local", in_processes)
    runner = OnBeam(BeamPipelines("DirectRunner", options))
    balance_text(config, metadata, tmp_path / "beam", runner)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")
    # Beam continues what processes began.
    (tmp_path / "local" / "matches" / "000002.npz").unlink()
    balance_text(config, metadata, tmp_path / "local", runner)
    assert contents(tmp_path / "beam") == contents(tmp_path / "local")


def test_steps_without_a_runner_refuse_one(config: CurationConfig, tmp_path: Path) -> None:
    pipelines = BeamPipelines("DirectRunner", "")
    with pytest.raises(
        UserError, match=r"^--runner is given, but combine runs on this machine; re"
    ):
        CURATION_STEPS["combine"].run(config, [], tmp_path / "x", pipelines)


def test_errors_of_workers_stay_one_sentence(config: CurationConfig, tmp_path: Path) -> None:
    metadata = tmp_path / "entries.txt"
    index = Path(config.data.path)
    on_beam = OnBeam(BeamPipelines("DirectRunner", ""))

    def after_a_change(job, source):
        index.write_text(index.read_text().split("\n")[0] + "\n")
        return on_beam(job, source)

    config = dataclasses.replace(config, seed=1)
    with pytest.raises(UserError, match=r"^the pool has 1 examples on a worker, expected 300; let"):
        balance_text(config, [str(metadata)], tmp_path / "out", after_a_change)
