"""Ingestion: records, duplicates, quarantine, mistakes, and the same bytes in every way."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import commands
import pytest
from ingested import contents, photo, quarantine, settings, write_pairs
from PIL import Image
from small_sets import png, write_index

from dinotxt_jax.config import DataConfig, IngestionConfig
from dinotxt_jax.data.array_records import ArrayRecordSource
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.ingestion.duplicates import partition_bits
from dinotxt_jax.ingestion.run import ingest
from dinotxt_jax.storage.addresses import Address


def test_records_are_the_examples_in_order_and_the_rest_is_in_quarantine(
    mixed: DataConfig, tmp_path: Path
) -> None:
    manifest = ingest(settings(mixed), str(tmp_path / "out"))
    source, stored = open_source(mixed), ArrayRecordSource(tmp_path / "out")
    kept = [index for index in range(40) if index not in (3, 11, 20, 25)]
    assert [stored[i] for i in range(len(stored))] == [source[index] for index in kept]
    rejected = quarantine(tmp_path / "out")
    assert [entry["index"] for entry in rejected] == [3, 11, 20, 25]
    assert [entry["key"] for entry in rejected] == ["003.img", "011.img", "020.img", "025.img"]
    for entry, reason in zip(
        rejected, ("the file is empty", "text, not an image", "truncated", "No such"), strict=True
    ):
        assert reason in entry["reason"]
    assert manifest["counts"] == {
        "examples": 40,
        "records": 36,
        "duplicates": 0,
        "quarantined": 4,
    }
    statistics = manifest["statistics"]
    assert statistics["formats"] == {"PNG": 36}
    assert statistics["short_side"] == {"count": 36, "sum": 108, "min": 3, "max": 3,
                                        "bins": {"3": 36}}  # fmt: skip
    assert statistics["aspect_percent"]["bins"] == {"128": 36}  # 133 is in the bin from 128 to 159
    assert statistics["captions_per_example"]["sum"] == 72
    texts = [len(text) for index in kept for text in source.captions(index)]
    assert statistics["caption_characters"]["sum"] == sum(texts)
    assert sum(shard["records"] for shard in manifest["shards"]) == 36
    whole = ingest(settings(mixed, shard_size=40), str(tmp_path / "whole"))
    assert whole["statistics"] == statistics  # adding up over shards changes nothing


@pytest.mark.parametrize("kind", ["image", "pair"])
def test_the_first_of_equal_examples_stays(kind: str, tmp_path: Path) -> None:
    images = [png(number % 4) for number in range(20)]
    captions = [f"text {number % 2 if number < 10 else number}" for number in range(20)]
    data = write_pairs(tmp_path / "pairs", images, captions)
    out = tmp_path / "out"
    manifest = ingest(settings(data, shard_size=3, deduplicate=kind), str(out))
    kept = list(range(4)) + (list(range(10, 20)) if kind == "pair" else [])
    stored = ArrayRecordSource(out)
    assert [stored.key(i) for i in range(len(stored))] == [f"{index:03d}.img" for index in kept]
    assert manifest["counts"]["duplicates"] == 20 - len(kept)
    assert not list(out.glob("parts/*.hashes"))


def test_examples_that_cannot_be_stored_are_no_duplicates(tmp_path: Path) -> None:
    """Equal damaged files all count as bad, and a good example never gives way to a bad one."""
    images = [b"", png(1), b"", png(1), b"text", png(2), b"text", b""]
    captions = [f"text {number}" for number in range(8)]
    captions[1] = "half of a pair \ud83d"
    data = write_pairs(tmp_path / "pairs", images, captions)
    data = DataConfig(**(vars(data) | {"max_bad_fraction": 0.9}))
    manifest = ingest(settings(data, deduplicate="image"), str(tmp_path / "out"))
    assert manifest["counts"] == {
        "examples": 8,
        "records": 2,
        "duplicates": 0,
        "quarantined": 6,
    }
    assert [entry["index"] for entry in quarantine(tmp_path / "out")] == [0, 1, 2, 4, 6, 7]


def test_duplicates_are_found_in_every_partition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinotxt_jax.ingestion.duplicates._PARTITION", 200)
    assert partition_bits(200) == 5
    images = [png(number % 100) for number in range(200)]
    data = write_pairs(tmp_path / "pairs", images)
    ingest(settings(data, deduplicate="image"), str(tmp_path / "out"))
    stored = ArrayRecordSource(tmp_path / "out")
    assert [stored.key(i) for i in range(len(stored))] == [f"{i:03d}.img" for i in range(100)]


def test_any_number_of_processes_writes_the_same_bytes(mixed: DataConfig, tmp_path: Path) -> None:
    outputs = []
    for workers in (1, 4):
        out = tmp_path / f"out{workers}"
        ingest(settings(mixed, deduplicate="image", encoding="jpeg", workers=workers), str(out))
        outputs.append(contents(out))
    assert outputs[0] == outputs[1]
    # Threads change nothing either.
    again = tmp_path / "again"
    other = DataConfig(**(vars(mixed) | {"threads": 0, "prefetch": 0}))
    ingest(settings(other, deduplicate="image", encoding="jpeg"), str(again))
    assert contents(again) == outputs[0]


def test_large_images_are_reduced_and_small_ones_stay_as_they_are(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    images = [
        photo((40, 30), "JPEG"),
        photo((40, 30), "JPEG", exif=turned),
        photo((9, 12), "JPEG"),
        photo((40, 30), "PNG"),
        photo((30, 60), "WEBP"),
        photo((30, 30), "BMP"),
        photo((10, 10), "BMP"),
    ]
    data = write_pairs(tmp_path / "pairs", images)
    ingest(settings(data, resize=15), str(tmp_path / "out"))
    source = ArrayRecordSource(tmp_path / "out")
    stored = [source[i].image for i in range(len(source))]
    opened = [Image.open(io.BytesIO(image)) for image in stored]
    assert [(image.format, image.size) for image in opened] == [
        ("JPEG", (20, 15)),
        ("JPEG", (15, 20)),
        ("JPEG", (9, 12)),
        ("PNG", (20, 15)),
        ("WEBP", (15, 30)),
        ("PNG", (15, 15)),
        ("BMP", (10, 10)),
    ]
    assert (stored[2], stored[6]) == (images[2], images[6])


def test_images_get_the_chosen_format_and_quality(tmp_path: Path) -> None:
    images = [photo((40, 30), "PNG"), photo((40, 30), "WEBP"), photo((40, 30), "JPEG", quality=30)]
    data = write_pairs(tmp_path / "pairs", images)
    sizes = {}
    for quality in (40, 95):
        out = tmp_path / str(quality)
        manifest = ingest(settings(data, encoding="jpeg", quality=quality), str(out))
        source = ArrayRecordSource(out)
        sizes[quality] = len(source[0].image)
        assert source[2].image == images[2]  # is a JPEG already
        assert manifest["statistics"]["formats"] == {"JPEG": 3}
    assert 2 * sizes[40] < sizes[95]


def test_an_image_that_a_format_cannot_hold_goes_into_quarantine(tmp_path: Path) -> None:
    long = Image.new("RGB", (16_384, 1))
    buffer = io.BytesIO()
    long.save(buffer, "PNG")
    data = write_pairs(tmp_path / "pairs", [png(1), buffer.getvalue()])
    ingest(settings(data, encoding="webp"), str(tmp_path / "out"))
    (entry,) = quarantine(tmp_path / "out")
    assert entry["index"] == 1
    assert "16384 x 1 pixels cannot be stored as WEBP" in entry["reason"]


def test_without_verification_only_headers_are_read(tmp_path: Path) -> None:
    images = [photo((30, 20), "JPEG")[:700], b"text", png(3), png(4)]
    data = write_pairs(tmp_path / "pairs", images)
    ingest(settings(data, verify=False), str(tmp_path / "out"))
    assert [entry["index"] for entry in quarantine(tmp_path / "out")] == [1]
    ingest(settings(data), str(tmp_path / "verified"))
    assert [entry["index"] for entry in quarantine(tmp_path / "verified")] == [0, 1]


def test_captions_of_several_columns_keep_them(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1))
    row = {"image": "a.png", "alt": "an alt text", "synthetic": ["s", "t"]}
    path = str(write_index(tmp_path, row))
    ingest(
        settings(DataConfig(source="jsonl", path=path, caption_key="alt+synthetic")),
        str(tmp_path / "out"),
    )
    output = str(tmp_path / "out")
    stored = DataConfig(source="array_record", path=output, caption_key="synthetic")
    assert open_source(stored).captions(0) == ("s", "t")
    assert ArrayRecordSource(output).captions(0) == ("an alt text", "s", "t")


def test_texts_that_are_no_unicode_go_into_quarantine(tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs", [png(1), png(2)], ["half of a pair \ud83d", "whole"])
    ingest(settings(data, deduplicate="pair"), str(tmp_path / "out"))
    (entry,) = quarantine(tmp_path / "out")
    assert entry["index"] == 0
    assert "a text is not valid Unicode" in entry["reason"]


def test_records_of_every_kind_of_damage_are_counted(tmp_path: Path) -> None:
    """A damaged ArrayRecord as source: wrong schema, blank captions, no UTF-8, another byte."""
    import msgpack
    from array_record.python.array_record_module import ArrayRecordWriter

    (tmp_path / "in").mkdir()
    good = {"image": png(1), "captions": ["fine"], "key": "good"}
    rows = [
        msgpack.packb(good),
        msgpack.packb({"picture": png(1)}),
        msgpack.packb(good | {"captions": [" "]}),
        msgpack.packb(good).replace(b"fine", b"f\xff\xfee"),
        msgpack.packb(good | {"captions": []}),
        b"",
        msgpack.packb(good | {"image": b""}),
    ]
    writer = ArrayRecordWriter(str(tmp_path / "in" / "x.array_record"), "group_size:1")
    for row in rows:
        writer.write(row)
    writer.close()
    data = DataConfig(
        source="array_record", path=str(tmp_path / "in"), threads=0, max_bad_fraction=0.9
    )
    manifest = ingest(settings(data), str(tmp_path / "out"))
    assert manifest["counts"]["records"] == 1
    entries = quarantine(tmp_path / "out")
    assert [entry["index"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    for entry in entries[:-1]:
        assert f"x.array_record, record {entry['index']}" in entry["reason"] or (
            f"{tmp_path / 'in'}, record {entry['index']}" in entry["reason"]
        )


def test_other_settings_or_another_source_need_another_folder(
    mixed: DataConfig, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    ingest(settings(mixed), out)
    before = contents(tmp_path / "out")
    with pytest.raises(UserError, match=r"with config.shard_size=7, expected 8 as in this command"):
        ingest(settings(mixed, shard_size=8), out)
    other = write_pairs(tmp_path / "other", [png(number) for number in range(40)])
    other_names = DataConfig(**(vars(other) | {"path": str(tmp_path / "other" / "few.jsonl")}))
    (tmp_path / "other" / "few.jsonl").write_text('{"image": "000.img", "caption": "x"}\n')
    with pytest.raises(UserError, match=r"another source \(40 examples there, 1 here\)"):
        ingest(settings(other_names), out)
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "a.array_record").write_bytes(b"mine")
    with pytest.raises(UserError, match="holds other ArrayRecord files, such as a.array_record"):
        ingest(settings(mixed), str(tmp_path / "records"))
    assert contents(tmp_path / "out") == before
    # Data may move.
    (tmp_path / "pairs").rename(tmp_path / "moved")
    moved = DataConfig(**(vars(mixed) | {"path": str(tmp_path / "moved" / "captions.jsonl")}))
    ingest(settings(moved), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shard_size": 0}, "config.shard_size is 0, expected a number from 1 to 1,000,000"),
        ({"encoding": "jpg"}, "config.encoding is 'jpg', expected keep, jpeg, webp or png; did"),
        ({"quality": 101}, "config.quality is 101"),
        ({"deduplicate": "all"}, "config.deduplicate is 'all', expected none, image or pair"),
        ({"data": IngestionConfig().data}, "config.data.source is '', expected scenes"),
        ({"data": DataConfig(workers=2)}, "config.data.workers is 2, expected 0, because"),
        ({"data": DataConfig(source="jsonl")}, "config.data.path is empty"),
        ({"data": DataConfig(source="masks", name="voc_20", path="x")}, "has no captions"),
        ({"data": DataConfig(source="jsonl", path="absent.jsonl")}, "there is no file absent"),
        ({"data": DataConfig(source="parquet", path="absent")}, "no Parquet file was found"),
    ],
)
def test_mistakes_end_before_anything_is_written(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as raised:
        ingest(IngestionConfig(**({"data": DataConfig()} | change)), str(tmp_path / "out"))
    assert message in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_wrong_addresses_end_before_anything_is_written(mixed: DataConfig, tmp_path: Path) -> None:
    for output, message in (
        ("s3://bucket/out", "only data is read from s3://"),
        ("gx://bucket/out", "has the scheme gx://"),
        (mixed.path, "is a file, expected a folder for shards"),
    ):
        with pytest.raises(UserError, match=message):
            ingest(settings(mixed), output)
    lost = DataConfig(**(vars(mixed) | {"image_root": str(tmp_path)}))
    with pytest.raises(UserError, match="none of 8 image paths tried"):
        ingest(settings(lost), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_command_needs_no_config_file(tmp_path: Path) -> None:
    environment = commands.environment(DINOTXT_CACHE=str(tmp_path / "cache"))

    def command(*arguments: str) -> Any:
        arguments = ("-m", "dinotxt_jax.cli", "ingest", *arguments)
        return commands.run(list(arguments), cwd=tmp_path, env=environment)

    drawn = ("--config.data.source=scenes", "--config.data.num_scenes=20")
    result = command("--output=out", *drawn, "--config.workers=1")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ("out: 20 records of 20 examples (0 duplicates, 0 in quarantine)\n")
    assert "writing" in result.stderr
    assert len(ArrayRecordSource(tmp_path / "out")) == 20
    printed = command(*drawn, "--config.resize=256", "--print_config")
    assert printed.returncode == 0, printed.stderr
    assert "config.resize=256  # default: 0" in printed.stdout
    for arguments, message in (
        (drawn, "--output is missing"),
        (("--output=x",), "config.data.source is '', expected scenes, jsonl, "),
        (("--output=x", "--config.resise=3"), "did you mean config.resize?"),
        (("--output=x", *drawn, "--beam_options=--a"), "--beam_options is given without --runner"),
        (
            ("--output=x", *drawn, "--config.resize=-1"),
            "config.resize is -1, expected a number from 0",
        ),
    ):
        result = command(*arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "x").exists()


def test_a_bucket_gets_the_same_files_as_a_folder(
    mixed: DataConfig, tmp_path: Path, bucket: Address
) -> None:
    config = settings(mixed, deduplicate="image")
    ingest(config, str(tmp_path / "out"))
    local = contents(tmp_path / "out")

    def remote() -> dict[str, bytes]:
        return {name: (bucket / name).read_bytes() for name in local}

    ingest(config, str(bucket))
    assert remote() == local
    (bucket / "pairs-00002-of-00006.array_record").write_bytes(b"damaged")
    (bucket / "parts" / "00004.json").unlink()
    with pytest.raises(
        UserError, match=r"pairs-00002-of-00006.* has 7 bytes|cannot be read as Arr"
    ):
        ArrayRecordSource(str(bucket))
    ingest(config, str(bucket))
    assert remote() == local
    stored = ArrayRecordSource(str(bucket))
    assert stored[3] == ArrayRecordSource(tmp_path / "out")[3]
