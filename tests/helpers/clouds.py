"""Fake gcloud, xpk, docker, Slurm and Python programs that record their calls.

`gcloud ... ssh` runs the command on two simulated workers with separate home folders, so that the
commands sent by the launchers are really executed. The real programs are unreachable: PATH
contains only the fakes and the common tools below.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TOOLS = (
    *("bash", "cat", "cmp", "cp", "cut", "date", "dirname", "env", "git", "grep", "gzip", "head"),
    *("id", "mkdir", "mktemp", "mv", "rm", "seq", "setsid", "sh", "tail", "tar"),
)
WORKERS = ("worker0", "worker1")

AWKWARD = """--config.data.path=it's a "path" with $HOME, `date` & *"""
TPU = ("--name=big", "--zone=us-east5-b", "--type=v6e-256")
TRAIN = ("--config=configs/c.py", "--workdir=/mnt/shared/run")
GKE = ("--name=big", "--cluster=pods", "--type=v5e-16", "--image=example/dinotxt_jax:1")
ON_POD = ["gcloud", "compute", "tpus", "tpu-vm"]
ON_SLICES = ["gcloud", "compute", "tpus", "queued-resources"]
WORKER = "dinotxt_jax/scripts/worker.sh"

# Arguments end with NUL, calls with a record separator. Each call is a single write, because calls
# may overlap.
RECORD = r"""#!/usr/bin/env bash
set -euo pipefail
record() { printf '%s\0' "$@" $'\x1e' >>"$CLOUD/calls"; }
# The next line of a file of answers; the last one stays.
answer() {
  head -n 1 "$CLOUD/$1"
  if (($(grep -c '' "$CLOUD/$1") > 1)); then
    tail -n +2 "$CLOUD/$1" >"$CLOUD/$1.rest" && mv "$CLOUD/$1.rest" "$CLOUD/$1"
  fi
}
# Checks of settings happen here and are no calls to a cloud.
[[ ${!#} == --print_config || ${2-} == "import dinotxt_jax.cli" ]] || record "${0##*/}" "$@"
"""

# `answers` has one line for each `describe`; ABSENT and BROKEN are the two failure modes.
GCLOUD = r"""
fail_once() {
  [[ ! -f $CLOUD/fail.$1 ]] || { rm "$CLOUD/fail.$1"; echo "ERROR: $1 failed" >&2; exit 1; }
}
trainings() { grep -c "training in" "$1/dinotxt_train.log" 2>/dev/null || true; }
workers=("$CLOUD"/worker?)
fail_once "$4"
case $4 in
  describe)
    state=$(answer answers)
    case $state in
      ABSENT) echo "ERROR: NOT_FOUND: Resource '$5' was not found" >&2; exit 1 ;;
      BROKEN) echo "ERROR: PERMISSION_DENIED" >&2; exit 1 ;;
    esac
    echo "$state"
    ;;
  create) mkdir -p "$CLOUD/worker0" "$CLOUD/worker1" ;;
  delete)
    for home in "${workers[@]}"; do
      pid=$(cat "$home/dinotxt_train.pid" 2>/dev/null || true)
      # Nothing but a training of this cloud may be hit.
      if ((${pid:-0} > 1)) && grep -qsaF "$CLOUD" "/proc/$pid/cmdline"; then
        kill -KILL -- "-$pid"
      fi
      rm -rf "$home"
    done
    ;;
  scp) for home in "${workers[@]}"; do cp "$5" "$home/${6#*:}"; done ;;
  ssh)
    for word in "$@"; do
      case $word in
        --command=*) command=${word#--command=} ;;
        --worker=[0-9]*) workers=("$CLOUD/worker${word#--worker=}") ;;
      esac
    done
    for home in "${workers[@]}"; do
      before=$(trainings "$home")
      (cd "$home" && HOME=$home bash -c "$command") || exit
      # Started trainings are given the time to come up: tests would depend on it otherwise.
      [[ $command != *"worker.sh start"* ]] ||
        while (($(trainings "$home") == before)); do sleep 1; done
    done
    ;;
esac
"""

# Creates environments whose Python is this fake again. `plan.WORKER` has one line for each
# training run: the exit code, or "hang".
PYTHON = r"""
case "$1 ${2-}" in
  "-c "*) [[ ! -f $CLOUD/old.${0##*/} ]] ;;
  "-m venv") mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m uv") mkdir -p "${!#}/bin" && cp "$0" "${!#}/bin/python" ;;
  "-m dinotxt_jax."*)
    if [[ ${!#} == --print_config ]]; then
      [[ ! -f $CLOUD/refusal ]] || { cat "$CLOUD/refusal" >&2; exit 2; }
      exit
    fi
    plan=$(answer "plan.${HOME##*/}")
    echo "training in $PWD: $plan"
    [[ $plan == hang ]] || exit "$plan"
    trap 'exit 143' TERM
    while :; do sleep 1; done
    ;;
esac
"""

