"""Measures start-up times: imports, `--help`, a new training state, first and second starts.

    python benchmarks/startup.py [--repeats=3]

Every measurement runs in a new process. The quickstart commands run with two training steps, three
times: without a compilation cache, with an empty cache, and with the cache just filled. For imports
and `--help`, the median over the repeats is printed. CPU seconds are summed over all threads.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import processor

ROOT = Path(__file__).parent.parent
CREATE_STATE = """
import time
from dinotxt_jax import sharding
from dinotxt_jax.config import Config
from dinotxt_jax.config.files import load_config
from dinotxt_jax.storage.model_directory import (read_description)
from dinotxt_jax.training.step import make_trainer
config = load_config("configs/quickstart.py", Config)
trainer = make_trainer(config, read_description("{backbone}"), 512, sharding.make_mesh())
start = time.process_time()
trainer.create_state()
print(time.process_time() - start)
"""


def run(*arguments: str) -> tuple[float, float]:
    """Runs Python with these arguments.

    Returns:
        Wall time and CPU time in seconds, for the process including its children.
    """
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, check=True
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu


def short_runs(folder: Path) -> dict[str, list[str]]:
    """Returns the three quickstart commands, with two steps and few scenes."""
    common = [
        "--config=configs/quickstart.py",
        f"--config.backbone={folder / 'backbone'}",
        f"--config.features={folder / 'features'}",
        "--config.data.num_scenes=256",
        "--config.steps=2",
        "--config.optimizer.warmup_steps=1",
        "--config.evaluation.every=0",
        "--config.checkpoint.every=2",
    ]
    return {
        "precompute": ["-m", "dinotxt_jax.precompute", *common],
        "train": ["-m", "dinotxt_jax.train", *common, f"--workdir={folder / 'run'}"],
        "evaluate": [
            "-m",
            "dinotxt_jax.evaluate",
            "--config=configs/eval/quickstart.py",
            f"--model={folder / 'run' / 'model'}",
            f"--output={folder / 'evaluation'}",
        ],
    }


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(f"{processor()}, Python {sys.version.split()[0]}\n")
    print("| process | wall, seconds | CPU, seconds |\n|---|---|---|")
    bare = {
        "`import dinotxt_jax`": ["-c", "import dinotxt_jax"],
        "`train --help`": ["-m", "dinotxt_jax.train", "--help"],
        "`classify --help`": ["-m", "dinotxt_jax.classify", "--help"],
        "`dinotxt --help`": ["-m", "dinotxt_jax.cli", "--help"],
    }
    for name, arguments in {"(Python alone)": ["-c", ""], **bare}.items():
        times = [run(*arguments) for _ in range(repeats)]
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        checkpoint = "tests/goldens/backbones/dinov2_tiny_reg.pth"
        backbone = folder / "backbone"
        run("-m", "weights_convert", checkpoint, "--set", "num_heads=4", f"--output={backbone}")
        state = subprocess.run(
            [sys.executable, "-c", CREATE_STATE.format(backbone=backbone)],
            cwd=ROOT,
            capture_output=True,
            check=True,
            text=True,
        )
        print(f"| `create_state` of the quickstart | | {float(state.stdout):.2f} |\n")
        print("| command | cache off: wall, CPU | first start | second start |\n|---|---|---|---|")
        rows: dict[str, list[str]] = {}
        for cache in ("off", folder / "xla", folder / "xla"):
            for outcome in ("features", "run", "evaluation"):
                shutil.rmtree(folder / outcome, ignore_errors=True)
            for name, arguments in short_runs(folder).items():
                wall, cpu = run(*arguments, f"--compilation_cache={cache}")
                rows.setdefault(name, []).append(f"{wall:.1f}, {cpu:.1f}")
        for name, cells in rows.items():
            print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
