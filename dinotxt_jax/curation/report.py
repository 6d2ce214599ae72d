"""The step `report`: one HTML file about the results of other steps, for a person to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.embeddings import check_pool
from dinotxt_jax.curation.report_clusters import cluster_section, is_cluster_folder
from dinotxt_jax.curation.report_lists import comparison, is_list, list_section
from dinotxt_jax.curation.report_pool import ReportPool
from dinotxt_jax.curation.report_text import is_text_result, text_list, text_section
from dinotxt_jax.data.kept import read_kept
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import check_no_folder, write_text
from dinotxt_jax.visualize.web_page import web_page


@dataclass(frozen=True)
class ReportSection:
    """How the result of a step is reported.

    Attributes:
        reads: whether a path holds such a result.
        elements: takes the pool and the path; returns elements of the page.
        result: the result, for messages.
        kept: takes the path; returns the list of kept examples in it, if there is one.
    """

    reads: Callable[[Address], bool]
    elements: Callable[[ReportPool, Address], list[str]]
    result: str
    kept: Callable[[Address], Address | None]


REPORT_SECTIONS: dict[str, ReportSection] = {
    "text": ReportSection(
        is_text_result, text_section, "a folder that text has written", text_list
    ),
    "clusters": ReportSection(
        is_cluster_folder,
        cluster_section,
        "a folder that cluster has written",
        lambda path: None,
    ),
    "list": ReportSection(
        is_list, list_section, "a list of kept examples (.npz)", lambda path: path
    ),
}
"""All sections; to add one, write a module with its functions and add a row."""


def write_report(config: CurationConfig, paths: Sequence[str], output: Address) -> str:
    """Writes a page about results and how their lists differ; returns a sentence about it.

    Args:
        config: the pool.
        paths: results of other steps. Clusters are described with the numbers of examples of all
            lists in the report.
        output: the HTML file to write.

    Raises:
        UserError: there is no result, or one cannot be read or belongs to another pool.
    """
    check_no_folder(output)
    if not paths:
        raise UserError("no result is named, expected results of other steps after report.")
    addresses = [to_address(path) for path in dict.fromkeys(paths)]
    sections = [_section(address) for address in addresses]
    pool = ReportPool.of(config)
    for section, address in zip(sections, addresses, strict=True):
        if (file := section.kept(address)) is not None:
            kept = read_kept(file, "the paths after report")
            check_pool(kept.description["pool"], pool.identity, address)
            pool.lists[str(file)] = kept
    elements = [
        element
        for section, address in zip(sections, addresses, strict=True)
        for element in section.elements(pool, address)
    ]
    write_text(output, web_page("Curation", [*elements, *comparison(pool)]))
    return f"{output} describes {', '.join(paths)}."


def _section(address: Address) -> ReportSection:
    """Returns the section for a result.

    Raises:
        UserError: the path holds no result.
    """
    for section in REPORT_SECTIONS.values():
        if section.reads(address):
            return section
    expected = " or ".join(row.result for row in REPORT_SECTIONS.values())
    raise UserError(f"{address} holds no result, expected {expected}; correct the path.")
