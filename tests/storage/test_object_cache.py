"""Local copies of remote objects: bounded, checked, and bound to one version of an object."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage import object_cache
from dinotxt_jax.storage.addresses import Address
from dinotxt_jax.storage.byte_ranges import ByteRanges, stream
from dinotxt_jax.storage.object_cache import (
    LIMIT_VARIABLE,
    cached_range,
    files_folder,
    limit,
    local_copies,
    ranges_folder,
    remove_unused,
)


def copies(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def unread() -> bytes:
    raise AssertionError("the copy was not used")


def test_a_range_is_fetched_once_for_each_version(bucket: Address) -> None:
    address = bucket / "a"
    assert cached_range(address, "1", 0, 3, lambda: b"one") == b"one"
    assert cached_range(address, "1", 0, 3, unread) == b"one"
    assert cached_range(address, "2", 0, 3, lambda: b"two") == b"two"
    assert cached_range(address, "1", 1, 3, lambda: b"ne") == b"ne"


@pytest.mark.parametrize("damage", [b"", b"\0" * 7, b"\0\0\0\0two"])
def test_a_damaged_copy_is_fetched_again(bucket: Address, damage: bytes) -> None:
    cached_range(bucket / "a", "1", 0, 3, lambda: b"one")
    (copy,) = copies(ranges_folder())
    copy.write_bytes(damage)
    assert cached_range(bucket / "a", "1", 0, 3, lambda: b"one") == b"one"
    assert cached_range(bucket / "a", "1", 0, 3, unread) == b"one"


def test_no_ranges_are_kept_with_a_limit_of_0(
    bucket: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0")
    cached_range(bucket / "a", "1", 0, 3, lambda: b"one")
    assert copies(ranges_folder()) == []


@pytest.mark.parametrize("text", ["much", "-1", "nan", "inf"])
def test_a_limit_that_is_no_size_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, text)
    with pytest.raises(UserError, match=rf"DINOTXT_CACHE_GIB is '{text}', expected a size in GiB"):
        limit()


def test_the_least_recently_used_copies_are_removed(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / str(number)).write_bytes(b"1234")
        os.utime(tmp_path / str(number), ns=(number, number))
    os.utime(tmp_path / "0")  # used just now
    remove_unused(tmp_path, 11)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0", "4"]


def test_ranges_stay_below_the_limit(bucket: Address, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_cache, "limit", lambda: 10_000)
    for number in range(50):
        cached_range(bucket / "a", "1", number, number + 1000, lambda: bytes(1000))
    assert sum(file.stat().st_size for file in copies(ranges_folder())) <= 10_000 + 1004
    assert copies(ranges_folder())


def test_an_object_is_copied_once_and_again_after_a_change(bucket: Address, tmp_path: Path) -> None:
    (bucket / "a.bin").write_bytes(b"one")
    (first,) = local_copies([bucket / "a.bin"], "config.data.path")
    assert first.name == "a.bin"
    assert first.read_bytes() == b"one"
    before = first.stat().st_ino
    assert local_copies([bucket / "a.bin"], "config.data.path")[0].stat().st_ino == before
    (bucket / "a.bin").write_bytes(b"two")
    assert local_copies([bucket / "a.bin"], "config.data.path")[0].read_bytes() == b"two"
    assert local_copies([tmp_path / "local"], "config.data.path") == [tmp_path / "local"]


def test_more_objects_than_the_limit_are_refused_before_the_first_is_copied(
    bucket: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, "0.000001")
    (bucket / "a").write_bytes(bytes(2000))
    with pytest.raises(UserError, match=r"config\.data\.path names objects with .*--cache_gib="):
        local_copies([bucket / "a"], "config.data.path")
    assert copies(files_folder()) == []


@pytest.fixture(params=["local", "bucket"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return tmp_path if request.param == "local" else request.getfixturevalue("bucket")


def test_ranges_and_streams_give_the_bytes_of_a_file(folder: Address) -> None:
    content = bytes(range(256)) * 100
    (folder / "a").write_bytes(content)
    ranges = ByteRanges(folder / "a")
    assert ranges.size == len(content)
    assert ranges.read(10, 300) == content[10:300]
    assert ranges.read(len(content) - 5, len(content) + 5) == content[-5:]
    with stream(ranges) as whole:
        assert whole.read(3) == content[:3]
        whole.seek(-4, os.SEEK_END)
        assert whole.read() == content[-4:]
        whole.seek(100)
        assert whole.read(50) == content[100:150]


def test_a_change_between_two_reads_is_noticed(
    folder: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinotxt_jax.storage.byte_ranges._FRESH", 0.0)
    (folder / "a").write_bytes(b"one")
    ranges = ByteRanges(folder / "a")
    version = (ranges.size, ranges.version)
    assert ranges.read(0, 3) == b"one"
    (folder / "a").write_bytes(b"four")
    with pytest.raises(UserError, match=r"a has changed since this command opened it; run"):
        ranges.read(0, 3)
    with pytest.raises(UserError, match=r"has changed since this command opened it"):
        ByteRanges(folder / "a", version)


def test_an_object_that_vanished_is_named(bucket: Address) -> None:
    (bucket / "a").write_bytes(b"one")
    ranges = ByteRanges(bucket / "a")
    (bucket / "a").unlink()
    with pytest.raises(FileNotFoundError, match="no such object") as caught:
        ranges.read(0, 2)
    assert caught.value.filename == str(bucket / "a")
