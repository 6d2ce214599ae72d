"""The launcher scripts as text, the help, and one sentence for every mistake."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from clouds import GKE, ROOT, TPU, TRAIN, Cloud, error_of, without

SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))
LAUNCHERS = ("tpu_vm.sh", "gke.sh", "slurm.sh")


def test_shellcheck_finds_nothing() -> None:
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    shellcheck = shutil.which("shellcheck", path=places)
    assert shellcheck, "shellcheck is missing; pip install -e '.[test]' brings it"
    subprocess.run([shellcheck, "--external-sources", *SCRIPTS], cwd=ROOT, check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_stop_at_errors_and_evaluate_no_strings(script: Path) -> None:
    text = script.read_text()
    assert not re.search(r"\beval\b", text)
    if script.name != "lib.sh":
        assert script.stat().st_mode & 0o111
        assert "\nset -euo pipefail\n" in text


@pytest.mark.parametrize("script", LAUNCHERS)
def test_help_names_every_command_and_flag(cloud: Cloud, script: str) -> None:
    text = (cloud.checkout / "scripts" / script).read_text()
    known = re.search(r'choose_command "(.*)" "\$@"', text)
    valued, switches = re.findall(r'parse_flags "([^"]*)" "([^"]*)"', text)[0]
    assert known
    for arguments in (("--help",), (known[1].split()[0], "-h"), ("nonsense", "--help")):
        result = cloud.run(script, *arguments)
        assert result.returncode == 0
        for command in known[1].split():
            assert f"\n  {command} " in result.stdout
        for flag in (valued + " " + switches + " dry-run").replace("\\\n", "").split():
            assert f"--{flag}" in result.stdout
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("script", "arguments", "sentence"),
    [
        *((script, (), "no command given; choose among ") for script in LAUNCHERS),
        *((script, ("fly",), "there is no command 'fly'; choose among ") for script in LAUNCHERS),
        ("tpu_vm.sh", ("install train", *TPU), "there is no command 'install train'; choose"),
        ("tpu_vm.sh", ("create", "--zone=z", "--type=v4-8"), "--name is missing; see --help."),
        ("tpu_vm.sh", ("create", "--name=big"), "--zone is missing; see --help."),
        ("tpu_vm.sh", ("create", "--name=big", "--zone=z"), "--type is missing; see --help."),
        ("tpu_vm.sh", ("train", *TPU, "--config=c"), "--workdir is missing; see --help."),
        ("tpu_vm.sh", ("train", *TPU, "--workdir=/w"), "--config is missing; see --help."),
        (
            "tpu_vm.sh",
            ("watch", *TPU, "--config=c", "--workdir=runs/x"),
            "--workdir=runs/x is neither gs://BUCKET/... nor the absolute",
        ),
        ("tpu_vm.sh", ("create", *TPU, "--colour=red"), "there is no flag --colour; see --help."),
        ("tpu_vm.sh", ("create", *TPU, "--name"), "--name needs a value, as in --name=VALUE."),
        (
            "tpu_vm.sh",
            ("create", *TPU, "--name="),
            "--name is empty; give a value or leave it out.",
        ),
        ("tpu_vm.sh", ("create", *TPU, "--spot=yes"), "--spot takes no value."),
        ("tpu_vm.sh", ("create", *TPU, "spot"), "'spot' is not a flag; see --help."),
        (
            "tpu_vm.sh",
            ("create", *TPU, "--slices=two"),
            "--slices=two is not a whole number from 1",
        ),
        (
            "tpu_vm.sh",
            ("create", *TPU, "--slices=0"),
            "--slices=0 is not a whole number from 1 on.",
        ),
        ("tpu_vm.sh", ("create", *TPU, "--name=Big"), "--name=Big is not a name of at most 48"),
        ("tpu_vm.sh", ("create", *TPU, "--type=h100-8"), "--type=h100-8 is not a TPU type; it is"),
        (
            "tpu_vm.sh",
            ("create", *TPU, "--type=v6e-255"),
            "--type=v6e-255 has a size that does not exist; choose among 1 4 8 16 32 64 128 256",
        ),
        ("tpu_vm.sh", ("create", *TPU, "--type=v5p-100"), "--type=v5p-100 has a size that does no"),
        ("tpu_vm.sh", ("train", *TPU, *TRAIN, "--run=fly"), "--run=fly is unknown; choose among"),
        ("tpu_vm.sh", ("train", *TPU, *TRAIN, "--env=A"), "--env=A is not of the form NAME=VALUE."),
        ("tpu_vm.sh", ("create", *TPU, "--type=tpu7x-8"), "--type=tpu7x-8 exists on GKE only; use"),
        (
            "tpu_vm.sh",
            ("train", *TPU, *TRAIN, "--config.steps=3"),
            "--config.steps belongs to the command on the workers; give it after --.",
        ),
        ("gke.sh", ("create-cluster", *GKE), "0 kinds of capacity given; choose one of --spot, "),
        (
            "gke.sh",
            ("create-cluster", *GKE, "--spot", "--on-demand"),
            "2 kinds of capacity given; ",
        ),
        ("gke.sh", ("train", *GKE, *TRAIN, f"--name={'n' * 41}"), "--name=nnn"),
        ("gke.sh", ("train", *GKE[:3], *TRAIN), "--image is missing; see --help."),
        ("gke.sh", ("train", GKE[0], *GKE[2:], *TRAIN), "--cluster is missing; see --help."),
        ("gke.sh", ("train", *GKE, "--config=c", "--workdir=w"), "--workdir=w is neither gs://"),
        (
            "gke.sh",
            ("train", *GKE, *TRAIN, "--", "a\nb"),
            "an argument of the command has",
        ),
        ("slurm.sh", ("train", "--name=big"), "--config is missing; see --help."),
        (
            "slurm.sh",
            ("train", "--name=big", *TRAIN, "--processes=core"),
            "--processes=core is unk",
        ),
        ("slurm.sh", ("train", "--name=big", *TRAIN), "there is no interpreter .venv/bin/python;"),
        ("slurm.sh", ("logs", "--name=big"), "there is no log runs/slurm/big-*.log yet."),
    ],
)
def test_mistakes_end_in_one_sentence(
    cloud: Cloud, script: str, arguments: tuple[str, ...], sentence: str
) -> None:
    error = error_of(cloud.run(script, *arguments))
    assert error.startswith(f"error: {sentence}")
    assert error.endswith(".")
    assert cloud.calls() == []


@pytest.mark.parametrize(
    ("program", "script", "arguments"),
    [
        ("gcloud", "tpu_vm.sh", ("create", *TPU)),
        ("git", "tpu_vm.sh", ("install", *TPU)),
        ("xpk", "gke.sh", ("train", *GKE, *TRAIN)),
        ("docker", "gke.sh", ("image", *GKE)),
        ("kubectl", "gke.sh", ("logs", *GKE)),
        ("sbatch", "slurm.sh", ("train", "--name=big", *TRAIN)),
        ("squeue", "slurm.sh", ("status", "--name=big")),
        ("scancel", "slurm.sh", ("cancel", "--name=big")),
    ],
)
def test_a_missing_program_is_named(
    cloud: Cloud, program: str, script: str, arguments: tuple[str, ...]
) -> None:
    without(cloud, program)
    assert error_of(cloud.run(script, *arguments)).startswith(f"error: {program} is not on PATH; ")


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("tpu_vm.sh", ("watch", *TPU, *TRAIN)),
        ("tpu_vm.sh", ("watch", *TPU, *TRAIN, "--dry-run")),
        ("gke.sh", ("train", *GKE, *TRAIN)),
        ("slurm.sh", ("train", "--name=big", *TRAIN, "--dry-run")),
    ],
)
def test_wrong_settings_end_the_script_before_a_machine_is_asked_for(
    cloud: Cloud, script: str, arguments: tuple[str, ...]
) -> None:
    cloud.write(
        "refusal", "INFO: a line\nerror: config.stesp is not a setting; did you mean steps?"
    )
    error = error_of(cloud.run(script, *arguments, "--", "--config.stesp=3"))
    assert error == "error: config.stesp is not a setting; did you mean steps?"
    assert cloud.calls() == []


def test_settings_that_cannot_be_checked_here_are_said_to_be_unchecked(cloud: Cloud) -> None:
    for name in ("python3", "python3.12"):
        (cloud.folder / "bin" / name).unlink()
    result = cloud.run("tpu_vm.sh", "train", *TPU, *TRAIN, "--dry-run")
    assert result.returncode == 0
    assert "the settings are not checked here" in result.stderr
    assert "--python=FILE" in result.stderr


def test_the_real_command_refuses_wrong_settings_for_a_script(cloud: Cloud) -> None:
    """The interpreter of this test checks a config that does not exist, and a mistyped key."""
    python = f"--python={sys.executable}"
    variables = {"PYTHONPATH": str(ROOT)}
    missing = ("--config=configs/none.py", "--workdir=gs://pod/run")
    result = cloud.run("tpu_vm.sh", "train", *TPU, python, *missing, "--dry-run", env=variables)
    assert "configs/none.py" in error_of(result)
    config = (f"--config={ROOT / 'configs/quickstart.py'}", "--workdir=gs://pod/run")
    words = ("tpu_vm.sh", "train", *TPU, python, *config, "--dry-run", "--")
    result = cloud.run(*words, "--config.stesp=3", env=variables)
    assert "did you mean config.steps?" in error_of(result)
    assert cloud.run(*words, "--config.steps=900", env=variables).returncode == 0
