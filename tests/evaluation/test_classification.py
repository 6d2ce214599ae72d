"""Zero-shot classification: metrics against plain computations, prompts, and the report."""

from __future__ import annotations

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from models import with_tokenizer
from PIL import Image
from tolerances import assert_same

from dinotxt_jax import UserError, inference, sharding
from dinotxt_jax.config import DataConfig, EvaluationConfig, TaskConfig
from dinotxt_jax.data.texts import filled, read_list, read_templates
from dinotxt_jax.evaluation.classification import accuracies, average_precisions
from dinotxt_jax.evaluation.report import evaluate
from dinotxt_jax.inference.prompts import class_features


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    values = rng.normal(size=shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.parametrize("block", [7, 1024])
def test_accuracies_equal_those_from_sorting_all_scores(block: int) -> None:
    rng = np.random.default_rng(0)
    texts, labels = unit(rng, 12, 8), rng.integers(0, 11, 60)  # class 11 has no image
    images = texts[labels] + 1.2 * unit(rng, 60, 8)
    order = np.argsort(-(images @ texts.T), axis=1)
    top1 = order[:, 0] == labels
    result, by_class = accuracies(images, texts, labels, block)
    assert 20 < result["top1"] < 95
    assert result["top1"] == pytest.approx(100 * top1.mean())
    assert result["top5"] == pytest.approx(100 * (order[:, :5] == labels[:, None]).any(1).mean())
    per_class = [top1[labels == c].mean() for c in range(11)]
    assert result["mean_per_class"] == pytest.approx(100 * np.mean(per_class))
    np.testing.assert_allclose(by_class[:11], 100 * np.asarray(per_class))
    assert np.isnan(by_class[11])


def test_features_that_are_no_numbers_score_nothing() -> None:
    bad = np.full((4, 8), np.nan, np.float32)
    labels = np.array([0, 1, 2, 2])
    for images, texts in ((bad, np.eye(3, 8)), (np.eye(4, 8), bad[:3])):
        figures, _ = accuracies(images.astype(np.float32), texts.astype(np.float32), labels)
        assert figures["top1"] == figures["mean_per_class"] == 0.0


def test_of_equal_classes_the_first_one_wins() -> None:
    texts = np.eye(3, 4, dtype=np.float32)[[0, 0, 1]]  # classes 0 and 1 share a name
    images = texts[[0, 1, 2]]
    assert accuracies(images, texts, np.array([0, 1, 2]))[0]["top1"] == pytest.approx(200 / 3)


def test_average_precision_is_the_area_of_hits() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.9], [0.7, 0.5], [0.1, 0.2]])
    # Class 0 is right at ranks 1 and 3: (1 + 2/3) / 2. Class 1 at ranks 1 and 2: 1.
    labels = [(0,), (1,), (0, 1), (0,)]
    expected = [(1 + 2 / 3 + 3 / 4) / 3, 1]
    np.testing.assert_allclose(average_precisions(scores, labels), 100 * np.asarray(expected))


