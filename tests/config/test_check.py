"""The settings check: every mistake gives one sentence with the key and the remedy."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import pytest

from dinotxt_jax import UserError
from dinotxt_jax.config import (
    Config,
    CurationConfig,
    DataConfig,
    EvaluationConfig,
    TaskConfig,
    check,
)
from dinotxt_jax.config.architecture import (
    POSITION_INTERPOLATIONS,
    HeadConfig,
    TextConfig,
    VisionConfig,
)
from dinotxt_jax.config.checking import is_group
from dinotxt_jax.config.data import CLEANINGS, SMALLEST_VOCABULARY, TOKENIZER_KINDS
from dinotxt_jax.config.evaluation import (
    DENSE_FEATURE_NAMES,
    KIND_SETTINGS,
    PROTOCOL_SIDES,
    PUBLISHED_SETS,
)
from dinotxt_jax.config.overrides import override
from dinotxt_jax.config.ranges import Setting, declared_settings
from dinotxt_jax.config.sources import MASK_SETS, SOURCE_SETTINGS, MixtureConfig
from dinotxt_jax.config.training import ATTENTIONS

TASKS = EvaluationConfig(
    tasks={
        "flowers": TaskConfig(),
        "pixels": TaskConfig(kind="segmentation"),
    },
    every=10,
)
CONFIG = Config(backbone="models/b", evaluation=TASKS)
PIXELS = "evaluation.tasks.pixels.segmentation"


def refusal(*changes: str, config: Any = CONFIG, where: str = "config") -> str:
    """Returns the error message for settings changed as on a command line."""
    with pytest.raises(UserError) as raised:
        change_and_check(changes, config, where)
    message = str(raised.value)
    assert re.fullmatch(r"[^\n]*[.?]", message)
    return message


def change_and_check(changes: Sequence[str], config: Any, where: str) -> None:
    for change in changes:
        key, _, text = change.partition("=")
        config = override(config, key, text, where)
    check(config, where)


def says(message: str, parts: str) -> bool:
    """Returns whether a message begins with `parts`, where three dots match any text."""
    return re.match(".*".join(map(re.escape, parts.split("..."))), message) is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed=-1", "config.seed is -1, expected a number from 0 to 2^63 - 1; set it to a number"),
        ("seed=18446744073709551616", "config.seed is 18446744073709551616, expected a number"),
        ("steps=0", "config.steps is 0, expected a number from 1 to 2^31 - 1;"),
        ("batch_size=0", "config.batch_size is 0, expected a number from 1 to 2^24;"),
        ("accumulate_steps=0", "config.accumulate_steps is 0, expected a number from 1 to 65,536"),
        ("feature_views=0", "config.feature_views is 0, expected a number from 1"),
        ("log_every=0", "config.log_every is 0, expected a number from 1"),
        ("remat=some", "config.remat is 'some', expected none, full or dots; set it to one of"),
        ("attention=flash", "config.attention is 'flash', expected auto, xla, grouped, cudnn or s"),
        (
            "topology=v6e",
            "config.topology is 'v6e', expected KIND:AxB, ... such as v6e:16x",
        ),
        ("profile=5", "config.profile is '5', expected FIRST:LAST ... a value such as 3:5."),
        ("profile=0:3", "config.profile is '0:3', expected FIRST:LAST"),
        ("profile=a:b", "config.profile is 'a:b', expected FIRST:LAST"),
        ("profile=1:2:3", "config.profile is '1:2:3', expected FIRST:LAST"),
        ("profile=-1:2", "config.profile is '-1:2', expected FIRST:LAST"),
        ("profile=4:2", "config.profile is '4:2', expected ... not after LAST; set it to 2:4."),
        ("data.source=tdfs", "config.data.source is 'tdfs', expected ...; did you mean 'tfds'?"),
        ("data.source=jsonl", "config.data.path is empty, ... config.data.source=jsonl reads; set"),
        ("data.source=tfds", "config.data.name is empty, expected the name that"),
        ("data.source=masks", "config.data.name is empty"),
        ("data.split=val", "config.data.split is 'val', expected train or test; set it to one of"),
        ("data.num_scenes=0", "config.data.num_scenes is 0"),
        ("data.image_size=0", "config.data.image_size is 0, expected a number from 1 to 16,384;"),
        ("data.image_size=14", "config.data.image_size is 14, expected at least 32 for"),
        ("data.augmentation=mixup", "config.data.augmentation is 'mixup', expected random_resize"),
        ("data.crop_scale=(0, 0)", "config.data.crop_scale[0] is 0.0, expected a number above"),
        ("data.crop_scale=(1, 0.5)", "config.data.crop_scale is (1, 0.5), ... to (0.5, 1)."),
        ("data.crop_scale=(0.5, 2)", "config.data.crop_scale[1] is 2.0, ... and at most 1;"),
        ("data.crop_scale[0]=0", "config.data.crop_scale[0] is 0.0, expected a number above 0"),
        ("data.crop_ratio=(2, 0.5)", "config.data.crop_ratio is (2, 0.5), expected the smaller"),
        ("data.crop_ratio=(nan, 1)", "config.data.crop_ratio is '(nan, 1)', expected 2 num"),
        ("data.flip_probability=2", "config.data.flip_probability is 2.0, ... from 0 to 1;"),
        ("data.max_bad_fraction=nan", "config.data.max_bad_fraction is nan, ... from 0 to 1;"),
        ("data.max_bad_fraction=-1", "config.data.max_bad_fraction is -1.0"),
        ("data.threads=-2", "config.data.threads is -2, expected a number from -1 to 1,024;"),
        ("data.workers=-2", "config.data.workers is -2"),
        ("data.prefetch=-5", "config.data.prefetch is -5"),
        ("data.path=a\0b", "config.data.path is 'a\\x00b', expected text without a NUL"),
        ("tokenizer.kind=words", "config.tokenizer.kind is 'words', expected clip, bpe or sent"),
        ("tokenizer.context_length=0", "config.tokenizer.context_length is 0, ... from 3 to"),
        ("tokenizer.vocabulary_size=259", "config.tokenizer.vocabulary_size is 259, ... from 260"),
        ("head.num_blocks=-1", "config.head.num_blocks is -1"),
        ("head.num_heads=-1", "config.head.num_heads is -1"),
        ("head.pooling=sum", "config.head.pooling is 'sum', expected mean, max, gem or none;"),
        ("head.drop_path=1.0", "config.head.drop_path is 1.0, expected a number from 0 to 0.99;"),
        ("head.drop_path=-0.5", "config.head.drop_path is -0.5"),
        ("head.drop_path=1.5", "config.head.drop_path is 1.5"),
        ("head.layer_scale=inf", "config.head.layer_scale is inf, expected a number from 0 to 10"),
        ("head.patch_tokens=-3", "config.head.patch_tokens is -3"),
        ("text.depth=0", "config.text.depth is 0, expected a number from 1 to 1,000;"),
        ("text.width=0", "config.text.width is 0"),
        ("text.num_heads=0", "config.text.num_heads is 0"),
        ("text.num_heads=7", "config.text.num_heads is 7, ... config.text.width=1280; ... as 5."),
        ("text.trim=-1", "config.text.trim is -1"),
        ("optimizer.learning_rate=nan", "config.optimizer.learning_rate is nan, ... from 0 to 1;"),
        ("optimizer.learning_rate=inf", "config.optimizer.learning_rate is inf"),
        ("optimizer.learning_rate=-1", "config.optimizer.learning_rate is -1.0"),
        (
            "optimizer.beta1=1",
            "config.optimizer.beta1 is 1.0, ... from 0 to 0.99999;",
        ),
        ("optimizer.beta2=1.5", "config.optimizer.beta2 is 1.5"),
        ("optimizer.epsilon=0", "config.optimizer.epsilon is 0.0, ... from 1e-30 to 1;"),
        ("optimizer.weight_decay=-1", "config.optimizer.weight_decay is -1.0"),
        ("optimizer.warmup_steps=-1", "config.optimizer.warmup_steps is -1"),
        (
            "optimizer.warmup_steps=50000",
            "...warmup_steps is 50000, expected fewer than config.s",
        ),
        ("loss.kind=sigmod", "config.loss.kind is 'sigmod', ...; did you mean 'sigmoid'?"),
        ("loss.chunk=0", "config.loss.chunk is 0"),
        ("loss.max_logit_scale=0", "config.loss.max_logit_scale is 0.0, ... from 1 to 10,000;"),
        ("loss.max_logit_scale=-5", "config.loss.max_logit_scale is -5.0"),
        ("loss.max_logit_scale=0.5", "config.loss.max_logit_scale is 0.5"),
        ("loss.gram_weight=nan", "config.loss.gram_weight is nan"),
        ("loss.gram_patches=-1", "config.loss.gram_patches is -1"),
        (
            "precision.frozen=bf16",
            "config.precision.frozen is 'bf16', ... did you mean 'bfloat16'?",
        ),
        ("precision.compute=bf16", "config.precision.compute is 'bf16'"),
        ("precision.normalization=f32", "config.precision.normalization is 'f32', ... 'float32'?"),
        ("precision.parameters=half", "config.precision.parameters is 'half', ... one of these."),
        (
            "precision.frozen_products=int4",
            "...products is 'int4', ...; did you mean 'int8'?",
        ),
        ("mesh.data=0", "config.mesh.data is 0, expected -1, or a number from 1 to 1,048,576;"),
        ("mesh.fsdp=-1", "config.mesh.fsdp is -1, expected a number from 1"),
        ("mesh.slices=-2", "config.mesh.slices is -2, expected -1, or"),
        ("checkpoint.every=0", "config.checkpoint.every is 0"),
        ("checkpoint.keep=0", "config.checkpoint.keep is 0"),
        ("evaluation.batch_size=0", "config.evaluation.batch_size is 0"),
        ("evaluation.every=-1", "config.evaluation.every is -1"),
        ("evaluation.at=(0,)", "config.evaluation.at[0] is 0, expected a number from 1"),
        ("evaluation.best=mean", "config.evaluation.best is 'mean', expected flowers/image_to_tex"),
        ("evaluation.best=mean_recall", "...; did you mean 'flowers/mean_recall'?"),
    ],
)
def test_a_mistake_is_named(change: str, message: str) -> None:
    assert says(refusal(change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("kind=sums", "kind is 'sums', expected retrieval, classification, segmentation or text;"),
        ("max_examples=-2", "max_examples is -2, expected a number from 0"),
        ("published=imagenet", "published is 'imagenet', ...; did you mean 'imagenet1k'?"),
        (
            "kind=classification",
            "data.source is 'scenes', which has no class labels, expected parquet, hf_da",
        ),
        ("data.split=val", "data.split is 'val', expected train or test;"),
        (
            "data.augmentation=random_resized_crop",
            "data.augmentation is 'random_resized",
        ),
        ("data.resize=100", "data.resize is 100, expected at least ...data.image_size=224"),
        ("segmentation.protocol=jump", "segmentation.protocol is 'jump', expected slide, whole or"),
        ("segmentation.stride=0", "segmentation.stride is 0, expected a number from 1"),
        (
            "segmentation.stride=400",
            "segmentation.stride is 400, ...segmentation.window=384, so",
        ),
        ("segmentation.window=900", "segmentation.window is 900, ...segmentation.short_side=512"),
        ("segmentation.clusters=-1", "segmentation.clusters is -1"),
        ("segmentation.background_score=nan", "segmentation.background_score is nan"),
    ],
)
@pytest.mark.parametrize(
    ("config", "where", "tasks"),
    [
        (CONFIG, "config", "config.evaluation.tasks"),
        (TASKS, "config", "config.tasks"),
        (TASKS, "eval", "eval.tasks"),
    ],
)
def test_a_mistake_in_a_task_has_the_key_of_its_command(
    config: Any, where: str, tasks: str, change: str, message: str
) -> None:
    key = tasks.removeprefix(f"{where}.")
    sentence = refusal(f"{key}.flowers.{change}", config=config, where=where)
    assert says(sentence, f"{tasks}.flowers.{message}")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ("text.pack=True", "text.trim=8"),
            "config.text.trim is 8, expected 0 with con",
        ),
        (("data.augmentation=center_crop", "data.resize=200"), "config.data.resize is 200, expect"),
        (
            ("tokenizer.kind=sentencepiece",),
            "config.tokenizer.vocabulary is empty, expected a tokenizer.json or a .model for con",
        ),
        (
            ("tokenizer.cleaning=lower",),
            "config.tokenizer.cleaning is 'lower', expected clip for config.tokenizer.kind=clip;",
        ),
        (
            ("data.source=masks", "data.name=ade20k_150", "data.path=p"),
            "config.data.source is 'masks', which has no captions, expected scenes",
        ),
        (("data.source=masks", "data.name=ade", "data.path=p"), "...; did you mean 'ade20k_150'?"),
        (
            ("evaluation.best=flowers/mean_recall", "evaluation.every=0"),
            "config.evaluation.best is ... but none is made; set config.evaluation.every.",
        ),
        (
            ("evaluation.tasks.pixels.data.source=jsonl", "evaluation.tasks.pixels.data.path=p"),
            "config.evaluation.tasks.pixels.data.source is 'jsonl', which has no masks, expect",
        ),
        (("evaluation.tasks.pixels.data.source=csv",), "config.evaluation.tasks.pixels.data.path"),
        (
            ("evaluation.tasks.pixels.data.path=p", "evaluation.tasks.pixels.data.source=csv"),
            "config.evaluation.tasks.pixels.data.classes is empty",
        ),
        (
            (f"{PIXELS}.protocol=highres", f"{PIXELS}.scales=()"),
            "config.evaluation.tasks.pixels.segmentation.scales is empty, expected at least one",
        ),
        (
            (f"{PIXELS}.protocol=highres", f"{PIXELS}.scales=(300, 900)"),
            "config.evaluation.tasks.pixels.segmentation.window is 384, ...segmentation.scales=300",
        ),
    ],
)
def test_settings_that_exclude_each_other_are_named(changes: tuple[str], message: str) -> None:
    assert says(refusal(*changes), message)


def test_a_segmentation_task_needs_no_preparation_of_whole_images() -> None:
    check(override(CONFIG, "evaluation.tasks.pixels.data.resize", "100"))
    check(override(CONFIG, "evaluation.tasks.pixels.data.augmentation", "random_resized_crop"))


@pytest.mark.parametrize("name", ["", "a/b", ".hidden"])
def test_a_task_is_called_as_a_file_can_be(name: str) -> None:
    with pytest.raises(UserError, match=f"config.tasks has a task called '{name}', expected"):
        check(EvaluationConfig(tasks={name: TaskConfig()}))


def test_missing_required_settings_are_named() -> None:
    check(Config())
    check(EvaluationConfig())
    with pytest.raises(UserError, match="^config.backbone is empty, expected the model directory"):
        check(Config(), needs=("backbone",))
    with pytest.raises(UserError, match="^eval.tasks is empty, expected the evaluations by name"):
        check(EvaluationConfig(), "eval", needs=("tasks",))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Config(steps="many"), "config.steps is 'many', expected a whole number; correct it."),
        (Config(steps=True), "config.steps is True, expected a whole number"),
        (Config(steps=None), "config.steps is None, expected a whole number"),
        (Config(remat=3), "config.remat is 3, expected text"),
        (Config(data=DataConfig(crop_scale=0.5)), "crop_scale is 0.5, expected 2 numbers in"),
        (Config(data=None), "config.data is None, expected a group of settings"),
        (EvaluationConfig(at=7), "config.at is 7, expected whole numbers in parentheses"),
        (EvaluationConfig(tasks=[]), r"config.tasks is \[\], expected groups of settings by name"),
        (Config(data=DataConfig(max_bad_fraction=10**400)), "expected a number that a float can"),
    ],
)
def test_a_value_of_another_type_is_named_in_python_too(config: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(config)


def test_architectures_have_ranges() -> None:
    vision = VisionConfig(patch_size=14, dim=64, depth=2, num_heads=4, mlp_hidden_dim=256)
    check(vision, "vision")
    for change, message in (
        ("dim=-64", "vision.dim is -64"),
        ("num_heads=7", "vision.num_heads is 7, expected a divisor of vision.dim=64; ... as 4."),
        ("mlp=moe", "vision.mlp is 'moe', expected mlp or swiglu"),
        ("layer_norm_epsilon=nan", "vision.layer_norm_epsilon is nan"),
        ("rope_theta=0", "vision.rope_theta is 0.0, expected a number above 0 and at most 1e"),
    ):
        assert says(refusal(change, config=vision, where="vision"), message)
    changes = ("positions=rope", "num_heads=32")
    assert "heads of 2 channels" in refusal(*changes, config=vision, where="vision")


def all_settings(cls: type, prefix: str = "") -> list[tuple[str, Setting]]:
    """Returns every setting in a group and in nested groups, by key."""
    settings: list[tuple[str, Setting]] = []
    for setting in declared_settings(cls):
        key = f"{prefix}{setting.name}"
        if is_group(setting.type):
            settings += all_settings(setting.type, f"{key}.")
        settings.append((key, setting))
    return settings


@pytest.mark.parametrize(
    "cls", [Config, EvaluationConfig, TaskConfig, VisionConfig, HeadConfig, TextConfig]
)
def test_every_setting_states_its_meaning_and_every_number_its_range(cls: type) -> None:
    numbers = {int, float, tuple[int, ...], tuple[float, float]}
    for key, setting in all_settings(cls):
        assert setting.meaning, key
        assert not setting.meaning.endswith("."), key
        assert (setting.rule is not None) or setting.type not in numbers, key


def test_defaults_are_within_their_ranges() -> None:
    check(Config())
    check(EvaluationConfig(tasks={"a": TaskConfig()}))


def test_choices_equal_the_tables_of_the_rooms_above() -> None:
    from dinotxt_jax import tokenizers
    from dinotxt_jax.data import scenes
    from dinotxt_jax.data.mask_layouts import MASK_LAYOUTS
    from dinotxt_jax.data.sources import SOURCES
    from dinotxt_jax.evaluation.published import FIGURES
    from dinotxt_jax.evaluation.tasks import KINDS
    from dinotxt_jax.inference.protocols import PROTOCOLS
    from dinotxt_jax.models import blocks, dinotxt, positions
    from dinotxt_jax.models.attention import IMPLEMENTATIONS
    from dinotxt_jax.tokenizers.base import BYTE_TOKENS
    from dinotxt_jax.tokenizers.cleaning import CLEANING_RULES

    assert ("auto", *IMPLEMENTATIONS) == ATTENTIONS
    assert {name: kind.gives for name, kind in SOURCES.items()} == {
        name: source.gives for name, source in SOURCE_SETTINGS.items()
    }
    needs_path = {name for name, kind in SOURCES.items() if kind.needs_path}
    assert needs_path == {n for n, source in SOURCE_SETTINGS.items() if "path" in source.needs}
    assert tuple(MASK_LAYOUTS) == MASK_SETS
    assert tuple(FIGURES) == PUBLISHED_SETS
    assert tuple(PROTOCOLS) == tuple(PROTOCOL_SIDES)
    assert {name: (kind.metrics, kind.encodes_whole_images) for name, kind in KINDS.items()} == {
        name: (kind.metrics, kind.encodes_whole_images) for name, kind in KIND_SETTINGS.items()
    }
    assert SOURCE_SETTINGS["scenes"].smallest_image == scenes._SMALLEST_IMAGE
    assert len(BYTE_TOKENS) + 3 + 1 == SMALLEST_VOCABULARY
    assert ("antialias", *positions._SCALE_OFFSETS, "bilinear") == POSITION_INTERPOLATIONS
    assert ("auto", *dinotxt.DENSE_FEATURES) == DENSE_FEATURE_NAMES
    assert {kind.mixing for kind in dinotxt.DENSE_FEATURES.values()} == set(blocks.MIXINGS)
    assert tuple(tokenizers.TOKENIZERS) == TOKENIZER_KINDS
    assert tuple(CLEANING_RULES) == CLEANINGS


def test_the_results_of_retrieval_are_those_it_promises() -> None:
    import numpy as np

    from dinotxt_jax.evaluation.retrieval import RetrievalSet

    features = np.eye(2, dtype=np.float32)
    metrics = RetrievalSet(features, features, np.arange(2), ["a", "b"]).metrics()
    assert tuple(metrics) == KIND_SETTINGS["retrieval"].metrics


def test_presets_are_accepted() -> None:
    from dinotxt_jax.models.presets import PRESETS

    for name, vision in PRESETS.items():
        check(vision, name)


def test_a_numpy_number_is_a_number() -> None:
    import numpy as np

    check(dataclasses.replace(CONFIG, seed=np.int64(5), data=DataConfig(flip_probability=1)))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("mixture", DataConfig(mixture={"a": MixtureConfig(path="a.jsonl", source="jsonl")})),
        ("kept", DataConfig(source="jsonl", path="a.jsonl", kept="kept.npz")),
    ],
)
def test_a_pool_is_one_whole_source(name: str, data: DataConfig) -> None:
    with pytest.raises(UserError, match=f"config.data.{name} is set, expected its default"):
        check(CurationConfig(data=data))
