"""Segmentation tasks: scores from one confusion matrix, resumed work, and bad settings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import block_masks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_masks import CAPTIONS, KIND, SLIDE, TEMPLATE, job_of
from models import with_tokenizer
from PIL import Image

from dinotxt_jax import UserError, inference, sharding
from dinotxt_jax.config import DataConfig, SegmentationConfig, TaskConfig
from dinotxt_jax.data.sources import open_masks
from dinotxt_jax.evaluation.confusion import ConfusionMatrix, scores
from dinotxt_jax.evaluation.jobs import PartialWork
from dinotxt_jax.inference.dense import DenseScores, DenseTexts
from dinotxt_jax.inference.prompts import placed_texts
from dinotxt_jax.inference.segmentation import segment
from dinotxt_jax.models.presets import PRESETS


def dense_of(labels: np.ndarray, classes: int) -> DenseScores:
    """Returns scores that assign every pixel the given label."""
    texts = DenseTexts(np.eye(classes, dtype=np.float32), np.arange(classes, dtype=np.int32))
    return DenseScores(jnp.asarray(np.eye(classes, dtype=np.float32)[labels]), labels.shape, texts)


def test_scores_come_from_one_confusion_matrix() -> None:
    mask = np.array([[0, 0, 1, 255], [1, 1, 2, 255]])
    labels = np.array([[0, 1, 1, 0], [1, 1, 0, 3]])
    counted = ConfusionMatrix(4)
    counted.add(mask, dense_of(labels, 4))
    result = scores(counted.counts().astype(float))
    # Class 0: 1 of {2 true, 2 found}: 1/3; class 1: 3 of {3, 4}: 3/4; class 2: 0; 3 never occurs.
    assert result["mean_iou"] == pytest.approx(100 * (1 / 3 + 3 / 4 + 0) / 3)
    assert result["mean_accuracy"] == pytest.approx(100 * (1 / 2 + 1 + 0) / 3)
    assert result["pixel_accuracy"] == pytest.approx(100 * 4 / 6)


def test_counts_over_many_images_equal_a_plain_sum() -> None:
    rng = np.random.default_rng(0)
    counted, expected = ConfusionMatrix(3), np.zeros((3, 3), np.int64)
    for size in ((5, 9), (64, 65), (1, 1), (130, 20)):
        mask, labels = rng.integers(0, 3, size), rng.integers(0, 3, size)
        mask[rng.random(size) < 0.2] = 255
        counted.add(mask, dense_of(labels, 3))
        for true, actual in zip(mask.ravel(), labels.ravel(), strict=True):
            if true != 255:
                expected[true, actual] += 1
    np.testing.assert_array_equal(counted.counts(), expected)
    np.testing.assert_array_equal(counted.counts(), expected)  # asking changes nothing


@pytest.fixture(scope="module")
def directory(tiny_dinotxt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tokenizer(tiny_dinotxt, tmp_path_factory.mktemp("segmenter") / "model", CAPTIONS)


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskConfig:
    """Returns seven photos with blocks and masks for three classes."""
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    return block_masks.write(tmp_path, [75] * 7)


def test_a_result_states_protocol_and_class_scores(
    directory: Path, task: TaskConfig, tmp_path: Path
) -> None:
    model = inference.load(directory)
    result = KIND.run(job_of(model, task, 8))
    source = open_masks(task.data)
    expected = np.zeros((3, 3))
    texts = placed_texts(model, source.class_names, (TEMPLATE,))
    for index in range(7):
        image, mask = source.load(index)
        (dense,) = segment(model, [image], texts, SLIDE, 3)
        np.add.at(expected, (mask, dense.labels(*mask.shape)), 1)
    assert result.metrics["pixel_accuracy"] == pytest.approx(
        100 * np.trace(expected) / expected.sum(), abs=0.01
    )
    assert result.chance["pixel_accuracy"] == pytest.approx(100 / 3)
    assert result.protocol["protocol"] == "slide"
    assert result.protocol["resolution"] == "short side 60, window 46, stride 23"
    assert result.protocol["background"] == "none"
    assert [name for name, _ in result.per_class] == ["sky", "grass", "cow"]
    values = [value for _, value in result.per_class if value is not None]
    assert np.mean(values) == pytest.approx(result.metrics["mean_iou"])
    assert result.draw is not None
    result.draw(tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width > 300


@pytest.mark.parametrize("devices", [2, 8])
def test_the_number_of_devices_does_not_matter(
    devices: int, directory: Path, task: TaskConfig
) -> None:
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    one, many = (KIND.run(job_of(inference.load(directory, mesh=m), task, 8)) for m in (None, mesh))
    assert one.protocol == many.protocol
    for key, value in one.metrics.items():
        assert many.metrics[key] == pytest.approx(value, abs=0.02), key  # a pixel is 0.003


def test_interrupted_work_resumes_with_equal_results(
    directory: Path, task: TaskConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = inference.load(directory)
    whole = KIND.run(job_of(model, task, 8))
    monkeypatch.setattr("dinotxt_jax.evaluation.segmentation._AHEAD", 1)
    slow = dataclasses.replace(task, data=dataclasses.replace(task.data, threads=1))
    file = tmp_path / "work" / ".blocks.partial.npz"
    (tmp_path / "5.png").rename(tmp_path / "5.away")
    (tmp_path / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="5.png cannot be read"):
        KIND.run(job_of(model, slow, 1, partial=PartialWork(file, {"a": 1}, interval=0)))
    (tmp_path / "5.away").rename(tmp_path / "5.png")
    done = PartialWork(file, {"a": 1}).load()["images"].tolist()
    assert done == list(range(len(done)))
    assert 0 < len(done) <= 5
    (tmp_path / "0.png").write_bytes(b"no image")  # completed work is not read again
    rest = KIND.run(job_of(model, slow, 8, partial=PartialWork(file, {"a": 1})))
    assert rest.protocol == whole.protocol
    assert rest.metrics == pytest.approx(whole.metrics, abs=0.02)
    assert PartialWork(file, {"a": 2}).load() == {}


def test_a_background_needs_a_class_of_that_name(
    directory: Path, task: TaskConfig, tmp_path: Path
) -> None:
    model = inference.load(directory)
    floor = dataclasses.replace(SLIDE, background_score=0.35)
    with pytest.raises(UserError, match="but the data has no class background"):
        KIND.run(job_of(model, dataclasses.replace(task, segmentation=floor), 8))
    (tmp_path / "classes.txt").write_text("background\ngrass\ncow\n")
    (tmp_path / "words.txt").write_text("sky\n")
    by_words = dataclasses.replace(SLIDE, background_words=str(tmp_path / "words.txt"))
    everything = dataclasses.replace(SLIDE, background_score=2.0)
    shares = []
    for config in (SLIDE, by_words, everything):
        result = KIND.run(job_of(model, dataclasses.replace(task, segmentation=config), 8))
        shares.append((result.protocol["background"], dict(result.per_class)["background"]))
    assert [name.split(" ")[0] for name, _ in shares] == ["by", "words", "score"]
    masks = [np.asarray(Image.open(tmp_path / f"{i}_mask.png")) for i in range(7)]
    assert shares[2][1] == pytest.approx(100 * float(np.mean(np.stack(masks) == 0)))


def test_masks_without_any_class_are_refused_before_any_work(
    task: TaskConfig, tmp_path: Path
) -> None:
    section = "config.tasks.blocks"
    nothing = Image.new("L", (75, 60), 255)
    for number in range(6):
        nothing.save(tmp_path / f"{number}_mask.png")
    KIND.check_images(section, task, KIND.open_set(section, task))  # the seventh has classes
    nothing.save(tmp_path / "6_mask.png")
    message = (
        "the 7 masks of config.tasks.blocks.data have no class in any pixel .all are 255., "
        "expected class indices; correct config.tasks.blocks.data.path"
    )
    with pytest.raises(UserError, match=message):
        KIND.check_images(section, task, KIND.open_set(section, task))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": "{}{}"}, "expected one {}"),
        ({"segmentation": SegmentationConfig(background_words="x")}, "background_words is 'x'"),
    ],
)
def test_settings_that_make_no_sense_are_named(changes: dict, message: str) -> None:
    settings = {"kind": "segmentation", "data": DataConfig(source="csv")} | changes
    with pytest.raises(UserError, match=message):
        KIND.check("a", TaskConfig(**settings), PRESETS["dinov2_vits14"])
