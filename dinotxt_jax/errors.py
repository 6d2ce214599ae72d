"""The one exception that a user is meant to read, and how a command ends on it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from typing import NoReturn


class UserError(Exception):
    """Input that cannot be used: one sentence with what was found, expected, and what to do.

    Commands print it without a traceback and exit with code 2. Everything else that is raised
    is a defect of this project and keeps its traceback.
    """


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises `UserError` unless the setting `name` is one of the choices."""
    if value not in choices:
        raise UserError(f"{name}={value!r} is unknown; choose among {', '.join(choices)}.")


def exit_with(error: UserError) -> NoReturn:
    """Prints the sentence on standard error and leaves with exit code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def run_or_exit(function: Callable[[], None]) -> None:
    """Runs a command's body; a `UserError` becomes one sentence and exit code 2."""
    try:
        function()
    except UserError as error:
        exit_with(error)
