"""The only check for settings: types, ranges and choices, then settings that exclude each other.

All rules are declared with the settings (`config.ranges`; a `conflicts` method for rules that
involve several settings). Only rules that depend on data, the mesh or the backbone are checked
elsewhere.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dinotxt_jax.config.checking import typed_value
from dinotxt_jax.config.ranges import ValueRule, declared_settings, mistake
from dinotxt_jax.errors import UserError


def check(config: Any, where: str = "config", needs: Sequence[str] = ()) -> None:
    """Checks all settings of a dataclass, before anything is read, written or compiled.

    Args:
        config: the settings.
        where: root key in the user's command, such as "config" or "eval".
        needs: settings that the command requires.

    Raises:
        UserError: states the key, the value, the accepted values, and how to correct the setting.
    """
    for sentence in mistakes(config, where):
        raise UserError(sentence)
    cls: type = type(config)
    meanings = {setting.name: setting.meaning for setting in declared_settings(cls)}
    for name in needs:
        if not getattr(config, name):
            key = f"{where}.{name}"
            raise UserError(f"{key} is empty, expected the {meanings[name]}; set {key}.")


def mistakes(config: Any, key: str) -> Iterator[str]:
    """Yields a sentence per mistake; combinations are checked only if every setting is valid."""
    right = True
    cls: type = type(config)
    for setting in declared_settings(cls):
        value = getattr(config, setting.name)
        for sentence in _mistakes_of(value, setting.type, setting.rule, f"{key}.{setting.name}"):
            right = False
            yield sentence
    if right:
        yield from getattr(config, "conflicts", _none)(key)


def _none(_: str) -> Iterator[str]:
    return iter(())


def _mistakes_of(value: Any, hint: Any, rule: ValueRule | None, key: str) -> Iterator[str]:
    """Yields a sentence for each mistake in the value of one setting, or in one tuple item."""
    if value is None and type(None) in typing.get_args(hint):
        return
    if not dataclasses.is_dataclass(value):
        try:
            value = typed_value(value, hint, key)
        except UserError as error:
            yield str(error)
            return
    if dataclasses.is_dataclass(value):
        yield from mistakes(value, key)
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if dataclasses.is_dataclass(item):
                yield from mistakes(item, f"{key}.{name}")
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _mistakes_of(item, type(item), rule, f"{key}[{index}]")
    elif rule is not None and not rule.accepts(value):
        yield mistake(key, value, rule)
