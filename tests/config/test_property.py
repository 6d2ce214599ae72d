"""Checks every setting with valid and invalid values: one sentence that names it, or a finite step.

The values that hypothesis draws for a setting follow from the setting's declaration. Settings that
change the compiled step have only a few small values, since each value is compiled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_step import BASE, run_step

from dinotxt_jax import UserError
from dinotxt_jax.config import Config, from_dict, to_config_dict
from dinotxt_jax.config.checking import is_group
from dinotxt_jax.config.ranges import Choice, Form, Range, Setting, declared_settings

# Valid numbers that a tiny run can handle, for settings whose full range is too large.
SMALL: dict[str, list[Any]] = {
    "batch_size": [8, 4, 3],
    "accumulate_steps": [1, 2],
    "data.num_scenes": [1, 5, 100],
    "data.image_size": [32, 48, 33, 20],
    "data.resize": [1, 32, 100],
    "data.threads": [-1, 0, 1, 3],
    "data.prefetch": [0, 1, 100],
    "data.workers": [0],
    "tokenizer.vocabulary_size": [300, 260],
    "tokenizer.context_length": [8, 3],
    "head.num_blocks": [1, 0],
    "head.num_heads": [0, 3, 1, 1024],
    "head.drop_path": [0.3, 0.99, 0.0],
    "head.patch_tokens": [0, 1, 4, 1_000_000],
    "text.width": [8, 6, 1],
    "text.depth": [1, 2],
    "text.num_heads": [2, 1, 3, 1024],
    "loss.chunk": [2048, 3, 1, 2**31 - 1],
    "loss.gram_weight": [0.0, 1.0, 1e6],
    "loss.gram_patches": [0, 3, 1_000_000],
    "mesh.data": [-1, 3, 8],
    "mesh.fsdp": [1, 3, 2],
    "mesh.tensor": [1, 3, 2],
    "mesh.slices": [-1, 1, 2],
    "evaluation.batch_size": [8, 3, 2**24],
}
# Settings that change the compiled step; the first value for each is the value in `BASE`.
COMPILED = re.compile(
    r"(batch_size|accumulate_steps|remat|attention|data.image_size|tokenizer|head|text|loss|mesh"
    r"|precision)\b"
)
# Image sizes to which tasks resize.
SIZES = [1, 16, 32, 48, 100]


def all_settings(cls: type, prefix: str = "") -> dict[str, Setting]:
    """Returns all settings except groups, by key; task settings are keyed by task name."""
    settings: dict[str, Setting] = {}
    for setting in declared_settings(cls):
        key = f"{prefix}{setting.name}"
        if is_group(setting.type):
            settings |= all_settings(setting.type, f"{key}.")
        elif key == "evaluation.tasks":
            for name, task in BASE.evaluation.tasks.items():
                settings |= all_settings(type(task), f"{key}.{name}.")
        else:
            settings[key] = setting
    return settings


SETTINGS = all_settings(Config)
# The configs of steps that ran.
_RUN: set[str] = set()


def values(key: str, setting: Setting, variants: int = 99) -> st.SearchStrategy[Any]:
    """Draws values with a setting's type inside and outside the range, and values with other types.

    Args:
        key: the setting's key.
        setting: the setting's declaration.
        variants: number of values to use among those that change the compiled step.
    """
    odd = st.sampled_from([None, "", "lion", [], {}, float("nan"), 1.5, b"x", (1, 2, 3), -(10**30)])
    if setting.type is bool:
        return st.one_of(st.booleans(), odd)
    if isinstance(setting.rule, Choice):
        names = list(setting.rule.names)[: variants if COMPILED.match(key) else None]
        return st.one_of(st.sampled_from(names), st.text(max_size=5), odd)
    if isinstance(setting.rule, Form):
        return st.one_of(st.just(setting.rule.example), st.text("0123:x*v", max_size=6), odd)
    if isinstance(setting.rule, Range):
        numbers = numbers_of(key, setting, setting.rule, variants)
        if setting.type in (int, float):
            return st.one_of(numbers, odd)
        return st.one_of(st.tuples(numbers, numbers), st.tuples(numbers), odd)
    return st.one_of(st.text(max_size=5), odd)


def numbers_of(key: str, setting: Setting, rule: Range, variants: int) -> st.SearchStrategy[Any]:
    """Draws numbers within a range, at the ends, and just and far beyond the ends."""
    whole = setting.type in (int, tuple[int, ...])
    sizes = key.startswith("evaluation.tasks") and rule == Range(1, 16_384)
    small = SMALL.get(key.removeprefix("evaluation.tasks.scenes."), SIZES if sizes else None)
    if small:
        within: st.SearchStrategy[Any] = st.sampled_from(
            small[: variants if COMPILED.match(key) else None]
        )
    elif whole:
        within = st.integers(int(rule.low), int(rule.high))
    else:
        within = st.floats(rule.low, rule.high, exclude_min=rule.open_low)
    step = 1 if whole else 1e-3
    beyond: list[Any] = [rule.low - step, rule.high + max(step, rule.high * 1e-3), -5, 10**30]
    if whole:
        beyond = [int(number) for number in beyond]
    else:
        beyond += [float("nan"), float("inf"), -float("inf")]
    return st.one_of(within, st.sampled_from(beyond))


def changed(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the `BASE` settings as a nested dict, with some changed to any value."""
    whole: dict[str, Any] = to_config_dict(BASE).to_dict()
    for key, value in changes.items():
        *groups, name = key.split(".")
        group = whole
        for part in groups:
            group = group[part]
        group[name] = value
    return whole


