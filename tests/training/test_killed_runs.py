"""Runs that are ended by `kill -9` and resume without any difference."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from several import ROOT
from small_runs import losses


def start(workdir: Path, backbone: Path) -> subprocess.Popen[bytes]:
    """Starts the command in a separate process."""
    flags = [
        f"--config={ROOT / 'configs/quickstart.py'}",
        f"--workdir={workdir}",
        f"--config.backbone={backbone}",
        "--config.steps=30",
        "--config.batch_size=16",
        "--config.log_every=1",
        "--config.data.num_scenes=40",
        "--config.data.augmentation=random_resized_crop",
        "--config.checkpoint.every=5",
        "--config.evaluation.every=0",
        "--config.optimizer.warmup_steps=3",
        "--config.text.width=32",
        "--config.head.drop_path=0.3",
    ]
    environment = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "dinotxt_jax.train", *flags]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[bytes]) -> None:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output.decode()


@pytest.mark.slow
def test_a_killed_run_resumes_bit_by_bit(tiny_backbone: Path, tmp_path: Path) -> None:
    """Sends `kill -9` at three points; every loss equals that in the uninterrupted run."""
    finish(start(tmp_path / "whole", tiny_backbone))
    expected = losses(tmp_path / "whole")
    assert sorted(expected) == list(range(1, 31))
    workdir = tmp_path / "killed"
    for point in (3, 11, 21):
        process = start(workdir, tiny_backbone)
        while max(losses(workdir), default=0) < point:
            assert process.poll() is None, process.communicate()[0].decode()
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(start(workdir, tiny_backbone))
    assert losses(workdir) == expected