SRUN = r"""
echo "${JAX_LOCAL_DEVICE_IDS-unset}" >"$CLOUD/devices"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""

FAKES = {
    "gcloud": GCLOUD,
    "xpk": "",
    "kubectl": "",
    "sbatch": "",
    "squeue": "",
    "scancel": "",
    "scontrol": "",
    "docker": '[[ $1 != build ]] || cat >"$CLOUD/context.tar.gz"',
    "srun": SRUN,
    "python3": PYTHON,
    "python3.12": PYTHON,
}


@dataclass
class Cloud:
    """The fake programs, and a checkout that contains the real scripts."""

    folder: Path

    @property
    def checkout(self) -> Path:
        return self.folder / "my checkout"

    def environment(self, **more: str) -> dict[str, str]:
        # No variable is inherited from the machine's environment, so that none can affect the test.
        room = self.folder / "tmp"
        room.mkdir(exist_ok=True)
        return {
            "PATH": str(self.folder / "bin"),
            "CLOUD": str(self.folder),
            "HOME": str(self.folder),
            "TMPDIR": str(room),
            "DINOTXT_GRACE": "5",
            "SLURM_JOB_ID": "7",
            **more,
        }

    def run(
        self, script: str, *arguments: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.checkout / "scripts" / script, *arguments],
            cwd=self.folder,
            env=self.environment(**(env or {})),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def calls(self, *programs: str) -> list[list[str]]:
        """Returns the recorded calls, program name first, for some programs or for all."""
        file = self.folder / "calls"
        text = file.read_text() if file.exists() else ""
        calls = [call.split("\0")[:-1] for call in text.split("\x1e\0") if call]
        return [call for call in calls if not programs or call[0] in programs]

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))


def cloud_in(folder: Path) -> Iterator[Cloud]:
    """Creates a cloud in an empty folder; kills training runs that are still active at the end."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    for tool in TOOLS:
        result = shutil.which(tool)
        assert result, f"the tests of the scripts need {tool}"
        (programs / tool).symlink_to(result)
    for name, body in FAKES.items():
        (programs / name).write_text(RECORD + body)
        (programs / name).chmod(0o755)
    real_sleep = shutil.which("sleep")
    (programs / "sleep").write_text(f"#!/bin/sh\nexec {real_sleep} 0.02\n")
    (programs / "sleep").chmod(0o755)
    cloud = Cloud(folder)
    shutil.copytree(ROOT / "scripts", cloud.checkout / "scripts")
    (cloud.checkout / ".gitignore").write_text("runs/\n")
    (cloud.checkout / "runs").mkdir()
    (cloud.checkout / "runs" / "large").write_text("not for the workers")
    (cloud.checkout / "new file.py").write_text("")
    subprocess.run(["git", "init", "--quiet", str(cloud.checkout)], check=True)
    yield cloud
    for file in folder.glob("worker?/dinotxt_train.pid"):
        kill_training(folder, int(file.read_text()))


def kill_training(folder: Path, process: int) -> None:
    """Kills the process group of a training run in this cloud and leaves other processes alone."""
    command = Path(f"/proc/{process}/cmdline")
    if process > 1 and command.exists() and str(folder).encode() in command.read_bytes():
        os.killpg(process, signal.SIGKILL)


def without(cloud: Cloud, *programs: str) -> None:
    """Removes programs from PATH."""
    for program in programs:
        (cloud.folder / "bin" / program).unlink(missing_ok=True)


def dry(cloud: Cloud, script: str, command: str, *arguments: str) -> list[list[str]]:
    """Returns the commands printed by a dry run, split as a shell does; asserts no program ran."""
    without(cloud, "gcloud", "xpk", "sbatch", "docker", "kubectl", "squeue", "scancel")
    result = cloud.run(script, command, "--dry-run", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    assert cloud.calls() == []
    assert not list((cloud.folder / "tmp").iterdir())
    return [
        shlex.split(line, comments=True) for line in result.stdout.splitlines() if line[0] != "#"
    ]


def flags(command: list[str]) -> dict[str, str]:
    """Returns the --NAME=VALUE flags in a command."""
    return dict(word.removeprefix("--").split("=", 1) for word in command if "=" in word)


def error_of(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line
