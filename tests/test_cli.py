"""Commands from the user's view: help, one-sentence errors, exit codes, light imports."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import commands
import pytest

import dinotxt_jax
from dinotxt_jax import cli
from dinotxt_jax.cli import COMMANDS

ROOT = Path(__file__).parent.parent
TRAIN = ("dinotxt_jax.train", "--config=configs/quickstart.py")


def command(*arguments: str, fresh: bool = False) -> subprocess.CompletedProcess[str]:
    return commands.run(["-m", *arguments], timeout=120, fresh=fresh)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    """Returns the single sentence on standard error."""
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
            "error: config.batchsize is not a setting; did you mean config.batch_size?",
        ),
        (
            (*TRAIN, "--workdir=W", "--config.backbone=B", "--config.seed=-1"),
            "error: config.seed is -1, expected a number from 0 to 2^63 - 1; set it to a number in",
        ),
        ((*TRAIN, "--workdir=README.md", "--config.backbone=B"), "B is not a model directory"),
        (("weights_convert", "--colour"), "unrecognized arguments: --colour; --help has examples"),
        ((*TRAIN, "--workdir=W", "--config.backbone=nowhere"), "nowhere is not a model directory"),
        (
            (
                "dinotxt_jax.precompute",
                "--config=configs/quickstart.py",
                "--config.features=W",
                "--config.precision.frozen=bf16",
            ),
            "error: config.precision.frozen is 'bf16', expected float32 or bfloat16; did you mean",
        ),
        (
            (
                "dinotxt_jax.plan",
                "--config=configs/dinotxt_dinov2_reg.py",
                "--eval=configs/eval/quickstart.py",
                "--eval.tasks.scenes.data.split=val",
            ),
            "error: eval.tasks.scenes.data.split is 'val', expected train or test; set it to one",
        ),
        (
            (
                "dinotxt_jax.plan",
                "--config=configs/dinotxt_dinov2_reg.py",
                "--dtype=bf16",
            ),
            "error: --dtype is 'bf16', expected float32 or bfloat16; did you mean 'bfloat16'?",
        ),
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


def test_empty_variables_of_jax_and_launchers_count_as_unset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("JAX_ENABLE_X64", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n1")
    monkeypatch.setenv("SLURM_NTASKS", "")
    result = command(*TRAIN, "--workdir=W", "--config.backbone=nowhere", fresh=True)
    assert "nowhere is not a model directory" in error_of(result)


def test_the_soft_limit_on_open_files_becomes_the_hard_one() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
        cli.raise_file_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (limits[1], limits[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


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
    assert "Trains the head and the text transformer" in result.stdout
    error = error_of(command("dinotxt_jax.cli", "trian"))
    assert error == "error: 'trian' is not a command; did you mean train?"


def test_every_command_has_a_description_of_a_line() -> None:
    for name, module in cli.COMMANDS.items():
        text = cli.description(module)
        assert re.fullmatch(r"[A-Z][^\n]{10,100}\.", text), name
        assert "python -m" not in text, name


@pytest.mark.parametrize("arguments", [(), ("train",)])
def test_versions_are_printed(arguments: tuple[str, ...]) -> None:
    result = command("dinotxt_jax.cli", *arguments, "--version")
    assert result.returncode == 0
    numbers = r"\d+\.\d+\S*"
    expected = rf"dinotxt_jax {numbers}, jax {numbers}, flax {numbers}, Python 3\.\S+\n"
    assert re.fullmatch(expected, result.stdout)


def test_an_unknown_command_lists_all_commands() -> None:
    assert "'paint' is not a command; choose among convert, train" in error_of(
        command("dinotxt_jax.cli", "paint")
    )


def test_dispatch_runs_the_entry_point() -> None:
    assert "config.features is empty" in error_of(
        command("dinotxt_jax.cli", "precompute", "--config=configs/quickstart.py", fresh=True)
    )


def loaded(code: str) -> set[str]:
    """Returns the packages that a program has imported when it exits."""
    report = "; import sys; print('\\n' + ' '.join({name.split('.')[0] for name in sys.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", code + report],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(result.stdout.splitlines()[-1].split())


# Packages used in JAX programs, each of which takes a tenth of a second to seconds to import.
HEAVY = {
    *("jax", "jaxlib", "flax", "optax", "orbax", "tensorstore", "grain", "etils", "PIL", "scipy"),
    *("tokenizers", "safetensors", "tensorboardX", "matplotlib", "tensorflow_datasets"),
    *("tensorflow", "apache_beam", "gradio", "torch", "array_record", "pandas", "pyarrow"),
}


def test_importing_the_package_loads_nothing_heavy() -> None:
    names = loaded("import dinotxt_jax as dt; dt.UserError; assert 'load' in dir(dt)")
    assert names & (HEAVY | {"numpy", "absl", "ml_collections"}) == set()


def test_the_package_imports_lazily_and_never_tensorflow() -> None:
    names = loaded("import dinotxt_jax; dinotxt_jax.load, dinotxt_jax.load_backbone")
    assert {"jax", "flax", "tokenizers"} <= names
    assert names & {"tensorflow", "tensorflow_datasets", "apache_beam", "torch", "gradio"} == set()
    with pytest.raises(AttributeError, match="module 'dinotxt_jax' has no attribute 'lode'"):
        dinotxt_jax.lode  # noqa: B018


@pytest.mark.parametrize("module", COMMANDS.values())
def test_help_does_not_wait_for_jax(module: str) -> None:
    """`sys.argv` names the command, as with `python -m`."""
    code = (
        f"import contextlib, runpy, sys\nsys.argv = [{module!r}, '--help']\n"
        f"with contextlib.suppress(SystemExit): runpy.run_module({module!r}, run_name='__main__')\n"
        "pass"
    )
    assert loaded(code) & HEAVY == set()
