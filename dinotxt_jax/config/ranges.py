"""Setting declarations: type, accepted values and meaning, in one place.

    steps: Annotated[int, Range(1, 2**31 - 1), "number of optimizer steps"] = 50_000

The settings check (`config.check`), the suggestions for mistyped values and docs/configuration.md
are all derived from these declarations. For a tuple, the range applies to every item.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import typing
from collections.abc import Collection
from typing import Any, Protocol

from dinotxt_jax.errors import closest


class ValueRule(Protocol):
    """A rule for the values that a setting may have."""

    def accepts(self, value: Any) -> bool:
        """Returns whether the setting may have this value, which already has the setting type."""

    def advice(self, value: Any) -> str:
        """Returns the last part of the error message: how to correct a rejected value."""

    @property
    def expected(self) -> str:
        """The accepted values, as shown in an error message."""

    def __str__(self) -> str:
        """Returns the accepted values, as shown in a table."""


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`; nan and infinity are never accepted.

    Attributes:
        low, high: the smallest and the largest number.
        open_low: whether `low` itself is excluded.
        special: a number outside the range with a special meaning, such as -1.
    """

    low: float
    high: float
    open_low: bool = False
    special: int | None = None

    def accepts(self, value: float) -> bool:
        if self.special is not None and value == self.special:
            return True
        if not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and value <= self.high

    def advice(self, value: float) -> str:
        return "set it to a number in this range"

    @property
    def expected(self) -> str:
        numbers = f"a number {'' if self.open_low else 'from '}{self._numbers()}"
        return numbers if self.special is None else f"{self.special}, or {numbers}"

    def _numbers(self) -> str:
        low, high = _number(self.low), _number(self.high)
        return f"above {low} and at most {high}" if self.open_low else f"{low} to {high}"

    def __str__(self) -> str:
        numbers = self._numbers()
        return numbers if self.special is None else f"{self.special}, or {numbers}"


def _number(value: float) -> str:
    """Formats a number for reading: powers of two and ten stay readable."""
    if isinstance(value, int) and value > 2**20:
        exponent = value.bit_length()
        if value == 2**exponent - 1:
            return f"2^{exponent} - 1"
        if value & (value - 1) == 0:
            return f"2^{exponent - 1}"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One name from a fixed collection.

    Attributes:
        names: the choices, or a mapping whose keys are the choices.
        optional: whether empty text, meaning no choice, is accepted too.
    """

    names: Collection[str]
    optional: bool = False

    def accepts(self, value: str) -> bool:
        return value in self.names or (self.optional and value == "")

    def advice(self, value: str) -> str:
        suggestion = closest(value, self.names)
        return f"did you mean {suggestion!r}?" if suggestion else "set it to one of these"

    @property
    def expected(self) -> str:
        return str(self)

    def __str__(self) -> str:
        names = [*self.names, *(['""'] if self.optional else [])]
        return " or ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


@dataclasses.dataclass(frozen=True)
class Form:
    """Text that matches a pattern, or empty text.

    Attributes:
        pattern: a regular expression that the whole text matches.
        form: human-readable description of the pattern.
        example: a value that matches.
    """

    pattern: str
    form: str
    example: str

    def accepts(self, value: str) -> bool:
        return not value or re.fullmatch(self.pattern, value, re.ASCII) is not None

    def advice(self, value: str) -> str:
        return f"set it to a value such as {self.example}"

    @property
    def expected(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return f'{self.form} or ""'


def mistake(key: str, value: Any, rule: ValueRule) -> str:
    """Returns the error sentence for a value that a rule does not accept."""
    advice = rule.advice(value)
    end = "" if advice.endswith("?") else "."
    return f"{key} is {value!r:.60}, expected {rule.expected}; {advice}{end}"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of a settings dataclass.

    Attributes:
        name: field name.
        type: type of the field, without the declarations below.
        rule: the accepted values; None accepts every value with this type.
        meaning: the effect of the setting, as a phrase that begins in lower case.
        default: default value, or `dataclasses.MISSING` if the setting is required.
    """

    name: str
    type: Any
    rule: ValueRule | None
    meaning: str
    default: Any


@functools.cache
def declared_settings(cls: type) -> tuple[Setting, ...]:
    """Returns the fields of a dataclass in order, with the declarations."""
    hints = typing.get_type_hints(cls, include_extras=True)
    declared = []
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        annotated = typing.get_origin(hint) is typing.Annotated
        extras = hint.__metadata__ if annotated else ()
        rules = [extra for extra in extras if not isinstance(extra, str)]
        meanings = [extra for extra in extras if isinstance(extra, str)]
        default = (
            field.default
            if field.default_factory is dataclasses.MISSING
            else field.default_factory()
        )
        declared.append(
            Setting(
                field.name,
                hint.__origin__ if annotated else hint,
                rules[0] if rules else None,
                meanings[0] if meanings else "",
                default,
            )
        )
    return tuple(declared)
