"""From `ConfigDict` or JSON to dataclasses: the one place where a key is checked."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from dinotxt_jax.errors import UserError


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
            close = difflib.get_close_matches(key, fields, n=1)
            advice = (
                f"did you mean {where}.{close[0]}?" if close else f"known: {', '.join(fields)}."
            )
            raise UserError(f"{where}.{key} is not a setting; {advice}")
    converted = {
        key: _convert(value, hints[key], f"{where}.{key}") for key, value in values.items()
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


def _convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that a field is annotated with."""
    if hint is Any:
        return value
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is dict and isinstance(value, Mapping):
        return {key: _convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    if origin is tuple and isinstance(value, (list, tuple)):
        variadic = len(arguments) == 2 and arguments[1] is Ellipsis
        kinds = [arguments[0]] * len(value) if variadic else list(arguments)
        if len(kinds) == len(value):
            return tuple(
                _convert(item, kind, f"{where}[{i}]")
                for i, (item, kind) in enumerate(zip(value, kinds, strict=True))
            )
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return _convert(value, next(a for a in arguments if a is not type(None)), where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        isinstance(hint, type)
        and isinstance(value, hint)
        and not (hint is int and isinstance(value, bool))
    ):
        return value
    expected = getattr(hint, "__name__", str(hint))
    raise UserError(f"{where} is {value!r}, expected {expected}; correct its value.")


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
