"""Configs: every shipped config is valid, and every mistake gives one sentence."""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from dinotxt_jax import UserError
from dinotxt_jax.config import (
    Config,
    DataConfig,
    EvaluationConfig,
    IngestionConfig,
    TaskConfig,
    check,
    flatten,
    from_dict,
    to_config_dict,
)
from dinotxt_jax.data.sources import unread_settings

CONFIGS = Path(__file__).parents[2] / "configs"


def load_config(path: Path, *arguments: str) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.__doc__
    assert module.get_config.__doc__
    return module.get_config(*arguments)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_shipped_training_configs_are_valid(path: Path) -> None:
    config = from_dict(Config, load_config(path).to_dict())
    assert config.optimizer.warmup_steps < config.steps
    assert config.text.pack


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("eval/*.py")), ids=lambda path: path.stem)
def test_shipped_evaluation_configs_are_valid(path: Path) -> None:
    assert from_dict(EvaluationConfig, load_config(path).to_dict()).tasks


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("ingest/*.py")), ids=lambda path: path.stem)
def test_shipped_ingestion_configs_need_only_a_path(path: Path) -> None:
    config = from_dict(IngestionConfig, load_config(path).to_dict())
    check(dataclasses.replace(config, data=dataclasses.replace(config.data, path="x")))


@pytest.mark.parametrize(
    ("config", "argument", "tasks"),
    [
        ("imagenet", "1k", {"imagenet": "data/imagenet/val"}),
        ("imagenet", "v2", {"imagenet_v2": "data/imagenetv2-matched-frequency-format-val"}),
        ("imagenet", "a", {"imagenet_a": "data/imagenet-a"}),
        ("imagenet", "r", {"imagenet_r": "data/imagenet-r"}),
        ("imagenet", "sketch", {"imagenet_sketch": "data/sketch"}),
        (
            "flickr8k",
            "flickr8k+captions",
            dict.fromkeys(("flickr8k", "captions"), "data/flickr8k/captions.jsonl"),
        ),
        ("retrieval", "flickr30k", {"flickr30k": "data/flickr30k/dataset_flickr30k.json"}),
        (
            "retrieval",
            "coco_2017+coco_karpathy",
            {
                "coco_2017": "data/coco/annotations/captions_val2017.json",
                "coco_karpathy": "data/coco/dataset_coco.json",
            },
        ),
    ],
)
def test_an_argument_selects_the_evaluation_tasks(config: str, argument: str, tasks: dict) -> None:
    built = load_config(CONFIGS / "eval" / f"{config}.py", argument)
    result = from_dict(EvaluationConfig, built.to_dict()).tasks
    assert {name: task.data.path for name, task in result.items()} == tasks


def test_flickr8k_evaluates_retrieval_alone_because_its_data_may_be_exchanged() -> None:
    assert set(load_config(CONFIGS / "eval" / "flickr8k.py").tasks) == {"flickr8k"}


def test_all_retrieval_tasks_are_the_default() -> None:
    assert set(load_config(CONFIGS / "eval" / "retrieval.py").tasks) == {
        "flickr30k",
        "coco_karpathy",
        "coco_2017",
    }


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("imagenet", "variant 'b' is unknown; choose among 1k, v2, a, r, sketch"),
        ("flickr8k", "task 'b' is unknown; choose among flickr8k, captions"),
        ("retrieval", "task 'b' is unknown; choose among flickr30k, coco_karpathy, coco_2017"),
    ],
)
def test_an_argument_that_an_evaluation_does_not_know_is_named(config: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(CONFIGS / "eval" / f"{config}.py", "b")


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("eval/*.py")), ids=lambda path: path.stem)
def test_shipped_evaluations_set_only_what_their_sources_read(path: Path) -> None:
    for task in from_dict(EvaluationConfig, load_config(path).to_dict()).tasks.values():
        assert unread_settings(task.data) == []


@pytest.mark.parametrize("variant", ["1k", "v2", "a", "r", "sketch"])
def test_imagenet_is_read_from_tensorflow_datasets_on_request(variant: str) -> None:
    built = load_config(CONFIGS / "eval" / "imagenet.py", f"{variant}+tfds")
    (task,) = from_dict(EvaluationConfig, built.to_dict()).tasks.values()
    assert (task.data.source, task.data.path) == ("tfds", "")
    assert task.data.name
    assert unread_settings(task.data) == []
    check(from_dict(EvaluationConfig, built.to_dict()), needs=("tasks",))


def test_a_source_that_imagenet_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="source 'csv' is unknown; choose tfds"):
        load_config(CONFIGS / "eval" / "imagenet.py", "1k+csv")


@pytest.mark.parametrize("backbone", ["vits14", "vitb14", "vitl14", "vitg14"])
def test_the_released_recipe_has_the_released_numbers(backbone: str) -> None:
    config = from_dict(Config, load_config(CONFIGS / "dinotxt_dinov2_reg.py", backbone).to_dict())
    assert config.backbone == f"models/dinov2_{backbone}_reg"
    assert (config.steps, config.batch_size) == (50_000, 65_536)
    assert dataclasses.astuple(config.optimizer) == (7e-4, 0.9, 0.99, 1e-8, 1e-4, 2000, 0.0)
    assert (config.text.width, config.text.depth, config.head.drop_path) == (1280, 24, 0.3)


def test_a_backbone_that_the_recipe_does_not_know_is_named() -> None:
    with pytest.raises(ValueError, match="choose among vits14, vitb14, vitl14, vitg14"):
        load_config(CONFIGS / "dinotxt_dinov2_reg.py", "vith14")


def test_a_config_survives_the_way_through_a_config_dict() -> None:
    config = Config(
        steps=7,
        data=DataConfig(crop_scale=(0.4, 1.0)),
        evaluation=EvaluationConfig(tasks={"a": TaskConfig(max_examples=3)}),
    )
    assert from_dict(Config, to_config_dict(config).to_dict()) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batchsize": 3}, "config.batchsize is not a setting; did you mean config.batch_size"),
        ({"zzz": 3}, "config.zzz is not a setting; choose among seed, steps"),
        ({"data": {"path": 3}}, "config.data.path is 3, expected text"),
        ({"steps": True}, "config.steps is True, expected a whole number"),
        ({"steps": 1.5}, "config.steps is 1.5, expected a whole number"),
        ({"data": {"crop_scale": [0.1]}}, r"config.data.crop_scale is \[0.1\], expected 2 numbers"),
        (
            {"data": {"crop_scale": [0.1, "x"]}},
            r"config.data.crop_scale\[1\] is 'x', expected a number",
        ),
        ({"evaluation": {"tasks": {"a": {"kin": 1}}}}, "config.evaluation.tasks.a.kin is not"),
        ({"data": 3}, "config.data is 3, expected a group of settings; set one of its keys"),
    ],
)
def test_mistakes_name_the_key_and_the_expected_value(values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_dict(Config, values)


def test_whole_numbers_are_taken_for_fractions() -> None:
    assert from_dict(Config, {"optimizer": {"learning_rate": 1}}).optimizer.learning_rate == 1.0


def test_settings_without_a_default_are_required() -> None:
    @dataclasses.dataclass(frozen=True)
    class Strict:
        needed: int

    with pytest.raises(UserError, match="config lacks needed"):
        from_dict(Strict, {})


def test_flattening_names_every_setting() -> None:
    flat = flatten(Config())
    assert flat["config.data.image_size"] == 224
    assert flat["config.optimizer.beta2"] == 0.99
