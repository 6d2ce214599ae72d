"""Measures ingestion speed and peak memory, and checks that all runners write the same shards.

    python benchmarks/ingest.py [--examples=1000000] [--small=100000] [--workers=1,2] \\
        [--beam=20000] [--deduplicate=none] [--folder=DIR]

The input is an ArrayRecord file with generated examples (32 x 32 JPEGs with a caption), hard-linked
several times: this source opens at once, and its readers keep nothing in memory. Each run starts
the command in a new process. The rate includes the start-up. Memory is the highest sum of resident
sizes over all processes. If --examples need at most 1.2 times as much memory as --small, memory
does not grow with the input. Another run is killed halfway and started again. --beam examples also
go through Beam's direct runner (0: none; needs the extra `beam`). Runs with the same input must
write the same shards.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from machine import processor
from PIL import Image

from dinotxt_jax.data.array_records import write_array_record
from dinotxt_jax.data.examples import Example

ROOT = Path(__file__).parents[1]
SHARD = 10_000
MOST_GROWTH = 1.2
# Seconds between memory samples.
_PAUSE = 0.1


class Measured(NamedTuple):
    """The measurements for a run.

    Attributes:
        seconds: wall time.
        mebibytes: highest sum of resident sizes.
        digest: hash over the names and contents of shards and manifest.
    """

    seconds: float
    mebibytes: float
    digest: str


def write_examples(folder: Path, count: int) -> None:
    """Writes a file with at most 10^5 examples, and as many hard links to it as needed."""
    folder.mkdir(parents=True)
    files, per_file = max(1, count // 100_000), min(count, 100_000)
    rng = np.random.default_rng(0)
    first = folder / "0000.array_record"
    names = (f"a pattern, number {number}" for number in range(per_file))
    write_array_record(first, (Example(jpeg(rng), (name,), name) for name in names))
    for number in range(1, files):
        os.link(first, folder / f"{number:04d}.array_record")


def jpeg(rng: np.random.Generator) -> bytes:
    """Returns a 32 x 32 JPEG, enlarged from 4 x 4 random colours."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    buffer = io.BytesIO()
    small.resize((32, 32)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def command(source: Path, output: Path, *flags: str) -> list[str]:
    """Returns the command line for a run."""
    data = ("--config.data.source=array_record", f"--config.data.path={source}")
    return [
        *(sys.executable, "-m", "dinotxt_jax.ingest", f"--output={output}", *data),
        *(f"--config.shard_size={SHARD}", *flags),
    ]


def descendants(pid: int) -> list[int]:
    """Returns a process and all its descendants."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = [int(c) for task in tasks for c in (task / "children").read_text().split()]
    except OSError:  # the process has exited
        return []
    return [pid, *(inner for child in children for inner in descendants(child))]


def resident(pid: int) -> int:
    """Returns a process's resident size in bytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def run(arguments: list[str], output: Path, killed_after: int = 0) -> Measured:
    """Runs a command; with `killed_after`, first kills it after this many shards."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    peak, start = 0, time.perf_counter()
    with (output.parent / "log").open("w") as log:
        process = subprocess.Popen(arguments, env=environment, stdout=log, stderr=log)
        while process.poll() is None:
            peak = max(peak, sum(map(resident, descendants(process.pid))))
            if killed_after and len(list(output.glob("pairs-*"))) >= killed_after:
                process.send_signal(signal.SIGKILL)
                process.wait()
                return run(arguments, output)
            time.sleep(_PAUSE)
    if process.returncode:
        sys.exit(f"{' '.join(arguments)} exited with {process.returncode}:\n{log_text(output)}")
    return Measured(time.perf_counter() - start, peak / 2**20, digest_of(output))


def log_text(output: Path) -> str:
    """Returns the end of the last command's output."""
    return (output.parent / "log").read_text()[-2000:]


def digest_of(output: Path) -> str:
    """Returns a hash over the shards, the quarantine file and the manifest."""
    digest = hashlib.sha256()
    for file in sorted(output.glob("*.*")):
        digest.update(file.name.encode())
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]


def main() -> None:
    """Prints a line per run, the memory growth, and whether all shards are equal."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--examples", type=int, default=1_000_000)
    parser.add_argument("--small", type=int, default=100_000)
    parser.add_argument("--workers", default="1,2")
    parser.add_argument("--beam", type=int, default=20_000)
    parser.add_argument("--deduplicate", default="none")
    parser.add_argument("--folder", type=Path, default=None)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="ingest-", dir=options.folder))
    print(f"{processor()}; 32 x 32 JPEGs, deduplicate={options.deduplicate}")
    print(f"{'examples':>9}  {'runner':24}  {'records/s':>9}  {'MiB':>6}  digest")
    digests: dict[int, set[str]] = {}
    peaks: dict[tuple[str, int], float] = {}

    def measured(count: int, title: str, *flags: str, killed_after: int = 0) -> None:
        """Ingests `count` examples and prints rate and memory."""
        source, output = folder / f"source-{count}", folder / "output"
        if not source.exists():
            write_examples(source, count)
        shutil.rmtree(output, ignore_errors=True)
        flags = (*flags, f"--config.deduplicate={options.deduplicate}")
        result = run(command(source, output, *flags), output, killed_after)
        rate = f"{count / result.seconds:.0f}" if not killed_after else "-"
        print(f"{count:9}  {title:24}  {rate:>9}  {result.mebibytes:6.0f}  {result.digest}")
        digests.setdefault(count, set()).add(result.digest)
        peaks[title, count] = result.mebibytes

    try:
        for workers in options.workers.split(","):
            for count in sorted({options.small, options.examples}):
                measured(count, f"{workers} workers", f"--config.workers={workers}")
        kill = ("killed and continued", f"--config.workers={workers}")
        measured(options.small, *kill, killed_after=options.small // SHARD // 2)
        if options.beam:
            measured(options.beam, "1 workers", "--config.workers=1")
            measured(options.beam, "Beam, direct runner", "--runner=DirectRunner")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for workers in options.workers.split(","):
        small, large = (peaks[f"{workers} workers", n] for n in (options.small, options.examples))
        verdict = "does not grow" if large <= MOST_GROWTH * small else "GROWS"
        print(f"{workers} workers: memory {verdict}: {large / small:.2f} times as much")
    equal = all(len(input_digests) == 1 for input_digests in digests.values())
    print("equal inputs gave equal outputs" if equal else "OUTPUTS DIFFER")
    sys.exit(not equal)


if __name__ == "__main__":
    main()
