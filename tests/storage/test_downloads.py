"""Downloads: complete, verified, done once, and resumed after an interruption."""

from __future__ import annotations

import concurrent.futures
import hashlib
from pathlib import Path
from typing import Any

import pytest

from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.downloads import cache_folder, download

CONTENT = bytes(range(256)) * 40
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(web: Any) -> str:
    (web.folder / "file.bin").write_bytes(CONTENT)
    return web.url("file.bin")


def test_a_file_is_fetched_once(web: Any, url: str, tmp_path: Path) -> None:
    path = tmp_path / "new" / "cache" / "file.bin"
    assert download(url, path, SHA256) == path
    assert download(url, path, SHA256).read_bytes() == CONTENT
    assert len(web.requests) == 1


def test_a_lost_connection_and_a_busy_server_are_tried_again(
    web: Any, url: str, tmp_path: Path
) -> None:
    web.answers = [503, 429]
    web.cut, web.cuts = 1000, 1
    assert download(url, tmp_path / "file.bin", SHA256).read_bytes() == CONTENT
    ranges = [range_header for _, range_header in web.requests]
    assert ranges == [None, None, None, "bytes=1000-"]


@pytest.mark.parametrize("ranges", [True, False])
def test_an_interrupted_download_resumes(
    web: Any, url: str, tmp_path: Path, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinotxt_jax.storage.retries.PAUSES", ())
    web.cut, web.ranges = 1000, ranges
    with pytest.raises(UserError, match="could not be downloaded"):
        download(url, tmp_path / "file.bin")
    assert not (tmp_path / "file.bin").exists()
    web.cut = None
    assert download(url, tmp_path / "file.bin", SHA256).read_bytes() == CONTENT
    assert [range_header for _, range_header in web.requests] == [None, "bytes=1000-"]


def test_another_version_is_not_appended_to_a_partial_file(
    web: Any, url: str, tmp_path: Path
) -> None:
    web.cut = 1000
    with pytest.raises(UserError, match="could not be downloaded"):
        download(url, tmp_path / "file.bin")
    web.cut = None
    (web.folder / "file.bin").write_bytes(CONTENT[::-1])
    assert download(url, tmp_path / "file.bin").read_bytes() == CONTENT[::-1]
    assert not list(tmp_path.glob("file.bin.*"))


def test_a_partial_file_that_is_too_long_is_discarded(web: Any, url: str, tmp_path: Path) -> None:
    (tmp_path / "file.bin.partial").write_bytes(bytes(len(CONTENT) + 5))
    (tmp_path / "file.bin.partial.etag").write_text(f'"{SHA256}"')
    assert download(url, tmp_path / "file.bin", SHA256).read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(web: Any, url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"sha256 {SHA256}, but 0000 is expected"):
        download(url, tmp_path / "file.bin", "0000")
    assert not list(tmp_path.glob("file.bin*"))
    (tmp_path / "file.bin").write_bytes(b"from elsewhere")
    with pytest.raises(UserError, match="delete it, or fetch"):
        download(url, tmp_path / "file.bin", SHA256)


@pytest.mark.parametrize("address", ["http://127.0.0.1:1/x", "nonsense", "http://[::bad/x"])
def test_an_unreachable_address_is_one_sentence(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="could not be downloaded"):
        download(address, tmp_path / "x")


def test_several_at_once_fetch_once(web: Any, url: str, tmp_path: Path) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: download(url, tmp_path / "f", SHA256), range(4)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(web.requests) == 1


def test_the_cache_folder_can_be_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("DINOTXT_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "dinotxt_jax"
