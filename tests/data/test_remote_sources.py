"""Data in gs://, s3:// and on web servers: the same examples as from local files."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mask_trees import ade20k
from small_sets import examples, png, prepare_tfds, write_index

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data import webdataset
from dinotxt_jax.data.array_records import write_array_record
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.examples import check_images_found
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.sources import open_labelled, open_masks, open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.object_cache import ranges_folder


def copy_tree(folder: Path, target: Address) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder).as_posix()).write_bytes(file.read_bytes())


def images(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    for number in range(3):
        (folder / f"images/{number}.png").write_bytes(png(number))


def jsonl(folder: Path) -> dict[str, str]:
    images(folder)
    lines = [{"image": f"images/{i}.png", "captions": [f"text {i}", "again"]} for i in range(3)]
    return {"source": "jsonl", "path": write_index(folder, *lines).name}


def csv_with_captions(folder: Path) -> dict[str, str]:
    images(folder)
    rows = [f"images/{number}.png\tein Bär {number}" for number in range(3)]
    (folder / "a.tsv").write_text("\n".join(["file\tcaption", *rows]), encoding="utf-8-sig")
    return {"source": "csv", "path": "a.tsv"}


def tars(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for number in range(3):
                for ending, content in (
                    ("png", png(number)),
                    ("txt", f"{shard} {number}".encode()),
                ):
                    member = tarfile.TarInfo(f"{number:04d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return {"source": "webdataset", "path": "*.tar"}


def records(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    write_array_record(folder / "a.array_record", examples(3))
    return {"source": "array_record", "path": ""}


def coco(folder: Path) -> dict[str, str]:
    images(folder)
    document = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(3)],
        "annotations": [{"image_id": i, "caption": f"text {i}"} for i in range(3)],
    }
    (folder / "captions.json").write_text(json.dumps(document))
    return {"source": "coco", "path": "captions.json", "image_root": "images"}


def class_folders(folder: Path) -> dict[str, str]:
    for name in ("cat", "dog"):
        images(folder / name)
    return {"source": "folder", "path": ""}


def settings(base: Path | Address, changes: dict[str, str]) -> DataConfig:
    """Returns the settings with the paths inside a folder."""
    paths = {
        key: f"{base}/{value}".rstrip("/")
        for key, value in changes.items()
        if key in ("path", "image_root")
    }
    return DataConfig(**(changes | paths), threads=2)


MAKERS = [jsonl, csv_with_captions, tars, records, coco, class_folders]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_source_in_a_bucket_gives_the_examples_of_the_local_one(
    make: Callable[[Path], dict[str, str]], tmp_path: Path, bucket: Address
) -> None:
    changes = make(tmp_path / "data")
    copy_tree(tmp_path / "data", bucket)
    local = open_source(settings(tmp_path / "data", changes))
    remote = open_source(settings(bucket, changes))
    check_images_found(remote, settings(bucket, changes))
    assert len(remote) == len(local) > 2
    for index in (2, 0, 1):
        assert remote[index] == local[index]
        assert remote.captions(index) == local.captions(index)
    assert pickle.loads(pickle.dumps(remote))[1] == local[1]
    assert data_identity(remote, 2) == data_identity(local, 2)  # a run may continue there


@pytest.mark.parametrize("kind", ["saved", "cached"])
def test_a_hugging_face_data_set_in_a_bucket_is_read(
    kind: str, goldens: Path, bucket: Address
) -> None:
    copy_tree(goldens / "hf_datasets" / kind, bucket / kind)
    sources = [
        open_source(DataConfig(source="hf_datasets", path=f"{base}/{kind}", split="test"))
        for base in (goldens / "hf_datasets", bucket)
    ]
    assert data_identity(sources[0], 1) == data_identity(sources[1], 1)
    assert sources[1][2] == sources[0][2]
    assert pickle.loads(pickle.dumps(sources[1]))[0] == sources[0][0]


def test_labels_and_masks_are_read_from_a_bucket(tmp_path: Path, bucket: Address) -> None:
    ade20k(tmp_path / "data")
    copy_tree(tmp_path / "data", bucket)
    pairs = [
        open_masks(
            DataConfig(source="masks", name="ade20k_150", path=str(base), split="validation")
        )
        for base in (tmp_path / "data", bucket)
    ]
    for local, remote in zip(pairs[0].load(0), pairs[1].load(0), strict=True):
        np.testing.assert_array_equal(local, remote)
    class_folders(tmp_path / "classes")
    copy_tree(tmp_path / "classes", bucket / "classes")
    source = open_labelled(DataConfig(source="folder", path=str(bucket / "classes")))
    assert source.class_names == ("cat", "dog")
    assert [source.labels(index) for index in (0, 3)] == [(0,), (1,)]


def test_samples_are_read_by_range_once_and_then_from_the_local_copies(
    tmp_path: Path, bucket: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = tars(tmp_path / "data")
    copy_tree(tmp_path / "data", bucket)
    source = open_source(settings(bucket, changes))
    first = [source[index] for index in range(6)]
    assert len([file for file in ranges_folder().rglob("*") if file.is_file()]) == 6
    webdataset._opened.cache_clear()
    monkeypatch.setattr("dinotxt_jax.storage.byte_ranges.ByteRanges._fetch", _unread)
    again = open_source(settings(bucket, changes))  # the index is kept, too
    assert [again[index] for index in range(6)] == first


def _unread(*_: object) -> bytes:
    raise AssertionError("the object was read again")


def test_a_tar_that_changed_in_a_bucket_is_noticed(
    tmp_path: Path, bucket: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinotxt_jax.storage.byte_ranges._FRESH", 0.0)
    changes = tars(tmp_path / "data")
    copy_tree(tmp_path / "data", bucket)
    source = open_source(settings(bucket, changes))
    (bucket / "00001.tar").write_bytes((tmp_path / "data/00000.tar").read_bytes())
    with pytest.raises(UserError, match=r"00001\.tar has changed since this command opened it"):
        source[5]
    assert open_source(settings(bucket, changes))[5].captions == ("0 2",)


def test_an_image_that_vanished_is_a_bad_image(tmp_path: Path, bucket: Address) -> None:
    changes = jsonl(tmp_path / "data")
    copy_tree(tmp_path / "data", bucket)
    source = open_source(settings(bucket, changes))
    (bucket / "images/1.png").unlink()
    with pytest.raises(BadImageError, match=r"images/1\.png cannot be read: no such object"):
        source[1]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_a_wrong_address_is_named_with_its_key(
    make: Callable[[Path], dict[str, str]], tmp_path: Path, bucket: Address
) -> None:
    changes = make(tmp_path / "data")
    with pytest.raises(UserError, match=r"gs://pod/.*; correct config\.data\.path"):
        open_source(settings(bucket / "typo", changes))


def test_a_forbidden_bucket_is_no_missing_file(served_buckets: None) -> None:
    for source in ("jsonl", "webdataset", "array_record", "coco", "csv", "hf_datasets"):
        with pytest.raises(PermissionError, match=r"access is denied .*gs://denied/a"):
            open_source(DataConfig(source=source, path="gs://denied/a"))


@pytest.fixture
def tiny_tfds(tmp_path: Path, bucket: Address) -> tuple[str, Address]:
    """Prepares a TFDS data set of three examples here, and copies it to the bucket."""
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(), "text": tfds.features.Text()}
    values = ({"image": io.BytesIO(png(i)), "text": f"text {i}"} for i in range(3))
    folder = prepare_tfds(tmp_path / "tfds", "tiny", features, values)
    copy_tree(Path(folder), bucket / "tfds")
    return folder, bucket / "tfds"


def test_a_split_of_tfds_in_a_bucket_is_read(tiny_tfds: tuple[str, Address]) -> None:
    _, there = tiny_tfds
    settings = {"source": "tfds", "name": "tiny", "split": "train", "caption_key": "text"}
    # A split that is not asked for, of which no shard is copied.
    (there / "tiny/1.0.0/tiny-test.array_record-00000-of-00001").write_bytes(b"damaged")
    local, remote = (open_source(DataConfig(path=str(path), **settings)) for path in tiny_tfds)
    assert [remote[index] for index in range(3)] == [local[index] for index in range(3)]
    assert pickle.loads(pickle.dumps(remote))[2] == local[2]
    part = DataConfig(path=str(there), **{**settings, "name": "tiny:1.0.0", "split": "train[:2]"})
    assert len(open_source(part)) == 2
    (there / "tiny/1.0.0/tiny-test.array_record-00000-of-00001").unlink()
    whole = DataConfig(path=str(there), **{**settings, "split": "all"})
    assert len(open_source(whole)) == 3
    with pytest.raises(UserError, match=r"tiny holds 1.0.0, expected a folder .* \(2.0.0\) with"):
        open_source(DataConfig(path=str(there), **{**settings, "name": "tiny:2.0.0"}))
    with pytest.raises(UserError, match=r"tfds/none holds nothing, expected a folder named after"):
        open_source(DataConfig(path=str(there), **{**settings, "name": "none"}))


def test_images_and_tars_are_read_from_a_web_server(web: Any, tmp_path: Path) -> None:
    for make in (jsonl, tars):
        changes = make(web.folder / make.__name__)
        changes |= {"path": changes["path"].replace("*", "00000")}
        local = open_source(settings(web.folder / make.__name__, changes))
        remote = open_source(settings(to_address(web.url(make.__name__)), changes))
        assert len(remote) == len(local) == 3
        assert [remote[index] for index in range(3)] == [local[index] for index in range(3)]
    with pytest.raises(UserError, match=r"no tar file was found at http://.*/none\.tar"):
        open_source(DataConfig(source="webdataset", path=web.url("none.tar")))


@pytest.fixture(scope="module")
def s3_server() -> Iterator[dict[str, str]]:
    """Serves s3:// on this machine; returns the variables that make the libraries use it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def s3(s3_server: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Address:
    """Returns a folder in a bucket at s3://."""
    import boto3

    for name, value in (s3_server | {"DINOTXT_CACHE": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="pairs")
    return to_address("s3://pairs") / tmp_path.name


@pytest.mark.parametrize("make", [jsonl, tars, records], ids=lambda make: make.__name__)
def test_a_source_in_s3_gives_the_examples_of_the_local_one(
    make: Callable[[Path], dict[str, str]], tmp_path: Path, s3: Address
) -> None:
    changes = make(tmp_path / "data")
    copy_tree(tmp_path / "data", s3)
    local = open_source(settings(tmp_path / "data", changes))
    remote = open_source(settings(s3, changes))
    assert [remote[index] for index in range(3)] == [local[index] for index in range(3)]
    assert pickle.loads(pickle.dumps(remote))[1] == local[1]
    with pytest.raises(UserError, match=r"s3://pairs/.*typo.*correct config\.data\.path"):
        open_source(settings(s3 / "typo", changes))
    assert os.listdir(tmp_path / "cache")
