"""Fuzzes the .pth reader, starting from the hostile files in the tests.

    pip install -e '.[fuzz]'
    python benchmarks/fuzz_torch_file.py [--minutes=10] [--corpus=DIR]

The fuzzer is coverage-guided (atheris, based on libFuzzer). Every input is a file. The reader must
return readable arrays or raise a one-line UserError, within ten seconds and 1 GB. Anything else
stops the run and keeps the input. Prints a summary.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "helpers"))
# Some inputs are bare pickles, packed into a zip later: mutations rarely keep a zip file valid.
_PICKLE, _FILE = b"p", b"f"


def write_seeds(folder: Path) -> int:
    """Writes the hostile files and an intact file as inputs; returns the number of inputs."""
    from hostile import CALLS, MALFORMED, corpus
    from torch_files import TorchFiles

    with tempfile.TemporaryDirectory() as files:
        paths = [path for path, _ in corpus(Path(files)).values()]
        good = {"a": np.arange(8, dtype=np.float32), "b": np.ones((2, 3), np.float16)}
        paths.append(TorchFiles(Path(files)).write(good, "good.pth"))
        inputs = [_FILE + path.read_bytes() for path in paths if path.stat().st_size < 2**16]
    pickles = [b"\x80\x04" + code for code, _ in CALLS.values()] + list(MALFORMED.values())
    inputs += [_PICKLE + pickled for pickled in pickles]
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(inputs):
        (folder / f"seed{number:03d}").write_bytes(content)
    return len(inputs)


def fuzz(arguments: list[str]) -> None:
    """Runs libFuzzer in this process; it never returns."""
    import atheris

    with atheris.instrument_imports(include=["weights_convert", "zipfile", "pickletools"]):
        from torch_files import TorchFiles

        from dinotxt_jax.errors import UserError
        from weights_convert.torch_file import read_arrays

    parent = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    folder = Path(tempfile.mkdtemp(dir=parent))
    files = TorchFiles(folder)
    storages = {"0": bytes(64), "1": bytes(16)}

    def one_input(data: bytes) -> None:
        """Reads a mutated file; fails unless it gives arrays or a single-line `UserError`."""
        path = folder / "input.pth"
        if data[:1] == _PICKLE:
            files.write_raw(data[1:], storages, path.name)
        else:
            path.write_bytes(data[1:])
        try:
            for array in read_arrays(path).values():
                assert array.read().shape == array.shape
        except UserError as error:
            if "\n" in str(error):
                raise AssertionError("the message has several lines") from error

    atheris.Setup([sys.argv[0], *arguments], one_input)
    atheris.Fuzz()


def main() -> None:
    """Starts the fuzzer and prints a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--corpus", type=Path, help="where to keep interesting inputs")
    options, rest = parser.parse_known_args()
    if rest:
        return fuzz(rest)
    with tempfile.TemporaryDirectory() as folder:
        corpus = options.corpus or Path(folder) / "corpus"
        seeds = write_seeds(corpus)
        limits = [f"-max_total_time={round(options.minutes * 60)}", "-timeout=10"]
        limits += ["-rss_limit_mb=1024", "-max_len=32768", "-print_final_stats=1"]
        limits += [f"-artifact_prefix={folder}/", str(corpus)]
        environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, *limits]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        log = done.stdout + done.stderr
        if done.returncode:
            raise SystemExit(f"{log[-6000:]}\n\nthe fuzzer stopped with {done.returncode}")
        figures = dict(re.findall(r"stat::(\w+):\s+(\d+)", log))
        coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)", log)[-1]
        print(f"{options.minutes:g} minutes from {seeds} seeds, no crash, hang or memory blow-up:")
        print(f"{int(figures['number_of_executed_units']):,} inputs, ", end="")
        print(f"{figures['average_exec_per_sec']} a second, ", end="")
        print(f"slowest {figures['slowest_unit_time_sec']} s, ", end="")
        print(f"peak {figures['peak_rss_mb']} MB resident, ", end="")
        print("edges {}, features {}, {} inputs kept as interesting".format(*coverage))
    return None


if __name__ == "__main__":
    main()
