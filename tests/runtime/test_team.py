"""Several processes that were started together share an ingestion and steps of a curation."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest
import several
from small_sets import png, write_index

ANIMALS = ["dog", "cat", "horse"]


@pytest.fixture
def pool(tmp_path: Path) -> list[str]:
    """Writes 40 images, of which two are repeated, and returns the flags for them."""
    lines = []
    for number in range(40):
        (tmp_path / f"{number:02d}.png").write_bytes(png(number % 38))
        text = f"photo {number}: a {ANIMALS[min(number % 7, 2)]}"
        lines.append({"image": f"{number:02d}.png", "captions": text})
    index = write_index(tmp_path, *lines)
    (tmp_path / "animals.txt").write_text("\n".join(ANIMALS) + "\n")
    return ["--config.data.source=jsonl", f"--config.data.path={index}", "--config.workers=1"]


def alone(arguments: list[str]) -> None:
    result = commands.run(["-m", *arguments], env=commands.environment(1))
    assert result.returncode == 0, result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_processes_ingest_together_what_one_ingests(pool: list[str], tmp_path: Path) -> None:
    ingest = ["dinotxt_jax.ingest", *pool, "--config.shard_size=7", "--config.deduplicate=image"]
    arguments = ["-m", *ingest, f"--output={tmp_path / 'both'}"]
    group = several.start(tmp_path / "logs", 2, 1, arguments)
    assert group.finish() == [0, 0], group.everything()
    assert "38 records of 40 examples (2 duplicates, 0 in quarantine)" in group.output(0)
    assert "records" not in group.output(1)
    alone([*ingest, f"--output={tmp_path / 'one'}"])
    assert contents(tmp_path / "both") == contents(tmp_path / "one")


@pytest.mark.slow  # eight processes
def test_processes_balance_captions_together_and_the_first_does_other_steps(
    pool: list[str], tmp_path: Path
) -> None:
    def together(name: str, *arguments: str) -> several.Group:
        command = ["-m", "dinotxt_jax.curate", *arguments, *pool]
        return several.start(tmp_path / name, 2, 1, command)

    balance = ("--config.balance.range_size=6", "--config.balance.threshold=3")
    text = ("text", str(tmp_path / "animals.txt"), *balance)
    both = together("text", *text, f"--output={tmp_path / 'both'}")
    assert both.finish() == [0, 0], both.everything()
    assert "40 match an entry" in both.output(0)
    assert "match an entry" not in both.output(1)
    alone(["dinotxt_jax.curate", *text, *pool, f"--output={tmp_path / 'one'}"])
    assert contents(tmp_path / "both") == contents(tmp_path / "one")

    lists = [str(tmp_path / name / "kept.npz") for name in ("both", "one")]
    combined = together("combine", "combine", *lists, f"--output={tmp_path / 'list.npz'}")
    assert combined.finish() == [0, 0], combined.everything()
    assert "examples are kept" in combined.output(0)
    assert (tmp_path / "list.npz").exists()

    (tmp_path / "animals.txt").write_text("unicorn\n")
    nothing = together("nothing", *text, f"--output={tmp_path / 'nothing'}")
    assert nothing.finish() == [2, 2], nothing.everything()
    assert "error: no caption of the pool matches an entry of" in nothing.output(0)
    assert "error: process 0 stopped: no caption of the pool" in nothing.output(1)
    assert not (tmp_path / "nothing" / ".lock").exists()


@pytest.mark.slow
def test_processes_with_different_settings_write_nothing(pool: list[str], tmp_path: Path) -> None:
    arguments = ["-m", "dinotxt_jax.ingest", *pool, f"--output={tmp_path / 'out'}"]
    sizes = [["--config.shard_size=7"], ["--config.shard_size=8"]]
    group = several.start(tmp_path / "logs", 2, 1, arguments, sizes)
    assert group.finish() == [2, 2], group.everything()
    assert "process 1 has config.shard_size 8 (process 0: 7)" in group.output(0)
    assert not (tmp_path / "out").exists()
