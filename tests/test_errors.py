"""Suggestions for mistyped words, and the exit of a command with an error."""

from __future__ import annotations

import errno
import io
import sys

import pytest

from dinotxt_jax.errors import STORAGE, UserError, check_choice, closest, exit_with

COMMANDS = ("convert", "train", "precompute", "plan", "evaluate", "classify", "segment", "embed")
OPTIMIZER = ("learning_rate", "beta1", "beta2", "epsilon", "weight_decay", "warmup_steps")


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("trian", COMMANDS, "train"),
        ("Train", COMMANDS, "train"),
        ("eval", COMMANDS, "evaluate"),
        ("paint", COMMANDS, None),
        ("", COMMANDS, None),
        ("t", COMMANDS, None),
        ("lr", OPTIMIZER, "learning_rate"),
        ("rate", OPTIMIZER, "learning_rate"),
        ("wd", OPTIMIZER, "weight_decay"),
        ("warmup", OPTIMIZER, "warmup_steps"),
        ("eps", OPTIMIZER, "epsilon"),
        ("momentum", OPTIMIZER, None),
        ("learning-rate", OPTIMIZER, "learning_rate"),
        ("bf16", ("float32", "bfloat16"), "bfloat16"),
        ("f32", ("float32", "bfloat16"), "float32"),
        ("half", ("float32", "bfloat16"), None),
        ("sigmod", ("softmax", "sigmoid"), "sigmoid"),
        ("lion", ("softmax", "sigmoid"), None),
    ],
)
def test_the_choice_that_was_meant(word: str, choices: tuple[str], expected: str | None) -> None:
    assert closest(word, choices) == expected


def test_a_wrong_choice_is_one_sentence() -> None:
    check_choice("dtype", "float32", ("float32", "bfloat16"))
    with pytest.raises(UserError, match="^dtype is 'bf16', expected float32, bfloat16; did you"):
        check_choice("dtype", "bf16", ("float32", "bfloat16"))
    with pytest.raises(UserError, match="^dtype is 'half', expected float32, bfloat16; choose one"):
        check_choice("dtype", "half", ("float32", "bfloat16"))


def test_the_exit_code_survives_a_full_disk_under_the_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Full(io.StringIO):
        def write(self, _: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(SystemExit) as ended:
        exit_with(UserError("the disk is full.", STORAGE))
    assert ended.value.code == STORAGE
