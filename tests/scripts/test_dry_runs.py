"""The commands printed by dry runs, split as a shell does."""

from __future__ import annotations

import shlex

import pytest
from clouds import AWKWARD, GKE, ON_POD, ON_SLICES, TPU, TRAIN, WORKER, Cloud, dry, flags


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), [*ON_POD, "create", "big", "--zone=us-east5-b", "--accelerator-type=v6e-256",
              "--version=v2-alpha-tpuv6e"]),
        (("--type", "v5e-64", "--spot", "--project=p"),
         [*ON_POD, "create", "big", "--zone=us-east5-b", "--project=p",
          "--accelerator-type=v5litepod-64", "--version=v2-alpha-tpuv5-lite", "--spot"]),
        (("--type=v5p-128", "--queued"),
         [*ON_SLICES, "create", "big", "--zone=us-east5-b", "--accelerator-type=v5p-128",
          "--runtime-version=v2-alpha-tpuv5", "--node-id=big"]),
        (("--type=v4-32", "--slices=2", "--create-flag=--network=wide", "--create-flag=--reserved"),
         [*ON_SLICES, "create", "big", "--zone=us-east5-b", "--accelerator-type=v4-32",
          "--runtime-version=tpu-ubuntu2204-base", "--node-count=2", "--node-prefix=big",
          "--network=wide", "--reserved"]),
        (("--runtime=mine",), [*ON_POD, "create", "big", "--zone=us-east5-b",
                               "--accelerator-type=v6e-256", "--version=mine"]),
    ],
)  # fmt: skip
def test_pods_and_slices_are_requested(
    cloud: Cloud, arguments: tuple[str, ...], expected: list[str]
) -> None:
    assert dry(cloud, "tpu_vm.sh", "create", *TPU, *arguments) == [expected]


def test_pods_and_slices_are_deleted(cloud: Cloud) -> None:
    place = ["delete", "big", "--zone=us-east5-b", "--quiet"]
    assert dry(cloud, "tpu_vm.sh", "delete", *TPU) == [[*ON_POD, *place]]


def test_slices_are_deleted_with_their_nodes(cloud: Cloud) -> None:
    (command,) = dry(cloud, "tpu_vm.sh", "delete", *TPU, "--slices=4")
    assert command == [*ON_SLICES, "delete", "big", "--zone=us-east5-b", "--quiet", "--force"]


def test_the_working_tree_goes_to_all_workers(cloud: Cloud) -> None:
    stage, pack, copy, unpack = dry(cloud, "tpu_vm.sh", "install", *TPU, "--connect-flag=--plain")
    archive = f"{cloud.folder}/tmp/dinotxt_jax.tar.gz"
    git = ["git", "-C", str(cloud.checkout)]
    assert stage == ["env", f"GIT_INDEX_FILE={archive}.index", *git, "add", "--all"]
    assert pack[:-1] == [*git, "archive", "--format=tar.gz", f"--output={archive}"]
    assert copy == [*ON_POD, "scp", archive, "big:dinotxt_jax.tar.gz", "--zone=us-east5-b",
                    "--worker=all", "--plain"]  # fmt: skip
    assert unpack[:-1] == [*ON_POD, "ssh", "big", "--zone=us-east5-b", "--worker=all", "--plain"]
    assert unpack[-1].endswith(f"-C dinotxt_jax && bash {WORKER} install")


def test_a_repository_is_cloned_on_all_workers_of_all_slices(cloud: Cloud) -> None:
    address = "https://example.org/a b.git"
    (command,) = dry(
        cloud,
        "tpu_vm.sh",
        "install",
        *TPU,
        "--slices=2",
        f"--git={address}",
        "--ref=v1",
        "--setup=a b.sh",
    )
    assert command[:-1] == [*ON_SLICES, "ssh", "big", "--zone=us-east5-b", "--worker=all",
                            "--node=all"]  # fmt: skip
    assert flags(command)["command"] == (
        "rm -rf dinotxt_jax && git clone --quiet 'https://example.org/a b.git' dinotxt_jax"
        f" && git -C dinotxt_jax checkout --quiet v1 && bash {WORKER} install 'a b.sh'"
    )


def test_arguments_of_training_reach_the_workers_unchanged(cloud: Cloud) -> None:
    (command,) = dry(cloud, "tpu_vm.sh", "train", *TPU, *TRAIN, "--", AWKWARD, "--config.steps=3")
    assert command[:-1] == [*ON_POD, "ssh", "big", "--zone=us-east5-b", "--worker=all"]
    remote = shlex.split(flags(command)["command"])
    assert remote == [
        "bash",
        WORKER,
        "start",
        "dinotxt_jax.train",
        *TRAIN,
        AWKWARD,
        "--config.steps=3",
    ]


