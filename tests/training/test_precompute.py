"""The frozen-feature cache: resumable, checked, and equal to running the backbone."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from small_caches import config, open_cache
from small_sets import png, prepare_tfds, write_index
from tolerances import assert_same

import dinotxt_jax as dt
from dinotxt_jax import UserError
from dinotxt_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    OptimizerConfig,
    PrecisionConfig,
    TaskConfig,
    TextTrainingConfig,
    TokenizerConfig,
)
from dinotxt_jax.data import feature_cache
from dinotxt_jax.data.feature_cache import CachedExample, cache_description
from dinotxt_jax.data.order import Draw
from dinotxt_jax.data.pipeline import ImageTextExample
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import normalize
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.training import loop
from dinotxt_jax.training import precompute as writer
from dinotxt_jax.training.precompute import precompute


def direct_tokens(run: Config, view: int, index: int) -> np.ndarray:
    """Runs the backbone on the image that epoch `view` draws from an example."""
    example = ImageTextExample(open_source(run.data), run.data, lambda _: np.zeros(0, np.int32))
    pixels = example(Draw(view, index, 0, run.seed))["image"]
    backbone = dt.load_backbone(run.backbone)
    preprocessing = backbone.description.preprocessing
    out = backbone(normalize(pixels[None], preprocessing.mean, preprocessing.std))
    return np.concatenate([out.class_token[:, None], out.register_tokens, out.patch_tokens], 1)[0]


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "SHARD", 8)


@pytest.mark.usefixtures("small_shards")
def test_cached_tokens_equal_the_backbones_output(tiny_backbone: Path, tmp_path: Path) -> None:
    run = config(tiny_backbone, tmp_path / "features")
    precompute(run)
    cache = open_cache(run)
    assert len(cache) == 20
    for view, index in ((0, 0), (0, 19), (1, 7), (1, 8)):
        assert_same(cache.tokens(view, index), direct_tokens(run, view, index))
    assert np.abs(cache.tokens(0, 3) - cache.tokens(1, 3)).max() > 0.01


def test_a_last_smaller_batch_is_not_compiled_anew(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "SHARD", 16)
    traces: list[Any] = []
    monkeypatch.setattr(
        writer, "normalize", lambda images, *how: traces.append(images) or normalize(images, *how)
    )
    run = config(tiny_backbone, tmp_path / "features", feature_views=1)
    precompute(run)  # one shard of 16 examples and one of 4
    assert [images.shape for images in traces] == [(16, 56, 56, 3)]
    assert_same(open_cache(run).tokens(0, 19), direct_tokens(run, 0, 19))


def test_the_devices_split_the_backbone_as_far_as_they_can(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, kernels = writer.load_vision_transformer, []

    def noted(*arguments: Any) -> Any:
        backbone, description = load(*arguments)
        kernels.append(backbone.blocks.mlp.fc1.kernel[...])
        return backbone, description

    monkeypatch.setattr(writer, "load_vision_transformer", noted)
    run = config(tiny_backbone, tmp_path / "features", mesh=MeshConfig(fsdp=12))
    precompute(run)
    (kernel,) = kernels
    assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 4}
    assert_same(open_cache(run).tokens(1, 7), direct_tokens(run, 1, 7))


@pytest.mark.usefixtures("small_shards")
def test_interrupted_encoding_resumes_at_the_missing_shards(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = config(tiny_backbone, tmp_path / "features")
    original, written = writer._write, []

    def failing(path: Path, array: np.ndarray) -> None:
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(path)
        original(path, array)

    monkeypatch.setattr(writer, "_write", failing)
    with pytest.raises(KeyboardInterrupt):
        precompute(run)
    with pytest.raises(UserError, match=r"lacks 4 of 6 shards: the encoding was interrupted"):
        open_cache(run)
    kept = {path: path.stat().st_mtime_ns for path in written}
    monkeypatch.setattr(writer, "_write", original)
    precompute(run)
    assert {path: path.stat().st_mtime_ns for path in written[:4]} == dict(list(kept.items())[:4])
    assert_same(open_cache(run).tokens(1, 19), direct_tokens(run, 1, 19))


def test_bfloat16_tokens_come_back_as_bfloat16(tiny_backbone: Path, tmp_path: Path) -> None:
    run = config(
        tiny_backbone, tmp_path / "f", precision=PrecisionConfig(frozen="bfloat16"), feature_views=1
    )
    precompute(run)
    tokens = open_cache(run).tokens(0, 0)
    assert tokens.dtype == ml_dtypes.bfloat16
    # bfloat16 has eight bits: about 1 % after three blocks.
    np.testing.assert_allclose(
        tokens.astype(np.float32), direct_tokens(run, 0, 0), rtol=0.1, atol=0.1
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, r"holds tokens for other settings or data: seed 0 \(this run: 1\)"),
        ({"feature_views": 1}, r"views 2 \(this run: 1\)"),
        ({"data": DataConfig(num_scenes=20, image_size=70)}, r"image_size 56 \(this run: 70\)"),
        (
            {"precision": PrecisionConfig(frozen="float32", frozen_products="int8")},
            r"products 'none' \(this run: 'int8'\)",
        ),
        ({"data": DataConfig(num_scenes=21, image_size=56)}, r"examples 20 \(this run: 21\), capt"),
    ],
)
def test_a_cache_of_something_else_is_refused(
    change: dict, message: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, tmp_path / "features")
    precompute(run)
    other = dataclasses.replace(run, **change)
    with pytest.raises(UserError, match=message):
        open_cache(other)
    with pytest.raises(UserError, match=message):
        precompute(other)


def test_a_cache_older_than_a_setting_is_good_for_the_default(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, tmp_path / "features")
    precompute(run)
    file = tmp_path / "features" / "features.json"
    description = json.loads(file.read_text())
    del description["data"]["only"], description["data"]["crop_scale"], description["products"]
    file.write_text(json.dumps(description))
    assert len(open_cache(run)) == 20
    changed = dataclasses.replace(run, data=dataclasses.replace(run.data, crop_scale=(0.5, 1.0)))
    with pytest.raises(UserError, match=r"crop_scale \[0.08, 1.0\] \(this run: \[0.5, 1.0\]\)"):
        open_cache(changed)


def test_a_cache_older_than_the_fast_decoder_holds_exact_views(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    run = config(tiny_backbone, tmp_path / "features")
    precompute(run)
    file = tmp_path / "features" / "features.json"
    description = json.loads(file.read_text())
    assert description["data"].pop("decoder") == "fast"
    file.write_text(json.dumps(description))
    with pytest.raises(UserError, match=r"decoder 'exact' \(this run: 'fast'\)"):
        open_cache(run)
    exact = dataclasses.replace(run, data=dataclasses.replace(run.data, decoder="exact"))
    assert len(open_cache(exact)) == 20


def test_the_decoder_of_fixed_views_does_not_matter(tiny_backbone: Path, tmp_path: Path) -> None:
    fixed = DataConfig(num_scenes=20, image_size=56, augmentation="squash", threads=2)
    run = config(tiny_backbone, tmp_path / "features", data=fixed, feature_views=1)
    precompute(run)
    exact = dataclasses.replace(run, data=dataclasses.replace(fixed, decoder="exact"))
    assert len(open_cache(exact)) == 20
    official = dataclasses.replace(run, data=dataclasses.replace(fixed, decoder="official"))
    with pytest.raises(UserError, match=r"decoder 'exact' \(this run: 'official'\)"):
        open_cache(official)


def test_the_seed_matters_only_where_crops_are_random(tiny_backbone: Path, tmp_path: Path) -> None:
    fixed = DataConfig(num_scenes=20, image_size=56, augmentation="squash", threads=2)
    run = config(tiny_backbone, tmp_path / "features", data=fixed, feature_views=1)
    precompute(run)
    assert len(open_cache(dataclasses.replace(run, seed=1))) == 20


def test_tasks_that_need_windows_are_not_cached(tiny_backbone: Path, tmp_path: Path) -> None:
    tasks = {"pixels": TaskConfig(kind="segmentation")}
    run = config(tiny_backbone, tmp_path / "f", evaluation=EvaluationConfig(tasks=tasks))
    precompute(run)
    assert not (tmp_path / "f" / "tasks").exists()


def test_a_folder_must_be_named(tiny_backbone: Path) -> None:
    with pytest.raises(UserError, match="config.features is empty"):
        precompute(Config(backbone=str(tiny_backbone)))


def test_tasks_with_class_labels_are_cached_from_every_source(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    """TFDS gives captions or labels; for classification it gives labels."""
    import tensorflow_datasets as tfds

    kinds = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=["cat", "dog"]),
    }
    values = ({"image": io.BytesIO(png(60 * i)), "label": i % 2} for i in range(4))
    labelled = DataConfig(
        source="tfds",
        path=prepare_tfds(tmp_path / "tfds", "pets", kinds, values),
        name="pets",
        split="train",
        image_size=56,
        augmentation="squash",
        threads=2,
    )
    task = TaskConfig(kind="classification", data=labelled, templates="a {}")
    run = config(
        tiny_backbone,
        tmp_path / "features",
        steps=1,
        batch_size=8,
        tokenizer=TokenizerConfig(kind="bpe", vocabulary_size=300, context_length=64),
        text=TextTrainingConfig(width=32, depth=1, num_heads=2),
        optimizer=OptimizerConfig(warmup_steps=0),
        evaluation=EvaluationConfig(tasks={"pets": task}, batch_size=8, every=1),
    )
    precompute(run)
    cache = loop._Run(run, tmp_path / "run").evaluations.caches["pets"]
    assert cache is not None
    assert (len(cache), list(cache.skipped[0])) == (4, [0, 0, 0, 0])


def with_captions(folder: Path, images: Path, count: int = 3) -> DataConfig:
    """Writes captions for images in the folder `images`, all in the split "train"."""
    names = [f"{number}.png" for number in range(count)]
    images.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (images / name).write_bytes(png(number))
    lines = [{"image": name, "caption": "x", "split": "train"} for name in names]
    path = write_index(folder, *lines)
    return DataConfig(
        source="jsonl",
        path=str(path),
        image_root=str(images),
        split="train",
        image_size=56,
        augmentation="squash",
        threads=2,
    )


KEY = "config.evaluation.tasks.held_out"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": "nowhere.jsonl"}, f"no file nowhere.jsonl, .*; correct {KEY}.data.path"),
        (
            {"split": "val"},
            f"in the split 'val', its examples name train; correct {KEY}.data.split",
        ),
        (
            {"image_root": "."},
            f"none of 3 image paths .* {KEY}.data.image_root",
        ),
        ({"image_size": 60}, f"{KEY}.data.image_size is 60, expected"),
        ({"source": "lmdb"}, f"{KEY}.data.source"),
    ],
)
def test_the_data_of_every_task_is_checked_before_the_first_image_is_encoded(
    changes: dict, message: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    data = with_captions(tmp_path, tmp_path / "images")
    task = TaskConfig(data=dataclasses.replace(data, **changes))
    evaluation = EvaluationConfig(tasks={"held_out": task})
    run = config(tiny_backbone, tmp_path / "features", data=data, evaluation=evaluation)
    with pytest.raises(UserError, match=message):
        precompute(run)
    assert not (tmp_path / "features").exists()


def test_every_cache_is_compared_before_the_first_image_is_encoded(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    data = with_captions(tmp_path, tmp_path / "images")
    evaluation = EvaluationConfig(tasks={"held_out": TaskConfig(data=data)})
    run = config(tiny_backbone, tmp_path / "features", data=data, evaluation=evaluation)
    folder = tmp_path / "features/tasks/held_out"
    folder.mkdir(parents=True)
    source, fingerprint = open_source(data), read_description(tiny_backbone).fingerprint
    other = cache_description(dataclasses.replace(run, seed=1), data, source, 2, fingerprint)
    for text, message in (
        (
            json.dumps(other),
            r"held_out holds tokens for other settings or data: views 2 \(this run: 1\)",
        ),
        ("", "held_out/features.json is empty, .*; remove .*held_out and run python -m"),
        ("{", r"held_out/features.json is not JSON .*; remove .*held_out and run python -m"),
        (
            "[]",
            "held_out/features.json does not describe a feature cache, .*; remove .*held_out",
        ),
    ):
        (folder / "features.json").write_text(text)
        with pytest.raises(UserError, match=message):
            precompute(run)
        assert [file.name for file in (tmp_path / "features").iterdir()] == ["tasks"]


def test_a_bad_image_of_a_task_is_named_and_no_limit_can_be_raised(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    data = with_captions(tmp_path, tmp_path / "images")
    (tmp_path / "held").mkdir()
    held_out = with_captions(tmp_path / "held", tmp_path / "held/images")
    (tmp_path / "held/images/1.png").write_bytes(b"no image")
    evaluation = EvaluationConfig(tasks={"held_out": TaskConfig(data=held_out)})
    run = config(tiny_backbone, tmp_path / "features", data=data, evaluation=evaluation)
    with pytest.raises(UserError, match=r"example 1 cannot be evaluated \(1.png .*remove it\."):
        precompute(run)


def test_a_complete_cache_needs_no_images(tiny_backbone: Path, tmp_path: Path) -> None:
    data = with_captions(tmp_path, tmp_path / "images")
    evaluation = EvaluationConfig(tasks={"held_out": TaskConfig(data=data)})
    run = config(tiny_backbone, tmp_path / "features", data=data, evaluation=evaluation)
    precompute(run)
    for file in (tmp_path / "images").iterdir():
        file.unlink()
    precompute(run)
    (tmp_path / "features/tasks/held_out/v000-s00000.npy").unlink()
    with pytest.raises(UserError, match=f"set {KEY}.data.image_root"):
        precompute(run)


def test_a_cache_has_the_substitutes_that_training_on_images_uses(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    lines = []
    for number in range(12):
        file = tmp_path / f"{number}.png"
        pixels = np.random.default_rng(number).integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(pixels).save(file)
        lines.append(json.dumps({"image": file.name, "captions": [f"noise {number}"]}))
    for number in (3, 4):
        (tmp_path / f"{number}.png").write_bytes(b"broken")
    (tmp_path / "index.jsonl").write_text("\n".join(lines))
    data = DataConfig(
        source="jsonl", path=str(tmp_path / "index.jsonl"), image_size=56, max_bad_fraction=0.5
    )
    run = config(tiny_backbone, tmp_path / "features", data=data)
    precompute(run)
    source = open_source(data)
    cached = CachedExample(open_cache(run), source, data, lambda text: np.array([int(text[6:])]))
    direct = ImageTextExample(source, data, lambda text: np.array([int(text[6:])]))
    for epoch in (0, 1):
        for index in range(12):
            draw = Draw(epoch, index, 0, run.seed)
            for name in ("index", "tokens", "skipped"):
                np.testing.assert_array_equal(cached(draw)[name], direct(draw)[name])
            assert int(cached(draw)["skipped"]) == (index in (3, 4))
