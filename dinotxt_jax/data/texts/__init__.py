"""Lists of class names and prompt templates: those that come with the project, and files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from dinotxt_jax.errors import UserError

_FOLDER = Path(__file__).parent
BACKGROUND = "background"  # the class for everything without another class
BUNDLED = tuple(sorted(file.stem for file in _FOLDER.glob("*.txt")))


def read_list(name: str, setting: str) -> tuple[str, ...]:
    """The lines of a list, blank ones left out.

    Args:
        name: of a list that comes with the project (`BUNDLED`), or the path of a text file.
        setting: the setting that names it, for messages.

    Raises:
        UserError: no such list, or an empty one.
    """
    file = _FOLDER / f"{name}.txt" if name in BUNDLED else Path(name)
    if not file.is_file():
        raise UserError(
            f"{setting} is {name!r}, which is neither a file nor one of {', '.join(BUNDLED)}; "
            + (
                f"did you mean {close_list(name)}?"
                if close_list(name)
                else "give the path of a text file with one entry per line."
            )
        )
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text ({error.reason}); save it as UTF-8.") from error
    entries = tuple(line.strip() for line in lines if line.strip())
    if not entries:
        raise UserError(f"{file}, which {setting} names, is empty; write one entry per line.")
    return entries


def close_list(name: str) -> str:
    """The list of the project that a mistyped name probably means, or ""."""
    # Below 0.7 words of everyday language ("scene", "open") are close to a list.
    return next(iter(difflib.get_close_matches(name, BUNDLED, 1, cutoff=0.7)), "")


def read_names(text: str, setting: str) -> tuple[str, ...]:
    """Class names as a command takes them: "a; b; c", or an argument of `read_list`.

    Raises:
        UserError: none is named, or a single name that looks like a file that does not exist, a
            mistyped list, or names between commas.
    """
    if ";" not in text and (text in BUNDLED or Path(text).is_file()):
        return read_list(text, setting)
    names = tuple(name.strip() for name in text.split(";") if name.strip())
    if not names:
        raise UserError(f'{setting} is {text!r}, expected names such as "dog; grass"; give them.')
    if ";" not in text and ("," in text or "/" in text or text.endswith(".txt")):
        raise UserError(
            f"{setting} is {text!r}, which is neither a file nor one of {', '.join(BUNDLED)}; "
            'separate names by semicolons ("dog; grass"), and '
            "end one that holds a comma with a semicolon."
        )
    if ";" not in text and close_list(text):
        raise UserError(
            f"{setting} is {text!r}, which is not a bundled list, did you mean "
            f'{close_list(text)}? If it is a class name, write "{text};".'
        )
    return names


def check_several(names: Sequence[str], setting: str, advice: str) -> None:
    """Raises `UserError` for a single class: it would win for every image.

    Args:
        names: the class names.
        setting: the setting that names them.
        advice: what to do, as the end of a sentence.
    """
    if len(set(names)) == 1:
        raise UserError(
            f"{setting} names a single class, {names[0]!r}, which gets 100 % for every image, "
            f"expected at least two to choose from; {advice}."
        )


def read_templates(named: str | Sequence[str], setting: str) -> tuple[str, ...]:
    """Prompt templates: a list as for `read_list`, one template itself ("a {}"), or several.

    Raises:
        UserError: a template without the place `{}` for the class name, or none at all.
    """
    if isinstance(named, str):
        if " " in named.strip() and "{}" not in named and not Path(named).is_file():
            raise UserError(
                f"{setting} is {named!r}, which has no place for the class name, expected a "
                f'template such as "a photo of a {{}}."; write {{}} where the name belongs.'
            )
        templates = (named,) if "{}" in named else read_list(named, setting)
    else:
        templates = tuple(named)
    if not templates:
        raise UserError(f"{setting} is empty, expected at least one template; add one.")
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f"{setting} has the template {template!r}, expected one {{}} for the class name; "
                "correct it."
            )
    return templates


def filled(template: str, class_name: str) -> str:
    """A prompt; braces in the class name are left alone."""
    before, _, after = template.partition("{}")
    return before + class_name + after
