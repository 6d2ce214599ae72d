"""WebDataset tars: read in place, indexed once; damaged and incomplete samples are named."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from small_sets import png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data import tar_index
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.pipeline import make_training_iterator
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.tar_index import index_of
from dinotxt_jax.data.webdataset import WebDatasetSource
from dinotxt_jax.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the folder in which indexes are kept."""
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/tar_indexes"


def write_tar(path: Path, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pairs(numbers: range) -> dict[str, bytes]:
    """Returns the members of samples as img2dataset writes them."""
    members = {}
    for number in numbers:
        key = f"{number:09d}"
        members[f"{key}.jpg"] = png(number)
        members[f"{key}.json"] = json.dumps({"caption": f"json {number}", "key": key}).encode()
        members[f"{key}.txt"] = f"text {number}\n".encode()
    return members


def test_samples_of_several_tars_are_read_in_order_at_any_position(tmp_path: Path) -> None:
    write_tar(tmp_path / "tars/00001.tar", pairs(range(3, 5)))
    write_tar(tmp_path / "tars/00000.tar", pairs(range(3)))
    for path in (tmp_path / "tars", tmp_path / "tars/0*.tar"):
        source = open_source(DataConfig(source="webdataset", path=str(path)))
        assert len(source) == 5
        for index in (4, 0, 3, 1, 2):
            assert source[index].image == png(index)
            assert source.captions(index) == source[index].captions == (f"text {index}",)
        assert source.key(4) == "00001.tar/000000004"
        assert pickle.loads(pickle.dumps(source))[2] == source[2]


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_folders_long_names_and_other_files_are_no_obstacle(tmp_path: Path, form: int) -> None:
    long = "a" * (90 if form == tarfile.USTAR_FORMAT else 300)
    members = {
        "set/1.webp": png(1),
        "set/1.cls": b"3",
        "set/1.txt": b"one",
        "set/._1.jpg": b"a copy by macOS",
        f"b/{long}.JPG": png(2),
        f"b/{long}.txt": "zwei äöü".encode(),
    }
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", members, form))
    assert [source[i].captions for i in range(len(source))] == [("one",), ("zwei äöü",)]
    assert source.key(0) == "x.tar/set/1"
    assert source[1].image == png(2)


def test_times_in_extended_headers_are_skipped(tmp_path: Path) -> None:
    """The library webdataset writes times with fractions of seconds before every member."""
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in pairs(range(3)).items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1.7e9 + 0.25
            archive.addfile(member, io.BytesIO(content))
    assert (tmp_path / "x.tar").read_bytes().count(b" mtime=1700000000.25") == 9
    source = WebDatasetSource(tmp_path / "x.tar")
    assert [source[index].image for index in range(3)] == [png(index) for index in range(3)]
    assert source.captions(2) == ("text 2",)


@pytest.mark.parametrize(
    ("record", "text", "expected"),
    [
        ({"captions": ["a", "b"], "caption": "c"}, b"d", ("a", "b")),
        ({"captions": None, "caption": "c"}, b"d", ("d",)),
        ({"caption": "c"}, None, ("c",)),
        (None, b" d \n", ("d",)),
    ],
)
def test_captions_come_from_the_key_then_the_text_then_the_caption(
    record: dict | None, text: bytes | None, expected: tuple[str, ...], tmp_path: Path
) -> None:
    members = {"1.jpg": png(1)}
    if record is not None:
        members["1.json"] = json.dumps(record).encode()
    if text is not None:
        members["1.txt"] = text
    path = write_tar(tmp_path / "x.tar", members)
    assert WebDatasetSource(path).captions(0) == expected
    if record and text:
        assert WebDatasetSource(path, caption_columns=("caption",)).captions(0) == ("c",)
    with pytest.raises(UserError, match="the captions are None"):  # never another text instead
        WebDatasetSource(path, caption_columns=("alt",))


def test_a_tar_is_indexed_once_until_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "x.tar", pairs(range(4)))
    calls = []
    original = tar_index.scan
    monkeypatch.setattr(tar_index, "scan", lambda file: calls.append(file) or original(file))
    first = index_of(path)
    assert first.spans.nbytes == 4 * 8
    np.testing.assert_array_equal(index_of(path).spans, first.spans)
    assert len(calls) == 1
    write_tar(path, pairs(range(5)))
    assert len(index_of(path).spans) == 5
    (file,) = cache.iterdir()
    content = bytearray(file.read_bytes())
    content[200] ^= 0xFF  # in the positions
    for damaged in (bytes(content), b"", content[:100]):
        file.write_bytes(damaged)
        assert len(WebDatasetSource(path)) == 5
    assert len(calls) == 5


def test_an_index_that_cannot_be_kept_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "file"))
    assert len(WebDatasetSource(write_tar(tmp_path / "x.tar", pairs(range(2))))) == 2
    assert f"cannot cache the index of {tmp_path / 'x.tar'}" in caplog.text


def test_samples_without_a_pair_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = pairs(range(3)) | {"a.jpg": png(7), "b.txt": b"alone", "c.jpg": png(8)}
    members |= {"c.png": png(9), "c.txt": b"which?", "d.jpg": png(1)}
    source = WebDatasetSource(write_tar(tmp_path / "x.tar", members))
    assert len(source) == 3
    expected = "skipped 4 samples (2 with no caption, 1 with no image, 1 with several images)"
    assert expected in caplog.text
    unpaired = {"a.jpg": png(1), "b.jpg": png(2), "a.txt": b"x", "b.txt": b"y"}
    message = r"no usable sample \(2 with no caption, 2 with no image\), .* consecutive members"
    with pytest.raises(UserError, match=message):
        WebDatasetSource(write_tar(tmp_path / "y.tar", unpaired))


