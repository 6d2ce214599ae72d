"""The one exception that a user is meant to read, and how a command ends on it."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection
from typing import NoReturn


class UserError(Exception):
    """Input that cannot be used: one sentence with what was found, expected, and what to do.

    Commands print it without a traceback and exit with code 2. Everything else that is raised
    is a defect of this project and keeps its traceback.
    """


def closest(word: str, choices: Collection[str]) -> str | None:
    """The choice that a mistyped or abbreviated word most probably means, or None.

    Spelling decides first ("optimzer"), then initials ("lr" for learning_rate), then letters left
    out ("bf16" for bfloat16, "warmup" for warmup_steps), then a common ending.
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
    """Raises `UserError` unless the setting `name` is one of the choices."""
    if value not in choices:
        meant = closest(value, choices)
        advice = f"did you mean {meant!r}?" if meant else "choose one of these."
        raise UserError(f"{name} is {value!r}, expected {', '.join(choices)}; {advice}")


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
