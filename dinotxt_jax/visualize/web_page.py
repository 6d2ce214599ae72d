"""Web pages in one file: tables, embedded pictures, and a plain style in light and dark."""

from __future__ import annotations

import base64
import dataclasses
import html
from collections.abc import Sequence

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0 }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: left }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
img { max-width: 100% }
.gallery { display: flex; flex-wrap: wrap; gap: .8rem; margin: .5rem 0 1.5rem }
figure { width: 11rem; margin: 0 }
figcaption { font-size: .8rem; line-height: 1.3; overflow-wrap: anywhere }
.absent { height: 6rem; display: grid; place-items: center; background: #8883 }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } }
"""


@dataclasses.dataclass(frozen=True)
class Table:
    """Table cells as text; the first row is the heading."""

    rows: list[list[str]]

    def markdown(self) -> str:
        """Returns the table in Markdown."""
        lines = ["| " + " | ".join(_flat(cell) for cell in row) + " |" for row in self.rows]
        lines.insert(1, "|" + "---|" * len(self.rows[0]))
        return "\n".join(line.replace("|  |", "| |") for line in lines)

    def html(self) -> str:
        """Returns the table in HTML."""
        kinds = ["th"] + ["td"] * (len(self.rows) - 1)
        lines = [
            "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"
            for kind, row in zip(kinds, self.rows, strict=True)
        ]
        return "<table>\n" + "\n".join(lines) + "\n</table>"


def _flat(cell: str) -> str:
    """Removes line breaks and escapes pipes: class and task names may contain any character."""
    return " ".join(cell.split()).replace("|", "\\|")


def text_element(tag: str, text: str) -> str:
    """Returns an element with a text, such as a heading ("h2") or a paragraph ("p")."""
    return f"<{tag}>{html.escape(text)}</{tag}>"


def picture_element(content: bytes, title: str, file_type: str = "png") -> str:
    """Returns an element with a picture inside.

    Args:
        content: an image file.
        title: what the picture shows.
        file_type: "png" or "jpeg".
    """
    data = base64.b64encode(content).decode()
    return f'<img alt="{html.escape(title)}" src="data:image/{file_type};base64,{data}">'


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with a text.

    Attributes:
        jpeg: an image file, or None if there is no image.
        title: name of the picture.
        text: the text below it.
    """

    jpeg: bytes | None
    title: str
    text: str


def gallery_element(pictures: Sequence[Picture]) -> str:
    """Returns an element with pictures in rows, each above its title and text."""
    return '<div class="gallery">\n' + "\n".join(map(_figure, pictures)) + "\n</div>"


def _figure(picture: Picture) -> str:
    image = (
        '<div class="absent">(no image)</div>'
        if picture.jpeg is None
        else picture_element(picture.jpeg, picture.title, "jpeg")
    )
    title, text = html.escape(picture.title), html.escape(picture.text)
    return f"<figure>{image}<figcaption><b>{title}</b><br>{text}</figcaption></figure>"


def web_page(title: str, elements: Sequence[str]) -> str:
    """Returns a page with a title and elements in HTML below it."""
    return (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}'
        f"</title>\n<style>{_STYLE}</style>\n"
        + "\n".join([text_element("h1", title), *elements])
        + "\n</html>\n"
    )