@pytest.mark.parametrize(
    ("arguments", "place", "remote"),
    [
        ((), ["--worker=0"], "log 50"),
        (("--worker=3", "--lines=9", "--follow"), ["--worker=3"], "log 9 follow"),
        (("--slices=2", "--slice=1"), ["--worker=0", "--node=1"], "log 50"),
    ],
)
def test_logs_come_from_one_worker(
    cloud: Cloud, arguments: tuple[str, ...], place: list[str], remote: str
) -> None:
    (command,) = dry(cloud, "tpu_vm.sh", "logs", *TPU, *arguments)
    assert command[4:] == ["ssh", "big", "--zone=us-east5-b", *place,
                           f"--command=bash {WORKER} {remote}"]  # fmt: skip


def test_status_and_stop_ask_all_workers(cloud: Cloud) -> None:
    describe, ask = dry(cloud, "tpu_vm.sh", "status", *TPU, "--queued")
    assert describe == [*ON_SLICES, "describe", "big", "--zone=us-east5-b",
                        "--format=value(state.state)"]  # fmt: skip
    assert "--worker=all" in ask
    assert "--node=all" in ask
    assert f"bash {WORKER} progress; else echo absent; fi" in ask[-1]
    (stop,) = dry(cloud, "tpu_vm.sh", "stop", *TPU)
    assert stop[4:] == ["ssh", "big", "--zone=us-east5-b", "--worker=all",
                        f"--command=bash {WORKER} stop"]  # fmt: skip


def test_a_watch_is_planned_from_describe_to_delete(cloud: Cloud) -> None:
    plan = dry(cloud, "tpu_vm.sh", "watch", *TPU, *TRAIN, "--spot")
    verbs = [words[4] if words[0] == "gcloud" else words[0] for words in plan]
    assert verbs == ["describe", "create", "env", "git", "scp", "ssh", "ssh", "ssh", "delete"]
    assert "--spot" in plan[1]
    assert [shlex.split(flags(words)["command"])[-1] for words in plan[5:7]] == [
        "install",
        TRAIN[1],
    ]


def test_other_commands_run_on_pods_with_variables(cloud: Cloud) -> None:
    """`precompute`, `evaluate` and others need no work directory; words keep their order."""
    variables = ("--env=XLA_FLAGS=--a=1 --b=2", "--env=LIBTPU_INIT_ARGS=--c")
    encode = ("--run=precompute", "--config=configs/c.py", *variables)
    (command,) = dry(cloud, "tpu_vm.sh", "train", *TPU, *encode, "--", "--config.features=gs://b/f")
    assert shlex.split(flags(command)["command"]) == [
        *("bash", WORKER, "start", "XLA_FLAGS=--a=1 --b=2", "LIBTPU_INIT_ARGS=--c"),
        *("dinotxt_jax.precompute", "--config=configs/c.py", "--config.features=gs://b/f"),
    ]
    convert = ("--run=convert", *variables, "--", "gs://b/dinov2.pth", "--output=gs://b/model")
    (create,) = dry(cloud, "gke.sh", "train", *GKE, *convert)
    assert shlex.split(flags(create)["command"]) == [
        *("env", "XLA_FLAGS=--a=1 --b=2", "LIBTPU_INIT_ARGS=--c"),
        *("python", "-m", "weights_convert", "gs://b/dinov2.pth", "--output=gs://b/model"),
    ]
    curate = ("--run=curate", "--", "text", "gs://b/metadata", "--output=gs://b/text")
    (create,) = dry(cloud, "gke.sh", "train", *GKE, *curate)
    assert shlex.split(flags(create)["command"]) == [
        *("python", "-m", "dinotxt_jax.curate", "text", "gs://b/metadata", "--output=gs://b/text"),
    ]
    evaluate = ("--run=evaluate", "--config=configs/eval/c.py", variables[1], "--", "--model=m")
    _, submit = dry(cloud, "slurm.sh", "train", "--name=big", *evaluate)
    assert submit[-4:] == [
        *("LIBTPU_INIT_ARGS=--c", "dinotxt_jax.evaluate"),
        *("--config=configs/eval/c.py", "--model=m"),
    ]


