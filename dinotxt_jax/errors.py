"""The only exception meant for users, its exit codes, and the command exit that it causes."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Collection
from typing import NoReturn

# Exit codes: input that the user must change; a diverged run; a storage fault, which may pass (the
# number is EX_IOERR of sysexits.h).
USER = 2
DIVERGED = 3
STORAGE = 74


class UserError(Exception):
    """Unusable input: one sentence that states the value found, the value expected, and the fix.

    Commands print the sentence without a traceback and exit with `exit_code`. Any other exception
    is a defect in this project and keeps the traceback.

    Attributes:
        exit_code: `USER` for input that the user must change, otherwise another code below.
    """

    def __init__(self, message: str, exit_code: int = USER):
        super().__init__(message)
        self.exit_code = exit_code


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


def report(sentence: str) -> None:
    """Prints an error to standard error, unless its file is on the disk that is full."""
    with contextlib.suppress(OSError):
        print(f"error: {sentence}", file=sys.stderr, flush=True)


def exit_with(error: UserError) -> NoReturn:
    """Prints the error sentence to standard error and exits with the code of the error."""
    report(str(error))
    raise SystemExit(error.exit_code)


def run_or_exit(function: Callable[[], None]) -> None:
    """Runs a command body; a `UserError` becomes one sentence and an exit code."""
    try:
        function()
    except UserError as error:
        exit_with(error)