def images_in(folder: Path, count: int = 2) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Writes three classes of two images each, one folder deeper than the class folder."""
    for name in ("great_dane", "tabby"):
        images_in(tmp_path / "tree" / name)
    images_in(tmp_path / "tree" / "zebra" / "deeper")
    (tmp_path / "tree" / "tabby" / "notes.txt").write_text("no image")
    return tmp_path / "tree"


def test_lists_that_come_with_the_project_are_whole() -> None:
    names = read_list("imagenet1k", "x")
    assert (len(names), len(set(names)), names[1]) == (1000, 998, "goldfish")
    wnids = read_list("imagenet1k_wnids", "x")
    assert (len(set(wnids)), wnids[1], list(wnids)) == (1000, "n01443537", sorted(wnids))
    assert len(set(read_templates("openai_80", "x"))) == 80
    assert set(read_templates("openai_7", "x")) <= set(read_templates("openai_80", "x"))


def test_class_names_may_hold_anything() -> None:
    for name in ("potter's wheel", 'a "quoted" {} thing', "two\nlines", "{0}"):
        assert filled("a photo of a {}.", name) == f"a photo of a {name}."


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing", "is neither a file"), ("{} and {}", "expected one {}"), ("", "is neither a file")],
)
def test_templates_that_cannot_be_used_are_named(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_templates(name, "templates")


@pytest.fixture(scope="module")
def model_directory(tiny_dinotxt: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    captions = [f"a photo of a {c} {n}" for c in ("red", "blue") for n in ("cat", "dog", "zebra")]
    return with_tokenizer(tiny_dinotxt, tmp_path_factory.mktemp("classifier") / "model", captions)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINOTXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_features_of_classes_are_means_of_normalised_prompts(
    model_directory: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = inference.load(model_directory)
    names, templates = ["cat", "dog", "cat"], ["a photo of a {}", "a red {}"]
    result = class_features(model, names, templates, 4)
    for row, name in zip(result, names, strict=True):
        raw = np.asarray(
            model.encode_text(model.tokenizer([f"a photo of a {name}", f"a red {name}"]))
        )
        mean = (raw / np.linalg.norm(raw, axis=1, keepdims=True)).mean(0)
        assert_same(row, mean / np.linalg.norm(mean))
        half = raw[:, 64:]
        patch = (half / np.linalg.norm(half, axis=1, keepdims=True)).mean(0)
    patches = class_features(model, names, templates, 4, patch_features=True)
    assert_same(patches[-1], patch / np.linalg.norm(patch))
    assert len(list((cache / "text_features").glob("*.npy"))) == 1  # both from one
    monkeypatch.setattr(inference.Model, "embed_texts", None)
    np.testing.assert_array_equal(class_features(model, names, templates, 4), result)


def test_a_report_has_every_figure_beside_chance_and_is_not_made_twice(
    model_directory: Path, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataConfig(source="folder", path=str(tree), image_size=98, augmentation="squash")
    task = TaskConfig(kind="classification", data=data, templates="a photo of a {}")
    config = EvaluationConfig(tasks={"animals": task}, batch_size=8)
    evaluate(str(model_directory), config, tmp_path / "out")
    result = json.loads((tmp_path / "out" / "results.json").read_text())["animals"]
    assert set(result["metrics"]) == set(result["chance"]) == {"top1", "top5", "mean_per_class"}
    assert result["chance"]["top1"] == pytest.approx(100 / 3)
    assert result["metrics"]["top5"] == 100.0
    assert result["protocol"]["classes"] == 3
    assert len(result["protocol"]["dataset_fingerprint"]) == 64
    assert [name for name, _ in result["per_class"]] == ["great dane", "tabby", "zebra"]
    assert result["prompts"] == ["a photo of a {}"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| task | | top-1 | top-5 | mean per class |" in report
    assert "| animals | chance | 33.3 | 100.0 | 33.3 |" in report
    monkeypatch.setattr("dinotxt_jax.evaluation.report.run_task", None)
    evaluate(str(model_directory), config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "results.json").read_text())["animals"] == result


def test_the_number_of_devices_does_not_matter(
    model_directory: Path, tree: Path, tmp_path: Path
) -> None:
    image = {"image_size": 98, "augmentation": "squash", "threads": 2}
    folder = DataConfig(source="folder", path=str(tree), **image)
    scenes = DataConfig(source="scenes", split="test", num_scenes=11, **image)
    tasks = {
        "animals": TaskConfig(kind="classification", data=folder, templates="a photo of a {}"),
        "scenes": TaskConfig(kind="retrieval", data=scenes),
    }
    result = {}
    for devices in (1, 8):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        output = tmp_path / str(devices)
        evaluate(
            str(model_directory), EvaluationConfig(tasks=tasks, batch_size=8), output, mesh=mesh
        )
        results = json.loads((output / "results.json").read_text())
        result[devices] = {name: (r["metrics"], r["protocol"]) for name, r in results.items()}
    assert result[1] == result[8]


def test_changed_data_is_noticed(model_directory: Path, tree: Path, tmp_path: Path) -> None:
    data = DataConfig(source="folder", path=str(tree), image_size=98, augmentation="squash")
    task = TaskConfig(kind="classification", data=data, templates="a {}")
    config = EvaluationConfig(tasks={"animals": task}, batch_size=8)
    counts = []
    for name in ("tabby", "tabby", "walrus"):
        (tree / name).mkdir(exist_ok=True)
        Image.new("RGB", (30, 30), "red").save(tree / name / "new.png")
        evaluate(str(model_directory), config, tmp_path / "out")
        protocol = json.loads((tmp_path / "out/results.json").read_text())["animals"]["protocol"]
        counts.append((protocol["images"], protocol["classes"]))
    assert counts == [(7, 3), (7, 3), (8, 4)]


def test_a_task_without_labels_is_refused(model_directory: Path, tmp_path: Path) -> None:
    data = DataConfig(source="scenes", image_size=98, augmentation="squash")
    config = EvaluationConfig(
        tasks={"a": TaskConfig(kind="classification", data=data)}, batch_size=8
    )
    with pytest.raises(
        UserError,
        match="config.tasks.a.data.source is 'scenes', which has no class labels, expected parquet",
    ):
        evaluate(str(model_directory), config, tmp_path / "out")
