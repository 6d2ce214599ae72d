"""Commands as a user meets them: help, mistakes in one sentence, exit codes, light imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import commands
import pytest

ROOT = Path(__file__).parent.parent
TRAIN = ("dinotxt_jax.train", "--config=configs/quickstart.py")


def command(*arguments: str, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    return commands.run(["-m", *arguments], timeout=120, fresh=fresh)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """The one sentence on standard error."""
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            (*TRAIN, "--workdir=W", "--config.batchsize=3"),
            "error: the config has no key 'batchsize', did you mean batch_size?; see --help.",
        ),
        (
            (*TRAIN, "--workdir=W", "--config.text.zzz=3"),
            "error: --config.text.zzz=3 sets a key that the config does not have; see --help.",
        ),
        (
            (*TRAIN, "--workdir=W", "--config.steps=many"),
            "flag --config.steps=many: a whole number was expected, not 'many'; see --help.",
        ),
        ((*TRAIN, "--workdir=W", "--config.text.pack=maybe"), "True or False was expected"),
        ((*TRAIN, "--workdir=W", "--colour=red"), "colour"),
        ((*TRAIN,), "error: --workdir is missing; see --help."),
        (("dinotxt_jax.train", "--config=README.md", "--workdir=W"), "README.md"),
        ((*TRAIN, "--workdir=README.md", "--config.backbone=B"), "B is not a model directory"),
        (("weights_convert", "--colour"), "unrecognized arguments: --colour; --help has examples"),
        (
            (TRAIN[0], "--config=configs/dinotxt_dinov2_reg.py:vitz", "--workdir=W"),
            "error: backbone 'vitz' is unknown; choose among vits14, vitb14",
        ),
        ((*TRAIN, "--workdir=W"), "config.backbone is empty"),
        ((*TRAIN, "--workdir=W", "--config.backbone=nowhere"), "nowhere is not a model directory"),
        (("dinotxt_jax.train", "--config=nowhere.py", "--workdir=W"), "nowhere.py"),
        (("dinotxt_jax.train", "--workdir=W"), "config"),
        (("dinotxt_jax.precompute", "--config=configs/quickstart.py"), "config.features is empty"),
        (
            (
                "dinotxt_jax.evaluate",
                "--config=configs/eval/quickstart.py",
                "--model=nowhere",
                "--output=W",
            ),
            "nowhere is not a model directory",
        ),
        (("weights_convert", "nowhere.pth", "--output=W"), "nowhere.pth"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_code_2(
    arguments: tuple[str, ...], expected: str
) -> None:
    assert expected in error_of(command(*arguments))
    assert not (ROOT / "W").exists()


@pytest.mark.parametrize(
    "module",
    ["dinotxt_jax.train", "dinotxt_jax.precompute", "dinotxt_jax.evaluate", "weights_convert"],
)
def test_help_shows_a_command_to_copy(module: str) -> None:
    result = command(module, "--help")
    assert result.returncode == 0
    assert f"python -m {module}" in result.stdout
    assert "--config" in result.stdout or "--output" in result.stdout


def test_dispatch_names_its_commands() -> None:
    result = command("dinotxt_jax.cli", "--help")
    assert result.returncode == 0
    assert "train" in result.stdout
    assert "evaluate" in result.stdout
    assert "'paint' is not a command" in error_of(command("dinotxt_jax.cli", "paint"))


def test_dispatch_runs_the_entry_point() -> None:
    assert "config.features is empty" in error_of(
        command("dinotxt_jax.cli", "precompute", "--config=configs/quickstart.py", fresh=True)
    )


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, dinotxt_jax; heavy = {'tensorflow', 'tensorflow_datasets', 'apache_beam', "
        "'gradio', 'matplotlib', 'torch', 'array_record'}; print(sorted(heavy & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
