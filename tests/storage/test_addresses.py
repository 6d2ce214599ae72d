"""Addresses: schemes, and remote paths that behave like local ones, also when something fails."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import pytest

from dinotxt_jax.errors import STORAGE, USER, UserError
from dinotxt_jax.storage.addresses import (
    Address,
    create,
    is_remote,
    move_folder,
    remove_folder,
    size_and_version,
    to_address,
    to_output,
    upload,
)
from dinotxt_jax.storage.faults import is_passing, storage_fault


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foo://x/y", r"foo://x/y has the scheme foo://, expected a path or gs://.*; correct it\."),
        ("htps://x/y", r"htps://x/y has the scheme .*; did you mean https://\?"),
        ("gs://", r"gs:// names no bucket, expected gs://BUCKET/\.\.\.; correct it\."),
        ("gs:///a", r"gs:///a names no bucket"),
        ("gs:/pod/a", r"gs:/pod/a names no bucket"),
    ],
)
def test_addresses_that_name_no_place_are_refused(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_address(text)


@pytest.mark.parametrize("text", ["a/b.txt", "/a", "C:/a", "time: 12:30", "a:b"])
def test_everything_without_a_scheme_is_a_local_path(text: str) -> None:
    assert to_address(text) == Path(text)
    assert not is_remote(to_address(text))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"without gcsfs; install it with pip install '.*\[gcs\]'"):
        to_address("gs://pod/a")


def test_outputs_are_local_or_in_gs() -> None:
    assert str(to_output("gs://pod/run", "--workdir")) == "gs://pod/run"
    with pytest.raises(UserError, match=r"--workdir is s3://b/run, but only data is read from s3"):
        to_output("s3://b/run", "--workdir")


def test_files_and_folders_behave_alike_everywhere(folder: Address) -> None:
    file = folder / "a" / "b.txt"
    assert not file.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("é\r\n")
    assert file.read_bytes() == "é\r\n".encode()
    assert file.exists()
    assert file.is_file()
    assert not file.is_dir()
    assert file.parent.is_dir()
    assert not file.parent.is_file()
    assert [entry.name for entry in folder.iterdir()] == ["a"]
    assert list(folder.rglob("*.txt")) == [file]
    assert size_and_version(file)[0] == 4
    assert pickle.loads(pickle.dumps(file)) == file
    move_folder(folder / "a", folder / "c")
    assert not (folder / "a").exists()
    assert (folder / "c/b.txt").read_bytes() == "é\r\n".encode()
    remove_folder(folder / "c")
    remove_folder(folder / "c")
    assert not (folder / "c").exists()


def test_only_one_creates_a_file(folder: Address) -> None:
    create(folder / "lock", "first")
    with pytest.raises(FileExistsError):
        create(folder / "lock", "second")
    assert (folder / "lock").read_text() == "first"


def test_the_version_changes_with_the_content(folder: Address) -> None:
    (folder / "a").write_bytes(b"one")
    before = size_and_version(folder / "a")
    (folder / "a").write_bytes(b"two")
    assert size_and_version(folder / "a") != before
    assert size_and_version(folder / "a")[0] == before[0]


def test_all_bytes_survive_in_a_bucket(bucket: Address, tmp_path: Path) -> None:
    content = bytes(range(256)) * 40_000  # more than one request
    (bucket / "small").write_bytes(content[:1000])
    assert (bucket / "small").read_bytes() == content[:1000]
    (tmp_path / "large").write_bytes(content)
    upload(tmp_path / "large", bucket / "large")
    assert (bucket / "large").read_bytes() == content


def test_a_listing_shows_what_another_process_wrote(bucket: Address) -> None:
    (bucket / "a").write_text("1")
    assert [entry.name for entry in bucket.iterdir()] == ["a"]
    other = to_address(str(bucket))
    type(other.fs._fs).clear_instance_cache()  # type: ignore[attr-defined]
    (to_address(str(bucket)) / "b").write_text("2")
    assert sorted(entry.name for entry in bucket.iterdir()) == ["a", "b"]


def test_a_missing_object_and_a_missing_bucket_are_wrong_paths(bucket: Address) -> None:
    for address in (bucket / "none", to_address("gs://nowhere/none")):
        with pytest.raises(FileNotFoundError) as caught:
            address.read_bytes()
        fault = storage_fault(caught.value)
        assert fault is not None
        assert fault.exit_code == USER
        assert str(fault) == f"{address}: no such object, folder or bucket; correct the path."


def test_a_forbidden_bucket_does_not_look_empty(served_buckets: None) -> None:
    address = to_address("gs://denied/run.json")
    for action in (address.read_bytes, address.exists, address.is_dir, lambda: create(address, "")):
        with pytest.raises(PermissionError, match="access is denied") as caught:
            action()
        fault = storage_fault(caught.value)
        assert fault is not None
        assert fault.exit_code == USER
        assert str(address) in str(fault)


def test_a_server_that_does_not_answer_is_not_an_absent_file() -> None:
    address = to_address("http://127.0.0.1:9/a.tar")
    for action in (address.read_bytes, address.exists):
        with pytest.raises(OSError, match="did not answer") as caught:
            action()
        assert is_passing(caught.value)
        fault = storage_fault(caught.value)
        assert fault is not None
        assert fault.exit_code == STORAGE
