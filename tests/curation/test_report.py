"""The report: figures, examples by text, and results that cannot be reported."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import commands
import numpy as np
import pytest
from small_sets import write_index

from dinotxt_jax import UserError
from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.config.curation import BalanceConfig
from dinotxt_jax.curation.report import write_report
from dinotxt_jax.curation.runners import in_processes
from dinotxt_jax.curation.text_step import balance_text
from dinotxt_jax.data.kept import read_kept


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    """Balances a pool: 50 dogs, of which few stay, and five zebras."""
    texts = [f"<dog> & dog number {n}" for n in range(50)] + [f"zebra {n}" for n in range(5)]
    lines = [{"image": f"{n}.png", "captions": text} for n, text in enumerate([*texts, "nothing"])]
    data = DataConfig(source="jsonl", path=str(write_index(tmp_path, *lines)), threads=0)
    config = CurationConfig(data=data, workers=1, balance=BalanceConfig(threshold=5))
    (tmp_path / "entries.txt").write_text("dog\nzebra\nunicorn\n")
    balance_text(config, [str(tmp_path / "entries.txt")], tmp_path / "text", in_processes)
    return config


def test_a_person_reads_shares_entries_and_examples(config: CurationConfig, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    folder, file = tmp_path / "text", tmp_path / "text" / "kept.npz"
    assert (
        write_report(config, [str(folder), str(file)], page)
        == f"{page} describes {folder}, {file}."
    )
    text = page.read_text()
    counts = read_kept(file, "x").rows.counts(56)
    kept, dogs = int(counts.sum()), int(counts[:50].sum())
    assert dogs < 15
    assert text.count(f"{kept} of 56 examples are kept ({kept / 56:.1%}).") == 2
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert ["dog", "50", str(dogs), f"{dogs / 50:.1%}"] in rows
    assert ["zebra", "5", "5", "100.0%"] in rows
    assert ["entries without a caption in the pool", "1"] in rows
    first_kept = int(np.flatnonzero(counts)[0])
    assert [f"{first_kept}.png", html.escape(f"<dog> & dog number {first_kept}")] in rows
    first_dropped = int(np.flatnonzero(counts == 0)[0])
    assert [
        f"{first_dropped}.png",
        html.escape(f"<dog> & dog number {first_dropped}"),
    ] in rows
    assert f"<h3>Dropped: {56 - kept} examples</h3>" in text
    assert 'src="data:image/png;base64,' in text
    # Everything is inside the file.
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_results_that_cannot_be_reported_end_in_a_sentence(
    config: CurationConfig, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    other = dataclasses.replace(config, data=DataConfig(num_scenes=7))
    folder = str(tmp_path / "text")
    for settings, paths, message in (
        (config, [], r"no result is named, expected results of other steps"),
        (config, [str(tmp_path)], r"holds no result, expected a folder that text has written or a"),
        (other, [folder], r"was made for another pool: 56 examples there, 7 here"),
    ):
        with pytest.raises(UserError, match=message):
            write_report(settings, paths, page)
    (tmp_path / "text" / "entries.tsv").write_text("entry\tlanguage\n")
    with pytest.raises(UserError, match=r"entries.tsv is damaged or missing .*; run python -m"):
        write_report(config, [folder], page)
    with pytest.raises(UserError, match=r"is a folder, expected a file to write"):
        write_report(config, [folder], tmp_path)
    assert not page.exists()


def test_the_command_makes_metadata_a_list_and_a_report(
    config: CurationConfig, tmp_path: Path
) -> None:
    def command(*arguments: object) -> str:
        settings = ("--config.data.source=jsonl", f"--config.data.path={config.data.path}")
        result = commands.run(
            ["-m", "dinotxt_jax.curate", *map(str, arguments), *settings],
            cwd=tmp_path,
            env=commands.environment(DINOTXT_CACHE=str(tmp_path / "cache")),
        )
        return result.stdout + (result.stderr if result.returncode else "")

    assert "entries in en.txt." in command(
        "metadata", "--output=metadata", "--config.workers=1", "--config.metadata.min_count=1"
    )
    out = ("--output=balanced", "--config.workers=1")
    assert "20 of 56 examples are kept" in command("text", "metadata", *out, "--config.target=20")
    assert "page.html describes balanced." in command("report", "balanced", "--output=page.html")
    assert "'reports' is not a step of curate; did you mean report?" in command("reports", *out)
    refused = command("text", "metadata", *out, "--beam_options=x")
    assert "--beam_options is given without --runner; give the runner, too." in refused
