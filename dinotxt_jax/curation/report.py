"""The step `report`: one HTML file about the results of other steps, for a person to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dinotxt_jax.config import CurationConfig
from dinotxt_jax.curation.report_lists import is_list, list_section
from dinotxt_jax.curation.report_text import is_text_result, text_section
from dinotxt_jax.errors import UserError
from dinotxt_jax.storage.addresses import Address, to_address
from dinotxt_jax.storage.files import check_no_folder, write_text
from dinotxt_jax.visualize.web_page import web_page


@dataclass(frozen=True)
class ReportSection:
    """How the result of a step is reported.

    Attributes:
        reads: whether a path holds such a result.
        elements: takes the settings and the path; returns elements of the page.
        result: the result, for messages.
    """

    reads: Callable[[Address], bool]
    elements: Callable[[CurationConfig, Address], list[str]]
    result: str


REPORT_SECTIONS: dict[str, ReportSection] = {
    "text": ReportSection(is_text_result, text_section, "a folder that text has written"),
    "list": ReportSection(is_list, list_section, "a list of kept examples (.npz)"),
}
"""All sections; to add one, write a module with its functions and add a row."""


def write_report(config: CurationConfig, paths: Sequence[str], output: Address) -> str:
    """Writes a page with one section per result; returns a sentence about it.

    Args:
        config: the pool.
        paths: results of other steps.
        output: the HTML file to write.

    Raises:
        UserError: there is no result, or one cannot be read or belongs to another pool.
    """
    check_no_folder(output)
    if not paths:
        raise UserError("no result is named, expected results of other steps after report.")
    elements = []
    for path in paths:
        address = to_address(path)
        section = next((row for row in REPORT_SECTIONS.values() if row.reads(address)), None)
        if section is None:
            expected = " or ".join(row.result for row in REPORT_SECTIONS.values())
            raise UserError(f"{path} holds no result, expected {expected}; correct the path.")
        elements += section.elements(config, address)
    write_text(output, web_page("Curation", elements))
    return f"{output} describes {', '.join(paths)}."
