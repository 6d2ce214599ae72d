"""Conversion from `ConfigDict` or JSON to dataclasses: the only place where keys are checked."""

from __future__ import annotations

import dataclasses
import numbers
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from dinotxt_jax.config.ranges import declared_settings
from dinotxt_jax.errors import UserError, closest


def to_config_dict(config: Any) -> ml_collections.ConfigDict:
    """Converts a settings dataclass to a locked `ConfigDict`, which rejects unknown keys."""
    return ml_collections.ConfigDict(dataclasses.asdict(config)).lock()


DataclassT = TypeVar("DataclassT")


def from_dict(
    cls: type[DataclassT], values: Mapping[str, Any], where: str = "config"
) -> DataclassT:
    """Builds a dataclass from a (nested) mapping and checks every key and type.

    Args:
        cls: the dataclass; fields missing from `values` keep the default.
        values: a dict, `ConfigDict` or parsed JSON.
        where: the mapping name in error messages.

    Raises:
        UserError: a key is unknown, a key without default is missing, or a value has the wrong
            type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown_key(cls, where, str(key))
    converted = {
        key: typed_value(value, hints[key], f"{where}.{key}") for key, value in values.items()
    }
    missing = [
        name
        for name, field in fields.items()
        if name not in values
        and field.default is dataclasses.MISSING
        and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise UserError(f"{where} lacks {', '.join(missing)}; add what is missing.")
    return cls(**converted)


def unknown_key(cls: type, where: str, name: str) -> UserError:
    """Returns the error for an unknown key in a settings group, with the most likely key."""
    names = [setting.name for setting in declared_settings(cls)]
    # Settings in nested groups, indexed by the last key component.
    below = {path.rpartition(".")[2]: path for path in reversed(keys_of(cls))}
    suggestion = below.get(name) or closest(name, names) or below.get(closest(name, below) or "")
    advice = (
        f"did you mean {where}.{suggestion}?" if suggestion else f"choose among {', '.join(names)}."
    )
    return UserError(f"{where}.{name} is not a setting; {advice}")


def is_group(hint: Any) -> bool:
    """Returns whether a type is a settings dataclass."""
    return dataclasses.is_dataclass(hint)


def keys_of(cls: type) -> list[str]:
    """Returns the dotted keys of all settings in a group, including nested groups."""
    keys: list[str] = []
    for setting in declared_settings(cls):
        inner = keys_of(setting.type) if is_group(setting.type) else []
        keys += [f"{setting.name}.{key}" for key in inner] or [setting.name]
    return keys


def typed_value(value: Any, hint: Any, where: str) -> Any:
    """Converts `value` to the annotated field type; `where` is the key in error messages."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        if isinstance(value, Mapping):
            return from_dict(hint, value, where)  # type: ignore[arg-type]
        if isinstance(value, hint):  # type: ignore[arg-type]
            return value
        raise UserError(
            f"{where} is {value!r}, expected a group of settings; set one of its keys, such as "
            f"{where}.{declared_settings(hint)[0].name}."  # type: ignore[arg-type]
        )
    if origin is dict and isinstance(value, Mapping):
        return {
            key: typed_value(item, arguments[1], f"{where}.{key}") for key, item in value.items()
        }
    if origin is tuple and isinstance(value, (list, tuple)):
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        kinds = [arguments[0]] * len(value) if variadic else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                typed_value(item, kind, f"{where}[{i}]")
                for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
            )
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return typed_value(value, next(a for a in arguments if a is not type(None)), where)
    if not isinstance(value, bool):
        if hint is int and isinstance(value, numbers.Integral):
            return int(value)
        if hint is float and isinstance(value, numbers.Real):
            return _as_float(value, where)
    if hint is str and isinstance(value, str) and "\0" in value:
        raise UserError(f"{where} is {value!r}, expected text without a NUL character; remove it.")
    if hint in (bool, str) and isinstance(value, hint):
        return value
    raise UserError(f"{where} is {value!r}, expected {type_name(hint)}; correct it.")


def _as_float(value: Any, where: str) -> float:
    try:
        return float(value)
    except OverflowError as error:
        raise UserError(
            f"{where} is {value!r:.40}, expected a number that a float can hold; correct it."
        ) from error


_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
}


def type_name(hint: Any) -> str:
    """Returns a human-readable type name."""
    if hint in _NAMES:
        return _NAMES[hint]
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        kind = {int: "whole numbers", float: "numbers"}.get(arguments[0], "values")
        if arguments[-1] is Ellipsis:
            return f"{kind} in parentheses"
        return f"{len(arguments)} {kind} in parentheses"
    if typing.get_origin(hint) is dict:
        return "groups of settings by name"
    return getattr(hint, "__name__", str(hint))


def flatten(config: Any, prefix: str = "config") -> dict[str, Any]:
    """Flattens a dataclass to {dotted key: value}, for comparing two runs."""
    flat: dict[str, Any] = {}
    items = config.items() if isinstance(config, Mapping) else dataclasses.asdict(config).items()
    for key, value in items:
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}.{key}")
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
