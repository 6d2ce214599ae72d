"""Complete runs against fake clouds: the commands that workers, clusters and jobs receive."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from clouds import AWKWARD, GKE, TPU, TRAIN, WORKER, WORKERS, Cloud, flags


def trained(cloud: Cloud) -> list[list[str]]:
    """Returns the arguments for every training run that was started."""
    return [call[3:] for call in cloud.calls("python") if call[1:3] == ["-m", "dinotxt_jax.train"]]


def is_training(process: int) -> bool:
    command = Path(f"/proc/{process}/cmdline")
    return command.exists() and b"worker.sh" in command.read_bytes()


def verbs(cloud: Cloud) -> list[str]:
    """Returns the gcloud verbs that were called, without state and progress queries."""
    calls = [call for call in cloud.calls("gcloud") if call[4] != "describe"]
    return [call[4] for call in calls if f"{WORKER} progress" not in call[-1]]


def test_a_pod_is_created_installed_trained_stopped_and_deleted(cloud: Cloud) -> None:
    cloud.write("answers", "READY")
    for worker in WORKERS:
        cloud.write(f"plan.{worker}", "hang")
    (cloud.checkout / "mount it.sh").write_text('cp "$0" "$HOME/mounted"')
    for command in ("create", "install", "train"):
        arguments = (*TPU, *TRAIN, "--setup=mount it.sh", "--", AWKWARD)
        assert cloud.run("tpu_vm.sh", command, *arguments).returncode == 0
    for worker in WORKERS:
        code = cloud.folder / worker / "dinotxt_jax"
        # New files are copied, ignored files are not.
        copied = sorted(path.name for path in code.iterdir())
        assert copied == [".gitignore", "mount it.sh", "new file.py", "scripts"]
        assert (cloud.folder / worker / "mounted").exists()
    installs = [call[1:] for call in cloud.calls("python") if call[1:3] == ["-m", "pip"]]
    assert installs.count(["-m", "pip", "install", "--quiet", "--editable", ".[tpu,gcs]"]) == 2
    assert cloud.run("tpu_vm.sh", "status", *TPU).stdout == "READY\nrunning\nrunning\n"
    log = cloud.run("tpu_vm.sh", "logs", *TPU, "--worker=1").stdout
    assert f"training in {cloud.folder}/worker1/dinotxt_jax: hang" in log
    # Another training run replaces the current one.
    first = [int((cloud.folder / worker / "dinotxt_train.pid").read_text()) for worker in WORKERS]
    assert all(is_training(process) for process in first)
    assert cloud.run("tpu_vm.sh", "train", *TPU, *TRAIN).returncode == 0
    assert not any(is_training(process) for process in first)
    assert cloud.run("tpu_vm.sh", "status", *TPU).stdout == "READY\nrunning\nrunning\n"
    assert cloud.run("tpu_vm.sh", "stop", *TPU).returncode == 0
    assert cloud.run("tpu_vm.sh", "status", *TPU).stdout == "READY\nexit 143\nexit 143\n"
    assert trained(cloud)[:2] == [[*TRAIN, AWKWARD]] * 2
    assert trained(cloud)[2:] == [list(TRAIN)] * 2
    assert cloud.run("tpu_vm.sh", "delete", *TPU).returncode == 0
    assert not list(cloud.folder.glob("worker?"))
    assert not list((cloud.folder / "tmp").iterdir())


def test_a_watch_outlives_preemption_and_ends_with_training(cloud: Cloud) -> None:
    cloud.write("answers", "ABSENT", "CREATING", "READY", "READY", "PREEMPTED", "ABSENT", "READY")
    for worker in WORKERS:
        cloud.write(f"plan.{worker}", "hang", "0")
    result = cloud.run("tpu_vm.sh", "watch", *TPU, *TRAIN, "--delete-after", "--", AWKWARD)
    assert result.returncode == 0, result.stderr
    once = ["create", "scp", "ssh", "ssh", "delete"]
    assert verbs(cloud) == once + once
    assert trained(cloud) == [[*TRAIN, AWKWARD]] * 4
    assert "big is PREEMPTED: it is deleted and created again." in result.stderr
    assert "big is READY, training is finished." in result.stderr


def test_slices_are_watched_one_by_one(cloud: Cloud) -> None:
    healthy = ["ACTIVE", "READY", "READY"]
    cloud.write("answers", "ACTIVE", "READY", "PREEMPTED", "ABSENT", *healthy * 100)
    for worker in WORKERS:
        cloud.write(f"plan.{worker}", "0")
    result = cloud.run("tpu_vm.sh", "watch", *TPU, *TRAIN, "--slices=2")
    calls = [call[3:6] for call in cloud.calls("gcloud") if call[4] == "describe"][:3]
    assert calls == [
        ["queued-resources", "describe", "big"],
        ["tpu-vm", "describe", "big-0"],
        ["tpu-vm", "describe", "big-1"],
    ]
    assert result.returncode == 0, result.stderr
    assert verbs(cloud) == ["delete", "create", "scp", "ssh", "ssh"]


def test_watch_continues_after_cloud_failures(cloud: Cloud) -> None:
    cloud.write("answers", "ABSENT", "ABSENT", "BROKEN", "READY")
    cloud.write("fail.create")  # no capacity
    cloud.write("fail.scp")  # no connection
    for worker in WORKERS:
        cloud.write(f"plan.{worker}", "0")
    result = cloud.run("tpu_vm.sh", "watch", *TPU, *TRAIN)
    assert result.returncode == 0, result.stderr
    assert verbs(cloud) == ["create", "create", "scp", "scp", "ssh", "ssh"]


def test_a_watch_that_sees_nothing_from_the_start_ends(cloud: Cloud) -> None:
    cloud.write("answers", "BROKEN")
    result = cloud.run("tpu_vm.sh", "watch", *TPU, *TRAIN)
    assert result.returncode == 1
    assert "PERMISSION_DENIED" in result.stderr
    assert verbs(cloud) == []


INCURABLE = "training ended with an error that a restart cannot cure: see scripts/tpu_vm.sh logs."


@pytest.mark.parametrize(
    ("plan", "starts", "sentence"),
    [
        (("134",), 3, "gave up after 3 failures on this pod: see scripts/tpu_vm.sh logs."),
        (("74",), 3, "gave up after 3 failures on this pod: see scripts/tpu_vm.sh logs."),
        (("2",), 1, INCURABLE),
        (("3",), 1, INCURABLE),
    ],
)
def test_a_watch_starts_crashed_trainings_again_but_not_for_ever(
    cloud: Cloud, plan: tuple[str, ...], starts: int, sentence: str
) -> None:
    cloud.write("answers", "ABSENT", "READY")
    cloud.write("plan.worker0", *plan)
    cloud.write("plan.worker1", "hang")
    result = cloud.run("tpu_vm.sh", "watch", *TPU, *TRAIN)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == sentence
    assert len(trained(cloud)) == 2 * starts
    assert "delete" not in verbs(cloud)


def test_a_watch_started_again_leaves_its_training_alone(cloud: Cloud) -> None:
    cloud.write("answers", "READY")
    for command in ("create", "install"):
        assert cloud.run("tpu_vm.sh", command, *TPU).returncode == 0
    for worker in WORKERS:
        cloud.write(f"plan.{worker}", "0")
    assert cloud.run("tpu_vm.sh", "train", *TPU, *TRAIN).returncode == 0
    before = verbs(cloud)
    assert cloud.run("tpu_vm.sh", "watch", *TPU, *TRAIN).returncode == 0
    assert verbs(cloud) == before


def test_workers_without_a_recent_python_get_one(cloud: Cloud) -> None:
    for python in ("python3", "python3.12"):
        cloud.write(f"old.{python}")
    home = cloud.folder / "worker0"
    home.mkdir()
    environment = {"HOME": str(home)}
    assert cloud.run("worker.sh", "install", env=environment).returncode == 0
    calls = [call for call in cloud.calls("python3") if call[1] == "-m"]
    assert [call[2] for call in calls] == ["pip", "uv"]
    assert (home / "dinotxt_venv" / "bin" / "python").exists()


def test_a_restarted_machine_has_lost_its_training(cloud: Cloud) -> None:
    home = cloud.folder / "worker0"
    home.mkdir()
    environment = {"HOME": str(home)}
    with subprocess.Popen(["sleep", "60"]) as other:  # now has the number of the training process
        (home / "dinotxt_train.pid").write_text(f"{other.pid}\n")
        (home / "dinotxt_train.arguments").write_text("--config=c\0")
        assert cloud.run("worker.sh", "progress", "--config=c", env=environment).stdout == "lost\n"
        assert (
            cloud.run("worker.sh", "progress", "--config=d", env=environment).stdout == "absent\n"
        )
        assert cloud.run("worker.sh", "stop", env=environment).returncode == 0
        assert other.poll() is None
        other.kill()


def test_the_image_gets_the_packed_checkout(cloud: Cloud) -> None:
    assert cloud.run("gke.sh", "image", *GKE).returncode == 0
    with tarfile.open(cloud.folder / "context.tar.gz") as context:
        names = context.getnames()
    assert "scripts/Dockerfile" in names
    assert "runs/large" not in names
    assert [call[1] for call in cloud.calls("docker")] == ["build", "push"]


def test_commands_really_reach_xpk_and_slurm(cloud: Cloud) -> None:
    python = str(cloud.folder / "bin" / "python3")
    assert cloud.run("gke.sh", "train", *GKE, *TRAIN, "--", AWKWARD).returncode == 0
    submit = ("train", "--name=big", f"--python={python}", *TRAIN, "--", AWKWARD)
    assert cloud.run("slurm.sh", *submit).returncode == 0
    for command in ("status", "cancel"):
        assert cloud.run("slurm.sh", command, "--name=big").returncode == 0
    workload, job, queue, cancel = cloud.calls()
    assert shlex.split(flags(workload)["command"])[-1] == AWKWARD
    assert job[-5:] == ["8", "dinotxt_jax.train", *TRAIN, AWKWARD]
    assert queue[:2] == ["squeue", "--name=big"]
    assert cancel[:2] == ["scancel", "--name=big"]


def test_the_newest_log_of_a_job_is_printed(cloud: Cloud) -> None:
    logs = cloud.checkout / "runs" / "slurm"
    logs.mkdir()
    for age, job in ((100, "12"), (0, "9")):
        (logs / f"big-{job}.log").write_text(f"log of {job}\n")
        then = time.time() - age
        os.utime(logs / f"big-{job}.log", (then, then))
    assert cloud.run("slurm.sh", "logs", "--name=big").stdout == "log of 9\n"


@pytest.mark.parametrize(("processes", "devices"), [("gpu", "unset"), ("node", "0,1,2,3")])
def test_a_job_starts_training_with_its_gpus_and_ends_as_training_ends(
    cloud: Cloud, processes: str, devices: str
) -> None:
    python = cloud.folder / "bin" / "python3"
    cloud.write("plan.cloud", "3")
    result = cloud.run(
        "slurm_job.sh", str(python), processes, "4", "dinotxt_jax.train", *TRAIN, AWKWARD,
        env={"SLURM_CPUS_PER_TASK": "12"},
    )  # fmt: skip
    assert result.returncode == 3
    (srun,) = cloud.calls("srun")
    assert srun[1:3] == ["--kill-on-bad-exit=1", "--cpus-per-task=12"]
    assert srun[3:] == [str(python), "-m", "dinotxt_jax.train", *TRAIN, AWKWARD]
    assert (cloud.folder / "devices").read_text().strip() == devices


@pytest.mark.parametrize(
    ("number", "requeued"), [(signal.SIGUSR1, [["scontrol", "requeue", "7"]]), (signal.SIGTERM, [])]
)
def test_a_job_near_its_limit_goes_back_into_the_queue(
    cloud: Cloud, number: signal.Signals, requeued: list[list[str]]
) -> None:
    cloud.write("plan.cloud", "hang")
    job = subprocess.Popen(
        [
            *(cloud.checkout / "scripts" / "slurm_job.sh", cloud.folder / "bin" / "python3"),
            *("gpu", "1", "dinotxt_jax.train"),
        ],
        env=cloud.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout is not None
    for line in job.stdout:
        if line.startswith("training in"):
            break
    job.send_signal(number)
    if number == signal.SIGUSR1:
        assert job.stdout.readline() == "=== time limit is near: requeue\n"
        job.send_signal(signal.SIGTERM)  # as Slurm does then
    job.stdout.close()
    assert job.wait(timeout=20) == 143
    assert cloud.calls("scontrol") == requeued
