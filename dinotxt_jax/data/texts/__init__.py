"""Reads lists of class names and prompt templates: bundled lists, and user files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from dinotxt_jax.errors import UserError

_FOLDER = Path(__file__).parent
BACKGROUND = "background"  # the class for pixels that belong to no other class
BUNDLED = tuple(sorted(file.stem for file in _FOLDER.glob("*.txt")))


def read_list(name: str, setting: str) -> tuple[str, ...]:
    """Returns the non-blank lines in a list.

    Args:
        name: a bundled list (`BUNDLED`), or the path to a text file.
        setting: the setting that names the list, for messages.

    Raises:
        UserError: the list does not exist or is empty.
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
    """Returns the bundled list that a mistyped name probably means, or ""."""
    # With a lower cutoff, everyday words ("scene", "open") would match a list.
    return next(iter(difflib.get_close_matches(name, BUNDLED, 1, cutoff=0.7)), "")


def read_names(text: str, setting: str) -> tuple[str, ...]:
    """Parses class names from the command line: "a; b; c", or an argument for `read_list`.

    Raises:
        UserError: there is no name, or a single name looks like a missing file, a mistyped list, or
            names separated by commas.
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
            "end a name that contains a comma with a semicolon."
        )
    if ";" not in text and close_list(text):
        raise UserError(
            f"{setting} is {text!r}, which is not a bundled list, did you mean "
            f'{close_list(text)}? If it is a class name, write "{text};".'
        )
    return names


def check_several(names: Sequence[str], setting: str, advice: str) -> None:
    """Raises `UserError` for a single class, which would win for every image.

    Args:
        names: the class names.
        setting: the setting that names the classes.
        advice: instructions for the user, which end a sentence.
    """
    if len(set(names)) == 1:
        raise UserError(
            f"{setting} names a single class, {names[0]!r}, which gets 100 % for every image, "
            f"expected at least two to choose from; {advice}."
        )


def read_templates(source: str | Sequence[str], setting: str) -> tuple[str, ...]:
    """Returns prompt templates.

    Args:
        source: an argument for `read_list`, a template such as "a {}", or several templates.
        setting: the setting that names the templates, for messages.

    Raises:
        UserError: a template lacks the placeholder `{}` for the class name, or there is no
            template.
    """
    if isinstance(source, str):
        if " " in source.strip() and "{}" not in source and not Path(source).is_file():
            raise UserError(
                f"{setting} is {source!r}, which has no place for the class name, expected a "
                f'template such as "a photo of a {{}}."; write {{}} where the name belongs.'
            )
        templates = (source,) if "{}" in source else read_list(source, setting)
    else:
        templates = tuple(source)
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
    """Fills a template with a class name; braces in the class name stay unchanged."""
    before, _, after = template.partition("{}")
    return before + class_name + after
