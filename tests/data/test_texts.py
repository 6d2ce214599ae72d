"""Class names and prompt templates as users write them, and messages about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinotxt_jax.data.texts import check_several, read_list, read_names, read_templates
from dinotxt_jax.errors import UserError


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("imagenet1", "imagenet1k"),
        ("imagenet", "imagenet1k"),
        ("ade20k", "ade20k_150"),
        ("cityscapes", "cityscapes_19"),
    ],
)
def test_a_mistyped_list_gets_a_suggestion(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf'did you mean {meant}\? .* write "{typed};"'):
        read_names(typed, "--classes")
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        read_list(typed, "data.classes")
    assert read_names(f"{typed};", "--classes") == (typed,)


@pytest.mark.parametrize("name", ["dog", "a red car", "scene", "open", "image", "context menu"])
def test_everyday_words_are_class_names(name: str) -> None:
    assert read_names(name, "--classes") == (name,)


def test_a_single_class_is_questioned_also_when_repeated() -> None:
    check_several(["dog", "cat"], "--classes", "add one")
    check_several([], "--classes", "add one")
    for names in (["dog"], ["dog", "dog"]):
        with pytest.raises(UserError, match="--classes names a single class, 'dog', .*; add one"):
            check_several(names, "--classes", "add one")


def test_a_template_without_a_place_is_no_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'a photo of a', which has no place for the class name"):
        read_templates("a photo of a", "--templates")
    with pytest.raises(UserError, match=r"did you mean openai_80\?"):
        read_templates("openai80", "--templates")
    file = tmp_path / "my templates.txt"
    file.write_text("a {}\nthe {}\n")
    assert read_templates(str(file), "--templates") == ("a {}", "the {}")
