"""From `ConfigDict` or JSON to dataclasses: the one place where a key is checked."""

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
    """Any of these dataclasses as a locked `ConfigDict`: setting a key it lacks raises."""
    return ml_collections.ConfigDict(dataclasses.asdict(config)).lock()


DataclassT = TypeVar("DataclassT")


def from_dict(
    cls: type[DataclassT], values: Mapping[str, Any], where: str = "config"
) -> DataclassT:
    """A dataclass from a (nested) mapping, every key and type checked.

    Args:
        cls: the dataclass; fields that `values` lacks keep their defaults.
        values: a dict, `ConfigDict` or parsed JSON.
        where: what the mapping is called in errors.

    Raises:
        UserError: an unknown key, a missing one without default, or a value of the wrong type.
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
    """The error for a key that a group of settings lacks, with the key that was meant."""
    names = [setting.name for setting in declared_settings(cls)]
    # Settings of the groups within this one, by the last part of their keys.
    below = {path.rpartition(".")[2]: path for path in reversed(keys_of(cls))}
    meant = below.get(name) or closest(name, names) or below.get(closest(name, below) or "")
    advice = f"did you mean {where}.{meant}?" if meant else f"choose among {', '.join(names)}."
    return UserError(f"{where}.{name} is not a setting; {advice}")


def is_group(hint: Any) -> bool:
    """Whether a type is a dataclass of settings."""
    return dataclasses.is_dataclass(hint)


def keys_of(cls: type) -> list[str]:
    """The dotted keys of all settings of a group and of the groups within it."""
    keys: list[str] = []
    for setting in declared_settings(cls):
        inner = keys_of(setting.type) if is_group(setting.type) else []
        keys += [f"{setting.name}.{key}" for key in inner] or [setting.name]
    return keys


def typed_value(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that a field is annotated with; `where` is its key in errors."""
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
    """A type as a person calls it."""
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
    """A dataclass as {dotted key: value}, for comparing two runs."""
    flat: dict[str, Any] = {}
    items = config.items() if isinstance(config, Mapping) else dataclasses.asdict(config).items()
    for key, value in items:
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}.{key}")
        else:
            flat[f"{prefix}.{key}"] = value
    return flat
