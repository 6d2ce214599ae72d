"""Command-line overrides (`--config.KEY=VALUE`), and printing a config in the same form."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from dinotxt_jax.config.checking import type_name, typed_value, unknown_key
from dinotxt_jax.config.ranges import declared_settings
from dinotxt_jax.errors import UserError, closest

DataclassT = TypeVar("DataclassT")

_TRUTHS = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}


def override(config: DataclassT, key: str, text: str | None, where: str = "config") -> DataclassT:
    """Returns the settings with one setting changed.

    Args:
        config: the settings.
        key: dotted names, with [INDEX] for a tuple item: "data.crop_scale[0]".
        text: the value as typed; None if the flag was given without a value, which sets a boolean
            setting to True.
        where: root key in error messages.

    Raises:
        UserError: the setting does not exist, or cannot have this value.
    """
    changed: DataclassT = _changed(config, type(config), key, text, where)
    return changed


def _changed(value: Any, hint: Any, rest: str, text: str | None, where: str) -> Any:
    """Returns `value` with one setting changed; `rest` is the key relative to `value`."""
    if not rest:
        return _parsed(text, hint, where)
    if dataclasses.is_dataclass(value):
        name, rest = _first_name(rest)
        cls: type = type(value)
        setting = next((s for s in declared_settings(cls) if s.name == name), None)
        if setting is None:
            raise unknown_key(cls, where, name)
        inner = getattr(value, name)
        changed = _changed(inner, setting.type, rest, text, f"{where}.{name}")
        return dataclasses.replace(value, **{name: changed})  # type: ignore[type-var]
    if isinstance(value, Mapping):
        name, rest = _entry_name(value, rest, where)
        inner = typing.get_args(hint)[1]
        return {**value, name: _changed(value[name], inner, rest, text, f"{where}.{name}")}
    item = re.fullmatch(r"\[(\d+)\]", rest)
    if isinstance(value, tuple) and item:
        index, kinds = int(item[1]), typing.get_args(hint)
        if index >= len(value):
            raise UserError(
                f"{where}{rest} does not exist, since {where} has {len(value)} items; set "
                f"{where} as a whole."
            )
        kind = kinds[0] if kinds[-1] is Ellipsis else kinds[index]
        parsed = _parsed(text, kind, f"{where}{rest}")
        return (*value[:index], parsed, *value[index + 1 :])
    raise UserError(
        f"{where}{rest if rest.startswith('[') else '.' + rest} is not a setting, since {where} is "
        f"{type_name(hint)}; set {where} itself."
    )


def _first_name(rest: str) -> tuple[str, str]:
    """Splits a dotted key into the first name and the remaining names (or index)."""
    name, after = re.fullmatch(r"([^.\[]*)(.*)", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    return name, after[1:] if after.startswith(".") else after


def _entry_name(entries: Mapping[str, Any], rest: str, where: str) -> tuple[str, str]:
    """Splits a key after the first name, for user-named entries, whose names may contain dots."""
    for name in sorted(entries, key=len, reverse=True):
        if rest == name or rest.startswith(f"{name}."):
            return name, rest[len(name) + 1 :]
    name = rest.partition(".")[0]
    suggestion = closest(name, entries)
    if suggestion:
        advice = f"did you mean {where}.{suggestion}?"
    elif entries:
        advice = f"choose among {', '.join(entries)}."
    else:
        advice = "add it in the config file."
    raise UserError(f"{where}.{name} does not exist; {advice}")


def _parsed(text: str | None, hint: Any, where: str) -> Any:
    """Converts the text that the user typed to the setting type."""
    if text is None:
        if hint is bool:
            return True
        raise UserError(f"{where} has no value, expected {type_name(hint)}; add =VALUE.")
    value: Any = text
    if hint is bool:
        value = _TRUTHS.get(text.lower(), text)
    elif hint in (int, float):
        with contextlib.suppress(ValueError):  # `typed_value` reports the expected type
            value = hint(text)
    elif typing.get_origin(hint) is tuple:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            value = ast.literal_eval(text)
        if isinstance(value, (int, float)) and typing.get_args(hint)[-1] is Ellipsis:
            value = (value,)
    return typed_value(value, hint, where)


def as_lines(config: Any, where: str = "config", default: Any = None) -> Iterator[str]:
    """Yields `KEY=VALUE` for every setting, as accepted on the command line.

    If a value differs from the default, the line also shows the default.

    Args:
        config: the settings.
        where: root key.
        default: settings to compare with (None: the dataclass defaults).
    """
    cls: type = type(config)
    default = cls() if default is None else default
    for setting in declared_settings(cls):
        key, value = f"{where}.{setting.name}", getattr(config, setting.name)
        usual = getattr(default, setting.name)
        if dataclasses.is_dataclass(value):
            yield from as_lines(value, key, usual)
        elif isinstance(value, Mapping):
            for name, item in value.items():
                yield from as_lines(item, f"{key}.{name}")
        else:
            note = "" if value == usual else f"  # default: {usual}"
            yield f"{key}={value}{note}"
