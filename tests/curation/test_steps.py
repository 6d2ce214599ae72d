"""Commands of curation: steps by name, and mistakes in one sentence."""

from __future__ import annotations

from pathlib import Path

import commands
import pytest
from blobs import blobs, write_embeddings

SETTINGS = ("--config.data.num_scenes=60", "--config.image.levels=(6, 2)")


def test_steps_run_from_the_command_line(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "e", blobs([40, 15, 5]))
    for arguments, expected in (
        (["cluster", "e", "--output=c", "--config.image.rounds=(0, 0)"], "60 examples are in 6, 2"),
        (["deduplicate", "e", "c", "--output=unique.npz"], "of 60 examples are no near-dup"),
        (["sample", "c", "--output=list.npz", "--config.target=20"], "20 examples are sampled"),
    ):
        rounds = () if "cluster" in arguments else ("--config.image.rounds=(0, 0)",)
        command = ["-m", "dinotxt_jax.curate", *arguments, *SETTINGS, *rounds]
        result = commands.run(command, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert expected in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("curate", "clusters", "--output=c"), "'clusters' is not a step of curate; did you mean"),
        (
            ("curate", "cluster", "e", "--output=c", "--config.image.levels=(6, 2)"),
            "config.image.rounds has 3 numbers, expected one for each of the 2 levels",
        ),
        (
            ("curate", "cluster", "e", "--output=c", "--config.image.levels=(6, 20, 3)"),
            "expected fewer clusters on each level than on the level before",
        ),
        (
            ("curate", "cluster", "e", "--output=c", "--config.image.coarse=2000"),
            "config.image.coarse is 2000, expected fewer than the 1000 clusters",
        ),
        (
            ("embed", "a.png", "--config=pool.py", "--model=M", "--output=e"),
            "--config and images or texts are given, expected only one",
        ),
    ],
)
def test_mistakes_end_in_a_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    (tmp_path / "pool.py").write_text(
        "from dinotxt_jax.config import CurationConfig, to_config_dict\n"
        "def get_config():\n    return to_config_dict(CurationConfig())\n"
    )
    command, *rest = arguments
    result = commands.run(["-m", f"dinotxt_jax.{command}", *rest], cwd=tmp_path)
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "c").exists()
