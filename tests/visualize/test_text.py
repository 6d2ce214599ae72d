"""Texts beyond ASCII: the font for each text, and the substitute for undrawable characters."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from pictures import without_fonts
from PIL import ImageFont

from dinotxt_jax.visualize import fonts
from dinotxt_jax.visualize.text import fitted, one_line, width_of, wrapped

DEJAVU = pytest.importorskip("matplotlib.font_manager").findfont("DejaVu Sans")


@pytest.fixture(autouse=True)
def fresh_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_logged_advice", set())


@pytest.fixture
def no_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    without_fonts(monkeypatch)


@pytest.fixture
def dejavu_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Simulates a machine whose only font is DejaVu Sans."""
    file = tmp_path / "fonts" / "deep" / "DejaVuSans.ttf"
    file.parent.mkdir(parents=True)
    shutil.copy(DEJAVU, file)
    monkeypatch.delenv("DINOTXT_FONT", raising=False)
    monkeypatch.setattr(fonts, "_folders", lambda: iter((tmp_path / "fonts",)))
    return file


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("two\nlines \t here", "two lines here"),
        ("café Straße naïve Ångström", "cafe Strasse naive Angstrom"),
        ("cat 猫", "cat […]"),
        ("犬猫 (dog)", "[…] (dog)"),
        ("cat 🙂", "cat"),
        ("猫", "class 3 (no font)"),
        ("", "class 3"),
        ("\ud800", "class 3"),
        ("🙂", "class 3"),
        ("a\u0301\u200bb\x00", "ab"),
        (7, "7"),
    ],
)
@pytest.mark.usefixtures("no_fonts")
def test_a_name_becomes_one_line_that_can_be_drawn_without_fonts(
    text: object, expected: str
) -> None:
    assert one_line(text, "class 3") == expected
    assert not fonts.missing(one_line(text, "class 3"))


@pytest.mark.parametrize("text", ["собака", "σκύλος", "café Straße", "tiếng Việt"])
def test_a_font_of_the_system_draws_other_alphabets(text: str, dejavu_only: Path) -> None:
    assert one_line(text, "class 3") == text
    font = fonts.font_of(24, text)
    assert Path(str(font.path)) == dejavu_only
    assert fonts.font_of(24, "dog").getname() == ImageFont.load_default(24).getname()


def test_accents_are_composed_and_direction_marks_left_out(dejavu_only: Path) -> None:
    assert one_line("cafe\u0301 \u202e\u200fы", "class 3") == "café ы"
    assert one_line("猫 ы", "class 3") == "[…] ы"


def test_texts_from_right_to_left_need_raqm(
    dejavu_only: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(fonts, "_has_raqm", lambda: True)
    assert one_line("كلب", "class 3") == "كلب"
    monkeypatch.setattr(fonts, "_has_raqm", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert one_line("كلب", "class 3") == "class 3 (no font)"
        assert one_line("собака", "class 3") == "собака"
    assert "libfribidi0" in caplog.text


def test_the_install_hint_is_logged_once(no_fonts: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for name in ("猫", "犬", "dog", "café"):
            one_line(name, "class 3")
    (record,) = caplog.records
    assert "'猫'" in record.getMessage()
    assert "fonts-noto-cjk" in record.getMessage()
    assert "DINOTXT_FONT" in record.getMessage()


def test_the_variable_names_fonts_that_are_taken_first(
    no_fonts: None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = tmp_path / "broken.ttf"
    broken.write_bytes(b"no font")
    monkeypatch.setenv("DINOTXT_FONT", f"{broken}:{tmp_path / 'absent.ttf'}:{DEJAVU}")
    with caplog.at_level(logging.WARNING):
        assert fonts.font_of(24, "dog").getname()[0] == "DejaVu Sans"
        assert one_line("собака", "class 3") == "собака"
    assert [str(broken) in r.getMessage() for r in caplog.records] == [True, False]


def test_plain_fonts_are_preferred_and_broken_files_passed_over(
    no_fonts: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = Path(DEJAVU).parent
    for name in ("DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSans.ttf", "DejaVuSansMono.ttf"):
        shutil.copy(folder / name, tmp_path / name)
    (tmp_path / "AaSans.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "_folders", lambda: iter((tmp_path, tmp_path / "none")))
    assert fonts.font_of(20, "ы").getname() == ("DejaVu Sans", "Book")


@pytest.mark.usefixtures("no_fonts")
def test_lines_are_cut_and_wrapped_to_a_width() -> None:
    for width in (30, 100, 300):
        line = fitted("w" * 1_000_000, 20, width)
        assert width_of(line, 20) <= width
        assert line.endswith("…")
    assert fitted("short", 20, 300) == "short"
    text = "seven words that stand on two lines"
    lines = wrapped(text, 20, width_of(text, 20) * 0.6, 3)
    assert len(lines) == 2
    assert " ".join(lines) == text
    three = wrapped("word " * 100, 20, 200, 3)
    assert len(three) == 3
    assert three[-1].endswith("word …")
    assert all(width_of(line, 20) <= 200 for line in three)
    unbroken = wrapped("x" * 60, 20, 200, 9)
    assert "".join(unbroken) == "x" * 60
    assert len(unbroken) > 1
    assert wrapped("", 20, 200, 3) == []
