"""The only exception meant for users, and the command exit that it causes."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection
from typing import NoReturn


class UserError(Exception):
    """Unusable input: one sentence that states the value found, the value expected, and the fix.

    Commands print the sentence without a traceback and exit with code 2. Any other exception is a
    defect in this project and keeps the traceback.
    """


def closest(word: str, choices: Collection[str]) -> str | None:
    """Returns the choice that a mistyped or abbreviated word most probably means, or None.

    Similar spelling is tried first ("optimzer"), then initials ("lr" for learning_rate), then
    omitted letters ("bf16" for bfloat16, "warmup" for warmup_steps), then a common ending.
    """
    folded = {choice.lower().replace("-", "_"): choice for choice in choices}
    word = word.lower().replace("-", "_")
    if near := difflib.get_close_matches(word, folded, n=1, cutoff=0.7):
        return folded[near[0]]
    for name, choice in folded.items():
        initials = "".join(part[:1] for part in name.split("_"))
        if len(word) > 1 and word == initials:
            return choice
    if len(word) > 2:
        for name, choice in folded.items():
            letters = iter(name)
            shortened = name[:1] == word[:1] and all(letter in letters for letter in word)
            if shortened or name.endswith(word):
                return choice
    return None


def check_choice(name: str, value: str, choices: Collection[str]) -> None:
    """Raises `UserError` unless the value for the setting `name` is among the choices."""
    if value not in choices:
        suggestion = closest(value, choices)
        advice = f"did you mean {suggestion!r}?" if suggestion else "choose one of these."
        raise UserError(f"{name} is {value!r}, expected {', '.join(choices)}; {advice}")


def exit_with(error: UserError) -> NoReturn:
    """Prints the error sentence to standard error and exits with code 2."""
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)


def run_or_exit(function: Callable[[], None]) -> None:
    """Runs a command body; a `UserError` becomes one sentence and exit code 2."""
    try:
        function()
    except UserError as error:
        exit_with(error)
