"""Settings changed on a command line."""

from __future__ import annotations

import pytest

from dinotxt_jax import UserError
from dinotxt_jax.config import Config, EvaluationConfig, TaskConfig, check
from dinotxt_jax.config.overrides import as_lines, override

CONFIG = Config(
    evaluation=EvaluationConfig(tasks={"coco": TaskConfig(), "coco.2017": TaskConfig()}, at=(3,))
)


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("steps", "12", lambda c: c.steps == 12),
        ("optimizer.learning_rate", "1e-3", lambda c: c.optimizer.learning_rate == 1e-3),
        ("optimizer.learning_rate", "1", lambda c: type(c.optimizer.learning_rate) is float),
        ("text.pack", "true", lambda c: c.text.pack is True),
        ("text.pack", "False", lambda c: c.text.pack is False),
        ("text.pack", None, lambda c: c.text.pack is True),
        ("data.path", "a=b, c", lambda c: c.data.path == "a=b, c"),
        ("data.split", "1", lambda c: c.data.split == "1"),
        ("data.crop_scale", "(0.5, 1)", lambda c: c.data.crop_scale == (0.5, 1.0)),
        ("data.crop_scale", "0.5, 1", lambda c: c.data.crop_scale == (0.5, 1.0)),
        ("data.crop_scale", "[0.5, 1]", lambda c: c.data.crop_scale == (0.5, 1.0)),
        ("data.crop_scale[0]", "0.5", lambda c: c.data.crop_scale == (0.5, 1.0)),
        ("evaluation.at", "(3, 5)", lambda c: c.evaluation.at == (3, 5)),
        ("evaluation.at", "7", lambda c: c.evaluation.at == (7,)),
        ("evaluation.at", "()", lambda c: c.evaluation.at == ()),
        ("evaluation.at[0]", "9", lambda c: c.evaluation.at == (9,)),
        (
            "evaluation.tasks.coco.data.split",
            "val",
            lambda c: c.evaluation.tasks["coco"].data.split == "val",
        ),
        (
            "evaluation.tasks.coco.2017.data.split",
            "val",
            lambda c: c.evaluation.tasks["coco.2017"].data.split == "val",
        ),
    ],
)
def test_a_setting_is_changed(key: str, text: str | None, expected) -> None:
    changed = override(CONFIG, key, text)
    assert expected(changed)
    assert changed != CONFIG or key == "text.pack"


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("optimizer.lr", "1", "config.optimizer.lr is not a setting; did you mean config.optimizer"
         ".learning_rate?"),
        ("optimizer.wd", "1", "config.optimizer.wd is not a setting; did you mean config.optimizer"
         ".weight_decay?"),
        ("optimizer.warmup", "1", "config.optimizer.warmup is not a setting; did you mean config."
         "optimizer.warmup_steps?"),
        ("lr", "1", "config.lr is not a setting; did you mean config.optimizer.learning_rate?"),
        ("width", "1", "config.width is not a setting; did you mean config.text.width?"),
        ("batchsize", "3", "config.batchsize is not a setting; did you mean config.batch_size?"),
        ("data.num-scenes", "3", "config.data.num-scenes is not a setting; did you mean config."
         "data.num_scenes?"),
        ("text.zzz", "3", "config.text.zzz is not a setting; choose among width, depth, num_heads, "
         "pack, trim."),
        ("optimizer", "lion", "config.optimizer is 'lion', expected a group of settings; set one of"
         " its keys, such as config.optimizer.learning_rate."),
        ("", "3", "config is '3', expected a group of settings; set one of its keys, such as "
         "config.seed."),
        (".", "3", "config. is not a setting; choose among seed, "),
        ("steps.x", "3", "config.steps.x is not a setting, since config.steps is a whole number; "
         "set config.steps itself."),
        ("steps[0]", "3", "config.steps[0] is not a setting, since config.steps is"),
        ("steps", "many", "config.steps is 'many', expected a whole number; correct it."),
        ("steps", "1.5", "config.steps is '1.5', expected a whole number; correct it."),
        ("steps", "9" * 5000, "config.steps is '999"),
        ("steps", None, "config.steps has no value, expected a whole number; add =VALUE."),
        ("text.pack", "maybe", "config.text.pack is 'maybe', expected True or False;"),
        ("optimizer.beta1", "high", "config.optimizer.beta1 is 'high', expected a number;"),
        ("data.crop_scale", "wide", "config.data.crop_scale is 'wide', expected 2 numbers"),
        ("data.crop_scale", "(0.5,)", "config.data.crop_scale is (0.5,), expected 2 numbers in"),
        ("data.crop_scale", "(0.5, 'a')", "config.data.crop_scale[1] is 'a', expected a number;"),
        ("data.crop_scale[0]", "x", "config.data.crop_scale[0] is 'x', expected a number;"),
        ("data.crop_scale[2]", "1", "config.data.crop_scale[2] does not exist, since config.data."
         "crop_scale has 2 items; set config.data.crop_scale as a whole."),
        ("data.crop_scale[-1]", "1", "config.data.crop_scale[-1] is not a setting, since"),
        ("data.crop_scale[0", "1", "config.data.crop_scale[0 is not a setting, since"),
        ("evaluation.tasks", "x", "config.evaluation.tasks is 'x', expected groups of settings by"),
        ("evaluation.tasks.coca.kind", "x", "config.evaluation.tasks.coca does not exist; did you "
         "mean config.evaluation.tasks.coco?"),
        ("evaluation.tasks.zzz.kind", "x", "config.evaluation.tasks.zzz does not exist; choose "
         "among coco, coco.2017."),
        ("evaluation.tasks.coco.2018.kind", "x", "config.evaluation.tasks.coco.2018 is not a set"),
    ],
)  # fmt: skip
def test_invalid_overrides_are_one_sentence(key: str, text: str | None, message: str) -> None:
    with pytest.raises(UserError) as raised:
        override(CONFIG, key, text)
    assert str(raised.value).startswith(message)
    assert "\n" not in str(raised.value)


def test_a_task_has_to_be_added_in_the_file() -> None:
    with pytest.raises(UserError, match="tasks.a does not exist; add it in the config file."):
        override(Config(), "evaluation.tasks.a.kind", "retrieval")


def test_the_lines_of_a_config_give_it_back() -> None:
    """`--print_config` prints the lines, and each line can be passed as a flag."""
    changed = override(override(CONFIG, "steps", "12"), "data.crop_scale[0]", "0.5")
    changed = override(changed, "evaluation.tasks.coco.max_examples", "5")
    again = CONFIG
    lines = list(as_lines(changed))
    for line in lines:
        key, _, text = line.partition("  # default")[0].partition("=")
        again = override(again, key.removeprefix("config."), text)
    assert again == changed
    check(override(again, "optimizer.warmup_steps", "1"))
    assert "config.steps=12  # default: 50000" in lines
    assert "config.seed=0" in lines
    assert "config.evaluation.tasks.coco.max_examples=5  # default: 0" in lines
