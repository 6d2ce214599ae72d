"""Run-time shape and dtype checks; conftest.py enables them for the packages that use arrays.

Only array annotations are checked. mypy checks other types, and many tests deliberately pass
values with a wrong type to test the error messages.
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Callable, Iterator
from typing import Any

import jaxtyping
from beartype import beartype


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Applies beartype to array annotations, as the type checker for jaxtyping's import hook."""
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
    """Lets a test pass invalid arrays, to check which error message refuses them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def evaluated(hint: Any, namespace: dict[str, Any]) -> Any:
    """Evaluates an annotation, a string for example under `from __future__ import annotations`."""
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, namespace)
    except (NameError, TypeError):  # imported only for mypy, or a local class: not an array
        return None


def names_array(hint: Any) -> bool:
    """Returns whether a shape appears anywhere in an annotation."""
    if isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray):
        return True
    if isinstance(hint, type(jaxtyping.PyTree)):
        return True
    return any(map(names_array, typing.get_args(hint)))
