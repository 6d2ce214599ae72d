"""Files and folders appear whole, and killed processes leave no permanent files behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinotxt_jax.config import Config
from dinotxt_jax.storage.files import new_file, new_folder, remove_abandoned, write_text
from dinotxt_jax.training.checkpoints import claim_workdir

WRITER = """
import sys, time
from pathlib import Path
from dinotxt_jax.storage.files import new_folder
with new_folder(Path(sys.argv[1]), overwrite=True) as folder:
    (folder / "half").write_text("written")
    print("writing", flush=True)
    time.sleep(600)
"""


def writer(path: Path) -> subprocess.Popen[str]:
    """Starts another process that writes a folder and does not finish."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def write(path: Path) -> None:
    with new_folder(Path(path), overwrite=True) as folder:
        (folder / "whole").write_text("written")


def test_an_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, new_file(tmp_path / "file.txt") as partial:
        partial.read_text()
    assert caught.value.filename == str(tmp_path / "file.txt")
    assert str(tmp_path / "file.txt") in str(caught.value)
    assert names(tmp_path) == []


def test_an_error_of_another_file_keeps_that_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, new_file(tmp_path / "file.txt"):
        (tmp_path / "other.txt").read_text()
    assert caught.value.filename == str(tmp_path / "other.txt")


def test_a_run_that_cannot_be_claimed_names_run_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(self))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as caught:
        claim_workdir(tmp_path, Config(), "0" * 64, {})
    assert caught.value.filename == str(tmp_path / "run.json")


def test_a_killed_writer_leaves_nothing_for_the_next_one(tmp_path: Path) -> None:
    process = writer(tmp_path / "model")
    kill(process)
    assert [name for name in names(tmp_path) if name.endswith(".partial")]
    write(tmp_path / "model")
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["whole"]


def test_the_next_start_removes_the_remains_of_a_killed_export(tmp_path: Path) -> None:
    kill(writer(tmp_path / "model"))
    claim_workdir(tmp_path, Config(), "0" * 64, {})
    assert names(tmp_path) == ["run.json"]


def test_a_living_writer_and_other_targets_are_not_touched(tmp_path: Path) -> None:
    process = writer(tmp_path / "model")
    kill(writer(tmp_path / "model.other"))
    before = names(tmp_path)
    try:
        remove_abandoned(tmp_path / "model")
        assert names(tmp_path) == before
        write(tmp_path / "model")
        assert names(tmp_path) == sorted([*before, "model"])
    finally:
        kill(process)


def test_partial_files_from_another_host_expire_after_an_hour(tmp_path: Path) -> None:
    """Locks on another host may not be visible here."""
    folder = tmp_path / ".model.elsewhere-0123abcd.partial"
    folder.mkdir()
    remove_abandoned(tmp_path / "model")
    assert folder.exists()
    long_ago = time.time() - 4000
    os.utime(folder, (long_ago, long_ago))
    remove_abandoned(tmp_path / "model")
    assert names(tmp_path) == []


def test_the_only_complete_folder_is_never_removed(tmp_path: Path) -> None:
    """The process is killed between moving the old folder aside and renaming the new one."""
    process = writer(tmp_path / "model")
    (partial,) = (file for file in tmp_path.iterdir() if file.suffix == ".partial")
    old = partial.with_suffix(".old")
    write_text(old / "whole", "an earlier model")
    kill(process)
    remove_abandoned(tmp_path / "model")
    assert old.exists()
    assert not partial.exists()
    write(tmp_path / "model")
    remove_abandoned(tmp_path / "model")
    assert names(tmp_path) == ["model"]
