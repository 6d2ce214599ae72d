"""Article texts from dumps of Wikipedia, and titles by page views."""

from __future__ import annotations

import bz2
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import IO, BinaryIO, cast
from xml.etree import ElementTree

from dinotxt_jax.data.file_lists import data_files
from dinotxt_jax.errors import UserError
from dinotxt_jax.runtime.progress import watched
from dinotxt_jax.storage.addresses import Address

_DUMP = re.compile(r"([a-z_]+)wiki-.*")
# Namespace 0 holds the articles.
_ARTICLES = "0"


def dumps_by_language(path: str) -> dict[str, list[Address]]:
    """Returns the dump files that `config.metadata.wikipedia` names, by language.

    Raises:
        UserError: there is none, or a name does not begin with LANGUAGEwiki-.
    """
    result: dict[str, list[Address]] = {}
    for file in data_files(path, ".xml", "Wikipedia dump", "config.metadata.wikipedia"):
        name = _DUMP.fullmatch(file.name)
        if name is None:
            raise UserError(
                f"{file} does not say its language, expected a name such as "
                "enwiki-20260101-pages-articles.xml.bz2; rename it, or correct "
                "config.metadata.wikipedia."
            )
        result.setdefault(name[1].replace("_", "-"), []).append(file)
    return result


def article_sources(file: Address) -> Iterator[str]:
    """Yields the wikitext of the articles in a dump, without redirects.

    Raises:
        UserError: the file is no whole dump.
    """
    try:
        with file.open("rb") as raw, _decompressed(raw, file.name) as stream:
            root: ElementTree.Element | None = None
            for event, element in ElementTree.iterparse(stream, ("start", "end")):
                if root is None:
                    root = element
                if event == "end" and element.tag.rpartition("}")[2] == "page":
                    text = _article(element)
                    if text:
                        yield text
                    root.clear()  # otherwise all pages stay in memory
    except (ElementTree.ParseError, EOFError, OSError, zlib.error) as error:
        raise UserError(
            f"{file} cannot be read to its end ({error}), expected a dump of Wikipedia articles; "
            "download it again, or correct config.metadata.wikipedia."
        ) from error


def _decompressed(stream: IO[bytes], name: str) -> BinaryIO:
    if name.endswith(".bz2"):
        return cast(BinaryIO, bz2.BZ2File(stream))
    return cast(BinaryIO, gzip.GzipFile(fileobj=stream) if name.endswith(".gz") else stream)


def _article(page: ElementTree.Element) -> str:
    """Returns the wikitext of an article; empty for other pages."""
    values = {child.tag.rpartition("}")[2]: child for child in page.iter()}
    is_article = "redirect" not in values and "text" in values
    if not is_article or (values["ns"].text if "ns" in values else _ARTICLES) != _ARTICLES:
        return ""
    return values["text"].text or ""


def plain_text(wikitext: str) -> str:
    """Returns the text of an article without markup, templates, tables and references.

    Raises:
        UserError: the extra `curation` is not installed.
    """
    try:
        import mwparserfromhell
    except ImportError as error:
        raise UserError(
            "config.metadata.wikipedia needs mwparserfromhell, which is not installed; run pip "
            "install 'dinotxt_jax[curation]'."
        ) from error
    code = mwparserfromhell.parse(wikitext)
    for tag in code.filter_tags(matches=lambda tag: tag.tag in ("ref", "table")):
        code.replace(tag, " ")
    return str(code.strip_code())


def viewed_titles(
    path: str, languages: tuple[str, ...], min_hour_views: int, min_views: int
) -> dict[str, list[str]]:
    """Returns the titles of pages by language, most views first; equally viewed ones by title.

    Args:
        path: the files; each has lines "PROJECT TITLE VIEWS BYTES" for one hour.
        languages: the languages; the mobile site counts, too.
        min_hour_views: a line counts from this number on.
        min_views: the least sum of the lines that count.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    views: dict[str, Counter[str]] = {language: Counter() for language in languages}
    files = data_files(path, "pageviews", "page view", "config.metadata.page_views")
    for file in watched(files, "file", "counting views"):
        try:
            with file.open("rb") as raw, _decompressed(raw, file.name) as stream:
                for line in stream:
                    project, title, count, *_ = (*line.decode(errors="replace").split(" "), "", "")
                    language = project.removesuffix(".m")
                    if language in views and count.isdecimal() and int(count) >= min_hour_views:
                        views[language][title] += int(count)
        except (EOFError, OSError, zlib.error) as error:
            raise UserError(
                f"{file} cannot be read to its end ({error}), expected hourly page views of "
                "Wikimedia; download it again, or correct config.metadata.page_views."
            ) from error
    return {
        language: [
            title.replace("_", " ")
            for title, total in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            if total >= min_views and ":" not in title
        ]
        for language, counts in views.items()
    }
