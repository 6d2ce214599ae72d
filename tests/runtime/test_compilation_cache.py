"""The persistent compilation cache: second starts, damaged files, unwritable folders."""

from __future__ import annotations

import itertools
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dinotxt_jax.runtime.compilation_cache import _remove_unused

# Compiles four programs and reports the resulting JAX cache events.
PROGRAM = """
import json, sys
from pathlib import Path
import jax
from dinotxt_jax.runtime.compilation_cache import use_compilation_cache
address, default = sys.argv[1:]
use_compilation_cache(address or None, Path(default))
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event.split("/")[-1]))
for scale in (1.0, 2.0, 3.0, 4.0):
    value = float(jax.jit(lambda: scale * (jax.numpy.arange(1000.0) ** 2).sum())()) / scale
print(json.dumps({"value": value, "hits": events.count("cache_hits"),
                  "misses": events.count("cache_misses")}))
"""


def start(
    address: str, default: Path, variables: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    unset = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    rest = {name: value for name, value in os.environ.items() if name not in unset}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, address, str(default)],
        env=rest | {"XLA_FLAGS": ""} | (variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(out)
    assert result["value"] == pytest.approx(332833500.0)
    return result | {"errors": errors}


def run(address: str, default: Path, **variables: str) -> dict[str, Any]:
    return finish(start(address, default, variables))


def test_a_second_start_compiles_nothing_but_what_is_damaged(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "xla"
    first, second = (run("", folder) for _ in range(2))
    count = first["misses"]
    assert (first["hits"], count >= 4) == (0, True)
    assert (second["hits"], second["misses"]) == (count, 0)
    assert second["errors"] == ""
    damages = (truncated, changed, lambda content: b"", lambda content: os.urandom(len(content)))
    files = sorted(folder.glob("*-cache"))
    for file, damage in zip(files, itertools.cycle(damages), strict=False):
        file.write_bytes(damage(file.read_bytes()))
    again = run("", folder)
    assert (again["hits"], again["misses"]) == (0, count)
    assert "Warning" not in again["errors"]
    assert run("", folder)["hits"] == count  # the damaged ones were replaced


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def changed(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :]


def test_several_processes_may_share_an_empty_folder(tmp_path: Path) -> None:
    processes = [start("", tmp_path) for _ in range(3)]
    for process in processes:
        assert "Traceback" not in finish(process)["errors"]
    assert run("", tmp_path)["misses"] == 0


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    result = run(str(tmp_path / "file" / "xla"), tmp_path)
    assert (result["hits"], result["misses"]) == (0, 0)
    assert "compiled programs are not kept: the folder" in result["errors"]
    assert "Traceback" not in result["errors"]
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_the_flag_comes_before_the_variable_and_the_variable_before_the_default(
    tmp_path: Path,
) -> None:
    flag, variable, default = (tmp_path / name for name in ("flag", "variable", "default"))
    variables = {"JAX_COMPILATION_CACHE_DIR": str(variable)}
    assert run("off", default, **variables)["misses"] == 0
    assert list(tmp_path.iterdir()) == []
    run("", default, **variables)
    assert [folder.name for folder in tmp_path.iterdir()] == ["variable"]
    assert run(str(flag), default, **variables)["hits"] == 0
    assert list(flag.glob("*-cache"))
    assert not default.exists()
    # A limit set by the user is kept.
    limit = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "1000"}
    run("", default, **limit)
    assert list(default.glob("*")) == []


def test_least_recently_used_programs_are_removed(tmp_path: Path) -> None:
    for number in range(5):
        file = tmp_path / f"jit_step-{number}-cache"
        file.write_bytes(bytes(100))
        os.utime(file, (1000.0 + number, 1000.0))
    (tmp_path / "note.txt").write_bytes(bytes(1000))
    _remove_unused(tmp_path, 320)
    kept = sorted(file.name for file in tmp_path.iterdir())
    assert kept == ["jit_step-2-cache", "jit_step-3-cache", "jit_step-4-cache", "note.txt"]


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flag is of x86 processors")
def test_the_key_of_a_program_knows_the_features_of_the_processor() -> None:
    """This allows machines with different processors to share a folder."""
    code = (
        "import jax; from jax._src.lib import xla_client; "
        "print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())"
    )
    fingerprints = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for flags in ("", "--xla_cpu_max_isa=SSE4_2")
    }
    assert len(fingerprints) == 2