def test_work_directories_are_in_buckets(cloud: Cloud) -> None:
    bucket = ("--config=configs/c.py", "--workdir=gs://pod/run")
    (command,) = dry(cloud, "tpu_vm.sh", "train", *TPU, *bucket)
    assert "--workdir=gs://pod/run" in shlex.split(flags(command)["command"])


def test_clusters_are_created_and_deleted(cloud: Cloud) -> None:
    place = ["--cluster=pods", "--project=p", "--zone=z"]
    more = (*GKE, "--project=p", "--zone=z")
    more = (*more, "--slices=2", "--reservation=r", "--xpk-flag=--private")
    (create,) = dry(cloud, "gke.sh", "create-cluster", *more)
    assert create == ["xpk", "cluster", "create", *place, "--tpu-type=v5litepod-16",
                      "--num-slices=2", "--reservation=r", "--private"]  # fmt: skip


def test_a_workload_runs_the_training_command_on_all_slices(cloud: Cloud) -> None:
    (create,) = dry(cloud, "gke.sh", "train", *GKE, *TRAIN, "--slices=4", "--", AWKWARD)
    assert create[:-1] == ["xpk", "workload", "create", "--cluster=pods", "--workload=big",
                           "--tpu-type=v5litepod-16", "--num-slices=4",
                           "--docker-image=example/dinotxt_jax:1", "--max-restarts=50"]  # fmt: skip
    inside = shlex.split(flags(create)["command"])
    assert inside == ["python", "-m", "dinotxt_jax.train", *TRAIN, AWKWARD]


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("status", ["xpk", "workload", "list", "--cluster=pods", "--filter-by-job=big"]),
        ("delete", ["xpk", "workload", "delete", "--cluster=pods", "--workload=big"]),
        ("delete-cluster", ["xpk", "cluster", "delete", "--cluster=pods"]),
        ("logs", ["kubectl", "logs", "--selector=jobset.sigs.k8s.io/jobset-name=big,"
                  "batch.kubernetes.io/job-completion-index=0", "--prefix",
                  "--max-log-requests=64", "--tail=50"]),
    ],
)  # fmt: skip
def test_workloads_are_looked_after(cloud: Cloud, command: str, expected: list[str]) -> None:
    assert dry(cloud, "gke.sh", command, *GKE) == [expected]


def test_an_image_is_built_from_the_packed_checkout(cloud: Cloud) -> None:
    *_, build, push = dry(cloud, "gke.sh", "image", *GKE)
    archive = f"{cloud.folder}/tmp/dinotxt_jax.tar.gz"
    assert build == ["docker", "build", "--platform=linux/amd64", "--file=scripts/Dockerfile",
                     f"--tag={GKE[3][8:]}", "-", "<", archive]  # fmt: skip
    assert push == ["docker", "push", GKE[3][8:]]


@pytest.mark.parametrize(
    ("arguments", "tasks", "more", "job"),
    [
        ((), "8", [], ["gpu", "8"]),
        (("--processes=node", "--gpus=4"), "1", [], ["node", "4"]),
        (
            ("--time=1:00:00", "--partition=gpu", "--account=me", "--cpus=12"),
            "8",
            ["--cpus-per-task=12", "--time=1:00:00", "--partition=gpu", "--account=me"],
            ["gpu", "8"],
        ),
    ],
)
def test_jobs_are_submitted_to_be_queued_again(
    cloud: Cloud, arguments: tuple[str, ...], tasks: str, more: list[str], job: list[str]
) -> None:
    mkdir, submit = dry(
        cloud, "slurm.sh", "train", "--name=big", "--nodes=2", *TRAIN, *arguments,
        "--sbatch-flag=--exclusive", "--", AWKWARD,
    )  # fmt: skip
    assert mkdir == ["mkdir", "-p", "runs/slurm"]
    assert submit == [
        "sbatch", "--job-name=big", "--nodes=2", f"--ntasks-per-node={tasks}",
        f"--gpus-per-node={job[1]}", *more, "--requeue", "--signal=B:USR1@180",
        "--open-mode=append", "--output=runs/slurm/big-%j.log", f"--chdir={cloud.checkout}",
        "--exclusive", "scripts/slurm_job.sh", ".venv/bin/python", *job,
        "dinotxt_jax.train", *TRAIN, AWKWARD,
    ]  # fmt: skip


def test_jobs_are_looked_after(cloud: Cloud) -> None:
    (status,) = dry(cloud, "slurm.sh", "status", "--name=big")
    assert status[:2] == ["squeue", "--name=big"]
