"""The report: figures, examples, clusters, compared lists, and what cannot be reported."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import re
from pathlib import Path

import commands
import numpy as np
import pytest
from blobs import pool_config
from PIL import Image
from small_sets import write_index

from dinotxt_jax import UserError
from dinotxt_jax.config import CurationConfig, DataConfig
from dinotxt_jax.config.curation import BalanceConfig
from dinotxt_jax.curation.cluster_folder import ClusterFolder
from dinotxt_jax.curation.kmeans import Clustering
from dinotxt_jax.curation.report import write_report
from dinotxt_jax.curation.runners import in_processes
from dinotxt_jax.curation.text_step import balance_text
from dinotxt_jax.data.identity import data_identity
from dinotxt_jax.data.kept import read_kept, write_kept
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.train_views import decoded_image


@pytest.fixture
def config(tmp_path: Path) -> CurationConfig:
    """Balances a pool: 50 dogs, of which few stay, and five zebras."""
    texts = [f"<dog> & dog number {n}" for n in range(50)] + [f"zebra {n}" for n in range(5)]
    lines = [{"image": f"{n}.png", "captions": text} for n, text in enumerate([*texts, "nothing"])]
    data = DataConfig(source="jsonl", path=str(write_index(tmp_path, *lines)), threads=0)
    config = CurationConfig(data=data, workers=1, balance=BalanceConfig(threshold=5))
    (tmp_path / "entries.txt").write_text("dog\nzebra\nunicorn\n")
    balance_text(config, [str(tmp_path / "entries.txt")], tmp_path / "text", in_processes)
    return config


def test_a_person_reads_shares_entries_and_examples(config: CurationConfig, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    folder, file = tmp_path / "text", tmp_path / "text" / "kept.npz"
    assert (
        write_report(config, [str(folder), str(file)], page)
        == f"{page} describes {folder}, {file}."
    )
    text = page.read_text()
    counts = read_kept(file, "x").rows.counts(56)
    kept, dogs = int(counts.sum()), int(counts[:50].sum())
    assert dogs < 15
    assert text.count(f"{kept} of 56 examples are kept ({kept / 56:.1%}).") == 2
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    # The pool of this test names images that do not exist.
    figures = re.findall(r"<figure>.*\(no image\).*<b>(.*?)</b><br>(.*?)</figcaption>", text)
    assert ["dog", "50", str(dogs), f"{dogs / 50:.1%}"] in rows
    assert ["zebra", "5", "5", "100.0%"] in rows
    assert ["entries without a caption in the pool", "1"] in rows
    first_kept = int(np.flatnonzero(counts)[0])
    first_dropped = int(np.flatnonzero(counts == 0)[0])
    for index in (first_kept, first_dropped):
        assert (f"{index}.png", html.escape(f"<dog> & dog number {index}")) in figures
    assert f"<h3>Dropped: {56 - kept} examples</h3>" in text
    assert 'src="data:image/png;base64,' in text
    # Everything is inside the file.
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_results_that_cannot_be_reported_end_in_a_sentence(
    config: CurationConfig, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    other = dataclasses.replace(config, data=DataConfig(num_scenes=7))
    folder = str(tmp_path / "text")
    for settings, paths, message in (
        (config, [], r"no result is named, expected results of other steps"),
        (config, [str(tmp_path)], r"holds no result, expected a folder that text has written or a"),
        (other, [folder], r"was made for another pool: 56 examples there, 7 here"),
    ):
        with pytest.raises(UserError, match=message):
            write_report(settings, paths, page)
    (tmp_path / "text" / "entries.tsv").write_text("entry\tlanguage\n")
    with pytest.raises(UserError, match=r"entries.tsv is damaged or missing .*; run python -m"):
        write_report(config, [folder], page)
    with pytest.raises(UserError, match=r"is a folder, expected a file to write"):
        write_report(config, [folder], tmp_path)
    assert not page.exists()


@pytest.fixture
def clusters(tmp_path: Path) -> tuple[CurationConfig, Path]:
    """Returns a pool of 32 scenes in clusters of 20, 8 and 3 (one has none), and their folder."""
    config = pool_config(32)
    labels = np.repeat(np.array([0, 1, 2, -1], np.int32), [20, 8, 3, 1])
    distances = np.linspace(0, 1, 32, dtype=np.float32)
    zeros = np.zeros((3, 2), np.float32)
    folder = ClusterFolder(tmp_path / "clusters")
    identity = data_identity(open_source(config.data), 0)
    folder.start({"pool": identity, "embeddings": {}, "settings": {"levels": [3, 2]}})
    folder.save_clustering("level1", Clustering(zeros, labels, distances))
    parents = np.array([1, 0, 0], np.int32)
    folder.save_clustering("level2", Clustering(zeros[:2], parents, distances[:3]))
    balanced = np.zeros(32, np.int64)
    balanced[[0, 1, 2, 20, 21, 22, 28, 29, 30]] = 1
    write_kept(tmp_path / "balanced.npz", balanced, identity, {"sample": 9})
    write_kept(tmp_path / "first.npz", (np.arange(32) < 22).astype(int), identity, {"first": 22})
    return config, folder.path


def test_a_person_reads_and_sees_the_clusters_of_each_level_before_and_after(
    clusters: tuple[CurationConfig, Path], tmp_path: Path
) -> None:
    config, folder = clusters
    page, balanced = tmp_path / "report.html", tmp_path / "balanced.npz"
    write_report(config, [str(folder), str(balanced)], page)
    text = page.read_text()
    assert "31 of 32 examples are in clusters on 2 levels." in text
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert rows.count(["pool", "31", "0", "20", "8", "64.5%"]) == 1
    assert ["pool", "31", "0", "20", "15", "64.5%"] in rows
    assert [str(balanced), "9", "0", "3", "3", "33.3%"] in rows
    # Clusters of a level by size, each with its nearest examples, of different clusters first.
    source = open_source(config.data)
    galleries = re.findall(r"<h4>Cluster (.*?): (.*?)</h4>\n(<div.*?\n</div>)", text, re.DOTALL)
    assert [(number, numbers) for number, numbers, _ in galleries] == [
        ("0", f"pool 20, {balanced} 3"),
        ("1", f"pool 8, {balanced} 3"),
        ("2", f"pool 3, {balanced} 3"),
        ("1", f"pool 20, {balanced} 3"),
        ("0", f"pool 11, {balanced} 6"),
    ]
    keys = [re.findall(r"<b>(.*?)</b>", gallery) for _, _, gallery in galleries]
    assert keys[2] == [source.key(index) for index in (28, 29, 30)]
    nearest = [20, 28, 21, 29, 22, 30, 23, 24]
    assert keys[4] == [source.key(index) for index in nearest]
    picture = re.search(r'src="data:image/jpeg;base64,(.*?)"', galleries[2][2])
    assert picture is not None
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture[1]))), int)
    images = [decoded_image(source[index], DataConfig()) for index in (28, 29, 30)]
    expected = [np.asarray(image.convert("RGB").resize((176, 176)), int) for image in images]
    assert int(np.argmin([np.abs(shown - image).mean() for image in expected])) == 0
    assert not re.findall(r'(?:src|href)="(?!data:)', text)


def test_two_lists_are_compared(clusters: tuple[CurationConfig, Path], tmp_path: Path) -> None:
    config, _ = clusters
    page, lists = tmp_path / "report.html", [tmp_path / "balanced.npz", tmp_path / "first.npz"]
    write_report(config, [str(file) for file in lists], page)
    text = page.read_text()
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    assert rows[1:] == [
        ["In both", "5", "15.6%"],
        [f"Only in {lists[0]}", "4", "12.5%"],
        [f"Only in {lists[1]}", "17", "53.1%"],
        ["In neither", "6", "18.8%"],
    ]
    key = open_source(config.data).key
    for title, indices in (
        ("In both", [0, 1, 2, 20, 21]),
        ("In neither", [23, 24, 25, 26, 27, 31]),
    ):
        gallery = re.search(rf"<h3>{title}: .*?</h3>\n(<div.*?\n</div>)", text, re.DOTALL)
        assert gallery is not None
        assert re.findall(r"<b>(.*?)</b>", gallery[1]) == [key(index) for index in indices]


def test_incomplete_clusters_and_clusters_of_another_pool_are_not_reported(
    clusters: tuple[CurationConfig, Path], tmp_path: Path
) -> None:
    config, folder = clusters
    page = tmp_path / "report.html"
    with pytest.raises(UserError, match=r"clusters was made for another pool: 32 examples there"):
        write_report(pool_config(31), [str(folder)], page)
    (folder / "level2.npz").unlink()
    with pytest.raises(UserError, match=r"lacks level 2 of 2, expected all levels; run the same"):
        write_report(config, [str(folder)], page)
    assert not page.exists()


def test_the_command_makes_metadata_a_list_and_a_report(
    config: CurationConfig, tmp_path: Path
) -> None:
    def command(*arguments: object) -> str:
        settings = ("--config.data.source=jsonl", f"--config.data.path={config.data.path}")
        result = commands.run(
            ["-m", "dinotxt_jax.curate", *map(str, arguments), *settings],
            cwd=tmp_path,
            env=commands.environment(DINOTXT_CACHE=str(tmp_path / "cache")),
        )
        return result.stdout + (result.stderr if result.returncode else "")

    assert "entries in en.txt." in command(
        "metadata", "--output=metadata", "--config.workers=1", "--config.metadata.min_count=1"
    )
    out = ("--output=balanced", "--config.workers=1")
    assert "20 of 56 examples are kept" in command("text", "metadata", *out, "--config.target=20")
    assert "page.html describes balanced." in command("report", "balanced", "--output=page.html")
    assert "'reports' is not a step of curate; did you mean report?" in command("reports", *out)
    refused = command("text", "metadata", *out, "--beam_options=x")
    assert "--beam_options is given without --runner; give the runner, too." in refused
