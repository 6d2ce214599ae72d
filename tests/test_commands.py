"""segment, classify and embed from the command line."""

from __future__ import annotations

import csv
import shutil
import subprocess
from pathlib import Path

import commands
import numpy as np
import pyarrow.parquet as pq
import pytest
from damage import change_number
from models import with_tokenizer
from PIL import Image

ROOT = Path(__file__).parent.parent
QUICKSTART = (f"--config={ROOT}/configs/quickstart.py", "--config.backbone=B")


@pytest.fixture(scope="module")
def directory(tiny_dinotxt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions = [f"a photo of a {name}" for name in ("cat", "dog", "zebra")]
    return with_tokenizer(tiny_dinotxt, tmp_path_factory.mktemp("commands") / "model", captions)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Writes three photos into a folder, one in a subfolder."""
    rng = np.random.default_rng(0)
    for number, name in enumerate(("a.png", "b.jpg", "deeper/c.png")):
        file = tmp_path / "photos" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (4, 5 + number, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 80), Image.Resampling.NEAREST).save(file)
    return tmp_path / "photos"


def command(cwd: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = commands.environment(DINOTXT_CACHE=str(cwd / "cache"))
    return commands.run(["-m", *map(str, arguments)], cwd=cwd, env=environment)


def test_segment_draws_a_picture_and_writes_labels(
    directory: Path, photos: Path, tmp_path: Path
) -> None:
    result = command(
        tmp_path,
        *("dinotxt_jax.segment", photos / "a.png", f"--model={directory}"),
        *("--classes", "cat; a 'dog'; zebra", "--templates=a {}", "--protocol=whole"),
        *("--output=out/seen.png", "--labels=out/labels.png"),
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "out/seen.png"
    assert Image.open(tmp_path / "out/seen.png").width > 300
    labels = np.asarray(Image.open(tmp_path / "out/labels.png"))
    assert (labels.shape, labels.max() <= 2) == ((80, 90), True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["labels.png", "seen.png"]


def test_classify_prints_the_best_and_writes_all(
    directory: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\nzebra\n")
    result = command(
        tmp_path,
        *("dinotxt_jax.classify", photos, f"--model={directory}", "--classes=names.txt"),
        *("--templates=a {}", "--top=2", "--batch_size=2", "--output=all.csv"),
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        str(photos / name) for name in ("a.png", "b.jpg", "deeper/c.png")
    ]
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    for line, row in zip(lines, rows, strict=True):
        values = {name: float(row[name]) for name in ("cat", "dog", "zebra")}
        assert sum(values.values()) == pytest.approx(1, abs=1e-5)
        best = sorted(values, key=lambda name: -values[name])[:2]
        summary = ", ".join(f"{name} {100 * values[name]:.1f}%" for name in best)
        assert line.endswith(summary)


def test_a_damaged_model_is_refused_unless_checksums_are_off(
    directory: Path, photos: Path, tmp_path: Path
) -> None:
    shutil.copytree(directory, tmp_path / "model")
    change_number(tmp_path / "model", ("text", "projection", "kernel"))
    arguments = ("dinotxt_jax.embed", photos, "--model=model", "--output=all.npz")
    refused = command(tmp_path, *arguments)
    assert refused.returncode == 2
    assert "error: model is damaged: text.projection.kernel differ" in refused.stderr
    assert not (tmp_path / "all.npz").exists()
    assert command(tmp_path, *arguments, "--nochecksums").returncode == 0
    assert (tmp_path / "all.npz").exists()


def test_embed_writes_both_formats_and_skips_broken_images(
    directory: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "broken.png").write_text("no image")
    result = command(
        tmp_path,
        *("dinotxt_jax.embed", photos, f"--model={directory}", "--output=out/e.parquet"),
        *("--batch_size=2",),
    )
    assert result.returncode == 0, result.stderr
    assert "broken.png cannot be read" in result.stderr
    assert "1 of 4 images were skipped" in result.stderr
    table = pq.read_table(tmp_path / "out/e.parquet")
    assert [Path(name).name for name in table["name"].to_pylist()] == ["a.png", "b.jpg", "c.png"]
    embeddings = np.stack(table["embedding"].to_numpy())
    (tmp_path / "texts.txt").write_text("a cat\na dog\n")
    result = command(
        tmp_path,
        *("dinotxt_jax.embed", "--texts=texts.txt", f"--model={directory}", "--output=e.npz"),
    )
    assert result.returncode == 0, result.stderr
    texts = np.load(tmp_path / "e.npz")
    assert texts["name"].tolist() == ["a cat", "a dog"]
    for rows in (embeddings, texts["embedding"]):
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["e.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("segment", "a.png", "--output=o.png"), "--model is missing; see --help."),
        (("segment", "--model=M", "--output=o.png"), "0 images are named, expected one"),
        (("segment", "a.png", "--model=M", "--output=o.gifx"), "o.gifx ends in none of .png"),
        (("segment", "a.png", "--model=M", "--output=o.png", "--classes=;"), "expected names such"),
        (
            ("segment", "a.png", "--model=M", "--output=o.png", "--classes=cat; dog"),
            "M is not a model directory",
        ),
        (
            ("segment", "a.png", "--model=M", "--output=o.png", "--classes=dog"),
            "--classes names a single class, 'dog', which gets 100 % for every image",
        ),
        (
            ("segment", "a.png", "--model=M", "--output=o.png", "--picture=pca", "--labels=l.png"),
            "--picture=pca has no labels; leave out --labels.",
        ),
        (("segment", ".", "--model=M", "--output=o.png"), ". is a folder, expected one image"),
        (
            ("segment", "a.txt", "--model=M", "--output=o.png", "--classes=cat; dog"),
            "a.txt cannot be read (text, not an image), expected an image such as",
        ),
        (
            ("segment", "a.png", "--model=M", "--output=o.png", "--classes=c.txt"),
            "c.txt', which is",
        ),
        (("segment", "a.png", "--model=M", "--output=o.png", "--classes=a, b"), "by semicolons"),
        (("classify", "--model=M", "--classes=a"), "no image is named, expected paths"),
        (("classify", "x.png", "--model=M", "--classes=a"), "x.png does not exist"),
        (
            ("classify", "a.png", "--model=M", "--classes=imagenet1"),
            "--classes is 'imagenet1', which is not a bundled list, did you mean imagenet1k?",
        ),
        (("classify", "a.png", "--model=M", "--classes=dog; dog"), "names a single class, 'dog'"),
        (
            ("classify", "a.png", "--model=M", "--classes=a; b", "--templates=openai_8"),
            "did you mean openai_80?",
        ),
        (
            ("classify", "a.png", "--model=M", "--classes=a; b", "--output=."),
            ". is a folder, expected a file to write; add a file name.",
        ),
        (("embed", "--model=M", "--output=e.npz"), "neither images nor --texts are given"),
        (("embed", "a.png", "--texts=a.txt", "--model=M", "--output=e.npz"), "both images and"),
        (
            ("embed", "--texts=t", "--model=M", "--output=e.npz"),
            "--texts is 't', which is neither a file",
        ),
        (
            ("train", *QUICKSTART, "--workdir=s3://bucket/run"),
            "s3://bucket/run, but only data is read from s3://",
        ),
        (("train", "extra", *QUICKSTART, "--workdir=w"), "'extra' is not a flag"),
    ],
)
def test_mistakes_end_in_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("some words\n")
    result = command(tmp_path, f"dinotxt_jax.{arguments[0]}", *arguments[1:])
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "a.txt"]


def test_every_command_of_dinotxt_explains_itself(tmp_path: Path) -> None:
    result = command(tmp_path, "dinotxt_jax.cli", "segment", "--help")
    assert result.returncode == 0, result.stderr
    assert "--protocol: slide, whole or highres" in result.stdout
    assert "(default: overlay)" in result.stdout
    assert "Every pixel gets the class" in result.stdout
