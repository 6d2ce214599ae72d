"""Formats names from files for messages."""

from collections.abc import Iterable

MOST_LISTED = 40


def quoted(name: object, limit: int = 100) -> str:
    """Escapes a name from a file for printing, and truncates an absurdly long one."""
    text = ascii(name if isinstance(name, str) else str(name))
    return text if len(text) <= limit else f"{text[:limit]}...'"


def listed(title: str, items: Iterable[str]) -> str:
    """Returns `title (3): a, b, c`, truncated after 40 items; an empty text for no items."""
    items = list(items)
    if not items:
        return ""
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return f"{title} ({len(items)}): " + ", ".join(items[:MOST_LISTED]) + more
