"""Recall at k against a plain computation, ties, chance, and the report."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from models import with_tokenizer
from PIL import Image

from dinotxt_jax import UserError
from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig
from dinotxt_jax.evaluation.jobs import PartialWork
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.evaluation.retrieval import (
    RetrievalSet,
    chance_recalls,
    most_similar_captions,
    recalls,
)
from dinotxt_jax.evaluation.tasks import run_task
from dinotxt_jax.inference import Model


def features(rng: np.random.Generator, rows: int) -> np.ndarray:
    values = rng.normal(size=(rows, 8)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def plain_recalls(images: np.ndarray, texts: np.ndarray, owners: np.ndarray) -> dict[str, float]:
    """Computes recall by sorting the full similarity matrix."""
    similarity = images @ texts.T
    by_image = owners[np.argsort(-similarity, axis=1)]
    by_text = np.argsort(-similarity, axis=0).T
    rows = np.arange(len(images))[:, None]
    result = {}
    for k in (1, 5, 10):
        result[f"image_to_text_r{k}"] = 100 * (by_image[:, :k] == rows).any(1).mean()
        result[f"text_to_image_r{k}"] = 100 * (by_text[:, :k] == owners[:, None]).any(1).mean()
    return result


@pytest.mark.parametrize("block", [7, 1024])
def test_recalls_equal_those_from_the_sorted_matrix(block: int) -> None:
    rng = np.random.default_rng(0)
    images = features(rng, 40)
    owners = np.repeat(np.arange(40), rng.integers(1, 6, 40))
    texts = images[owners] + 0.6 * features(rng, len(owners))
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    actual = recalls(images, texts, owners, block)
    expected = plain_recalls(images, texts, owners)
    assert 5 < expected["image_to_text_r1"] < 95
    for key, value in expected.items():
        assert actual[key] == pytest.approx(value), key
    assert actual["mean_recall"] == pytest.approx(np.mean(list(expected.values())))


def test_constant_features_score_nothing() -> None:
    same = np.ones((20, 4), np.float32) / 2
    assert set(recalls(same, same, np.arange(20)).values()) == {0.0}


def test_chance_equals_the_score_for_random_features() -> None:
    rng = np.random.default_rng(1)
    owners = np.repeat(np.arange(50), 5)
    runs = [recalls(features(rng, 50), features(rng, 250), owners) for _ in range(60)]
    chance = chance_recalls(owners)
    assert chance["text_to_image_r1"] == pytest.approx(2.0)
    for key, value in chance.items():
        scores = [run[key] for run in runs]
        margin = 4 * np.std(scores) / np.sqrt(len(scores))
        assert np.mean(scores) == pytest.approx(value, abs=margin), key


@pytest.fixture(scope="module")
def model(tiny_dinotxt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a model directory with a tokenizer."""
    captions = [f"a {size} {color} circle" for size in ("small", "large") for color in ("red", "")]
    folder = tmp_path_factory.mktemp("run") / "run/model"
    return with_tokenizer(tiny_dinotxt, folder, captions)


def scenes(**changes: object) -> EvaluationConfig:
    settings: dict = {"split": "test", "num_scenes": 13, "image_size": 56, "augmentation": "squash"}
    data = DataConfig(**(settings | changes))
    return EvaluationConfig(tasks={"scenes": TaskConfig(data=data)}, batch_size=8)


def test_the_report_states_data_and_protocol(model: Path, tmp_path: Path) -> None:
    written = evaluate(str(model), scenes(), tmp_path / "report")
    names = ["report.html", "report.md", "results.json", "scenes.png"]
    assert sorted(path.name for path in written) == names
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == names
    result = json.loads((tmp_path / "report/results.json").read_text())["scenes"]
    assert (result["protocol"]["images"], result["protocol"]["captions"]) == (13, 65)
    assert result["task"]["data"]["image_size"] == 56
    assert len(result["backbone_fingerprint"]) == 64
    report = (tmp_path / "report/report.md").read_text()
    assert f"| scenes | chance | {result['chance']['image_to_text_r1']:.1f} |" in report
    assert "resolution 56, preparation squash, decoder exact, images 13, captions 65" in report
    assert "![scenes](scenes.png)" in report
    assert Image.open(tmp_path / "report/scenes.png").width == 1656
    title = f"# Evaluation of {model.parts[-3]}/run/model on scenes (scenes, split test)\n"
    assert report.startswith(title)
    assert "Data: scenes, split test." in report


def test_a_sheet_shows_the_true_caption_and_its_rank_when_not_retrieved() -> None:
    # Similarities to the first image: 0.9, 0.8, 0.8, 0.6, and 0.6 and 0.5 of the matching captions.
    cosines = np.array([0.9, 0.8, 0.8, 0.6, 0.6, 0.5])
    texts = np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)
    owners = np.array([1, 1, 2, 2, 0, 0])
    names = [f"text {number}" for number in range(6)]
    embedded = RetrievalSet(np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), texts, owners, names)
    captions, missed = most_similar_captions(embedded, 0, 3)
    assert captions == [("text 0", 0.9, False), ("text 1", 0.8, False), ("text 2", 0.8, False)]
    assert missed == ("text 4", 0.6, 5)  # the tie counts against the model
    captions, missed = most_similar_captions(embedded, 0, 6)
    assert [belongs for _, _, belongs in captions] == [False] * 4 + [True] * 2
    assert missed is None