def test_what_is_no_tar_is_a_sentence(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "x.tar", pairs(range(2))).read_bytes()
    contents = {"empty.tar": b"", "text.tar": b"hello " * 500, "x.tar.gz": gzip.compress(whole)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(
            UserError, match=f"{name} is (empty|not an uncompressed tar .*), .* it.$"
        ):
            WebDatasetSource(tmp_path / name)
    with pytest.raises(UserError, match="no tar file was found at .*missing.*config.data.path"):
        WebDatasetSource(tmp_path / "missing.tar")
    write_tar(tmp_path / "nothing.tar", {})
    with pytest.raises(UserError, match=r"no usable sample \(no files\)"):
        WebDatasetSource(tmp_path / "nothing.tar")


def test_a_tar_cut_anywhere_gives_the_whole_samples_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "x.tar", pairs(range(4)))
    whole, spans = path.read_bytes(), index_of(path).spans
    for cut in range(600, int(spans[-1, 1]) * 512 - 512, 300):
        path.write_bytes(whole[:cut])
        caplog.clear()
        complete = int((spans[:, 1].astype(int) * 512 <= cut).sum())
        # A sample whose last member, the text, is lost still has the caption in its JSON.
        complete += any(int(end) * 512 - 1024 <= cut < int(end) * 512 for end in spans[:, 1])
        if not complete:
            with pytest.raises(UserError, match="no usable sample"):
                WebDatasetSource(path)
            continue
        source = WebDatasetSource(path)
        assert len(source) == complete
        assert "x.tar: using only the " in caplog.text
        for index in range(len(source)):
            assert source[index].image == png(index)
            assert source.captions(index) in ((f"text {index}",), (f"json {index}",))


def test_a_damaged_header_ends_a_tar_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_tar(tmp_path / "x.tar", pairs(range(4)))
    content = bytearray(path.read_bytes())
    start = int(index_of(path).spans[2, 0]) * 512
    content[start + 3] ^= 0xFF
    path.write_bytes(bytes(content))
    assert len(WebDatasetSource(path)) == 2
    assert f"using only the 2 samples before the damage, because the header at byte {start}" in (
        caplog.text
    )


def test_flipped_bytes_and_negative_sizes_give_sentences_or_samples(tmp_path: Path) -> None:
    """The sums of headers are corrected, so that the numbers in them are believed."""
    path = write_tar(tmp_path / "x.tar", pairs(range(2)))
    whole = path.read_bytes()
    changes = [(position, bytes([whole[position] ^ 0xFF])) for position in range(0, 4000, 7)]
    negative = b"\xff" * 10 + b"\xfe\x00"  # -512, as a binary number
    changes += [(header + 124, negative) for header in (0, 1024, 2048)]
    refused = 0
    for position, change in changes:
        content = bytearray(whole)
        content[position : position + len(change)] = change
        header = position // 512 * 512
        if whole[header + 257 : header + 262] == b"ustar":
            content[header + 148 : header + 156] = b" " * 8
            total = sum(content[header : header + 512])
            content[header + 148 : header + 156] = b"%06o\0 " % total
        path.write_bytes(bytes(content))
        try:
            source = WebDatasetSource(path)
            for index in range(len(source)):
                assert isinstance(source[index].image, bytes)
        except (UserError, BadImageError):
            refused += 1
    assert refused > 5


def test_a_tar_that_changes_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", pairs(range(4)))
    source = WebDatasetSource(path)
    with path.open("ab") as stream:
        stream.write(bytes(512))
    with pytest.raises(UserError, match="x.tar has changed since this command opened it; run"):
        source[1]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"9.jpg": png(9), "9.txt": b"\xff\xfe"}, "the caption is not valid UTF-8 or JSON"),
        ({"9.jpg": png(9), "9.json": b'{"caption": '}, "the caption is not valid UTF-8 or JSON"),
        ({"9.jpg": png(9), "9.json": b"[1]"}, r"the JSON is \[1\] \(list\), expected an object"),
        ({"9.jpg": png(9), "9.txt": b" \n"}, "caption 1 is '' .*, expected a text that is not bla"),
        ({"9.jpg": png(9), "9.json": b"{}"}, "the captions are None"),
    ],
)
def test_a_sample_without_a_readable_caption_counts_as_bad(
    members: dict[str, bytes], message: str, tmp_path: Path
) -> None:
    path = write_tar(tmp_path / "x.tar", pairs(range(3)) | members)
    source = WebDatasetSource(path)
    assert len(source) == 4
    with pytest.raises(BadImageError, match=f"x.tar, sample 3: {message}"):
        source.captions(3)
    with pytest.raises(UserError, match=message):  # nothing can be used
        WebDatasetSource(write_tar(tmp_path / "y.tar", members))


def test_training_continues_at_the_same_sample(tmp_path: Path) -> None:
    write_tar(tmp_path / "0.tar", pairs(range(7)))
    write_tar(tmp_path / "1.tar", pairs(range(7, 12)))
    source = WebDatasetSource(tmp_path)

    def started():
        return make_training_iterator(
            source, lambda draw: {"index": np.int64(draw.index)}, batch_size=4, seed=1
        )

    whole = started()
    expected = [next(whole)["index"].tolist() for _ in range(6)]
    assert sorted(np.ravel(expected[:3])) == list(range(12))
    first = started()
    next(first)
    second = started()
    second.set_state(first.get_state())
    assert [next(second)["index"].tolist() for _ in range(5)] == expected[1:]
