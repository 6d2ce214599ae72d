"""Checks of shapes and dtypes at run time; conftest.py switches them on for both packages.

Only annotations of arrays are checked. mypy checks other types, and many tests pass values of a
wrong type on purpose, to see how they are refused.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The type checker for jaxtyping's import hook: beartype on the annotations of arrays."""
    namespace = getattr(function, "__globals__", {})
    arrays = {
        name: hint
        for name, hint in getattr(function, "__annotations__", {}).items()
        if names_array(evaluated(hint, namespace))
    }
    if not arrays:
        return function
    function.__annotations__ = arrays
    return beartype(function)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Lets a test pass arrays of a wrong kind, to see which sentence refuses them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def evaluated(hint: Any, namespace: dict[str, Any]) -> Any:
    """An annotation that may be a string, as with `from __future__ import annotations`."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, namespace)
    except (NameError, TypeError):  # imported for mypy alone, or a local class: no array
        return None


def names_array(hint: Any) -> bool:
    """Whether a shape appears anywhere in an annotation."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    if isinstance(hint, type(jaxtyping.PyTree)):
        return True
    return any(map(names_array, typing.get_args(hint)))