def test_features_that_are_no_numbers_score_nothing() -> None:
    rng = np.random.default_rng(0)
    good, bad = features(rng, 12), np.full((12, 8), np.nan, np.float32)
    for images, texts in ((bad, good), (good, bad), (bad, bad)):
        assert set(recalls(images, texts, np.arange(12)).values()) == {0.0}


def test_finished_tasks_stay_when_another_is_changed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = scenes().tasks["scenes"]
    both = EvaluationConfig(tasks={"a": task, "b": task}, batch_size=8)
    evaluate(str(model), both, tmp_path)
    smaller = dataclasses.replace(task, max_examples=4)
    ran = []
    monkeypatch.setattr(
        "dinotxt_jax.evaluation.report.run_task", lambda job: ran.append(job.name) or run_task(job)
    )
    evaluate(str(model), EvaluationConfig(tasks={"a": smaller, "b": task}, batch_size=8), tmp_path)
    assert ran == ["a"]
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: r["protocol"]["images"] for name, r in results.items()} == {"a": 4, "b": 13}
    evaluate(str(model), EvaluationConfig(tasks={"c": smaller}, batch_size=8), tmp_path)
    assert list(json.loads((tmp_path / "results.json").read_text())) == ["a", "b", "c"]
    assert "| b |" not in (tmp_path / "report.md").read_text()
    threads = dataclasses.replace(smaller.data, threads=1)
    evaluate(
        str(model),
        EvaluationConfig(tasks={"c": dataclasses.replace(smaller, data=threads)}, batch_size=8),
        tmp_path,
    )
    assert ran == ["a", "c"]  # threads change no result


@pytest.mark.parametrize("content", ["[]", '{"scenes": null}', "{"])
def test_a_file_that_is_no_results_is_not_overwritten(
    content: str, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(UserError, match="results.json .*; remove it, or choose another --output"):
        evaluate(str(model), scenes(), tmp_path)
    assert (tmp_path / "results.json").read_text() == content


def test_a_limit_takes_examples_spread_over_the_set(model: Path, tmp_path: Path) -> None:
    tasks = {"scenes": TaskConfig(data=scenes().tasks["scenes"].data, max_examples=5)}
    evaluate(str(model), EvaluationConfig(tasks=tasks, batch_size=8), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text())["scenes"]["protocol"]["images"] == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (EvaluationConfig(), "config.tasks is empty"),
        (
            EvaluationConfig(tasks={"a": TaskConfig(kind="sums")}),
            "config.tasks.a.kind is 'sums', expected",
        ),
        (EvaluationConfig(tasks={"a": TaskConfig()}, batch_size=3), "batch_size=3 does not divide"),
        (
            EvaluationConfig(tasks={"a/b": TaskConfig()}, batch_size=8),
            "a task called 'a/b', ",
        ),
        (EvaluationConfig(tasks={"a": TaskConfig(max_examples=-2)}, batch_size=8), "max_examples "),
        (
            scenes(augmentation="random_resized_crop"),
            "config.tasks.scenes.data.augmentation is ",
        ),
        (
            scenes(source="jsonl", path="no.jsonl"),
            "no.jsonl, .*; correct config.tasks.scenes.data.path",
        ),
    ],
)
def test_a_failed_evaluation_writes_nothing(
    config: EvaluationConfig, message: str, model: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(str(model), config, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_images_that_are_all_missing_are_noticed_before_the_model_is_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinotxt_jax.evaluation.report.load", None)
    index = tmp_path / "captions.jsonl"
    index.write_text('{"image": "a.png", "caption": "x"}\n')
    config = scenes(source="jsonl", path=str(index), split="")
    message = f"in the folder {tmp_path} .*; set config.tasks.scenes.data.image_root"
    with pytest.raises(UserError, match=message):
        evaluate(str(model), config, tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_a_finished_task_needs_no_images(model: Path, tmp_path: Path) -> None:
    index, image = tmp_path / "captions.jsonl", tmp_path / "a.png"
    index.write_text('{"image": "a.png", "caption": "x"}\n')
    Image.new("RGB", (60, 60)).save(image)
    config = scenes(source="jsonl", path=str(index), split="")
    evaluate(str(model), config, tmp_path / "report")
    image.unlink()
    evaluate(str(model), config, tmp_path / "report")
    with pytest.raises(UserError, match="config.tasks.scenes.data.image_root"):
        evaluate(str(model), config, tmp_path / "other")


def test_interrupted_work_resumes_with_equal_results(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate(str(model), scenes(), tmp_path / "whole")
    monkeypatch.setattr("dinotxt_jax.evaluation.report.PartialWork", EagerWork)
    embed = Model.embed_batches

    def until_the_power_goes(self: Model, batches: Iterable, size: int) -> Iterator[np.ndarray]:
        yield from itertools.islice(embed(self, batches, size), 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "embed_batches", until_the_power_goes)
    with pytest.raises(KeyboardInterrupt):
        evaluate(str(model), scenes(), tmp_path / "cut")
    visited = []

    def counted(self: Model, batches: Iterable, size: int) -> Iterator[np.ndarray]:
        for features in embed(self, batches, size):
            visited.append(len(features))
            yield features

    monkeypatch.setattr(Model, "embed_batches", counted)
    evaluate(str(model), scenes(), tmp_path / "cut")
    assert visited == [5]  # 8 out of 13 were done
    whole, cut = ((tmp_path / f"{d}/results.json").read_text() for d in ("whole", "cut"))
    assert whole == cut
    assert not list((tmp_path / "cut").glob(".*"))


class EagerWork(PartialWork):
    """A work store that writes every time."""

    def __init__(self, file: Path, origin: dict):
        super().__init__(file, origin, interval=0)