def names_the_setting(message: str, key: str) -> bool:
    """Returns whether a message is one sentence about the setting or about an excluding setting."""
    group = key.rpartition(".")[0].split(".")[0]
    sentence = re.fullmatch(r"[^\n]+[.?]", message) is not None
    return sentence and (f"config.{key}" in message or (group in message and "config." in message))


def accepted(key: str, value: Any) -> bool:
    """Returns whether a setting's declaration alone accepts a value."""
    setting, rule = SETTINGS[key], SETTINGS[key].rule
    kinds = {int: int, float: (int, float), bool: bool, str: str}
    if setting.type in kinds:
        right = isinstance(value, kinds[setting.type])
        right &= isinstance(value, bool) == (setting.type is bool)
        if setting.type is str and right and "\0" in value:
            return False
        return right and (rule is None or rule.accepts(value))
    if rule is None:  # the sources of a mixture: without any, no mixture
        return isinstance(value, Mapping) and not value
    if not isinstance(value, list | tuple):
        return False
    kind = int if setting.type == tuple[int, ...] else (int, float)
    lengths = {2} if setting.type == tuple[float, float] else range(100)
    return len(value) in lengths and all(isinstance(v, kind) and rule.accepts(v) for v in value)


def refused_or_run(key: str, value: Any) -> None:
    """Asserts the property for one value of one setting."""
    message = refusal({key: value})
    if not accepted(key, value):
        assert message is not None, value
        assert message.startswith(f"config.{key}"), (value, message)
    if message is not None:
        assert names_the_setting(message, key), (value, message)


def refusal(changes: Mapping[str, Any]) -> str | None:
    """Returns the error message for these changes, or None if the step runs."""
    try:
        config = from_dict(Config, changed(changes))
        if repr(config) not in _RUN:  # most settings draw their default, which changes nothing
            run_step(config)
            _RUN.add(repr(config))
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("key", SETTINGS)
def test_a_value_is_refused_by_name_or_runs(key: str) -> None:
    """Values that lead to another compiled step are covered in the slow test below."""

    @settings(
        max_examples=3, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(values(key, SETTINGS[key], variants=1))
    def holds(value: Any) -> None:
        refused_or_run(key, value)

    holds()


@pytest.mark.slow
@pytest.mark.parametrize("key", SETTINGS)
def test_many_values_are_refused_by_name_or_run(key: str) -> None:
    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(values(key, SETTINGS[key]))
    def holds(value: Any) -> None:
        refused_or_run(key, value)

    holds()


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_several_changes_at_once_are_refused_or_run(data: st.DataObject) -> None:
    """Combinations: the message reports the first mistake found, whichever it is."""
    keys = data.draw(st.lists(st.sampled_from(list(SETTINGS)), min_size=2, max_size=4, unique=True))
    message = refusal({key: data.draw(values(key, SETTINGS[key])) for key in keys})
    assert message is None or re.fullmatch(r"[^\n]*config\.[^\n]+[.?]", message), message
