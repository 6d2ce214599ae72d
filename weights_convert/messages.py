"""How names out of files are shown to people."""

from collections.abc import Iterable

MOST_LISTED = 40


def quoted(name: object, limit: int = 100) -> str:
    """A name out of a file, safe to print: escaped, and cut where it is absurdly long."""
    text = ascii(name if isinstance(name, str) else str(name))
    return text if len(text) <= limit else f"{text[:limit]}...'"


def listed(title: str, items: Iterable[str]) -> str:
    """`title (3): a, b, c`, cut where the list is absurdly long; nothing for no items."""
    items = list(items)
    if not items:
        return ""
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return f"{title} ({len(items)}): " + ", ".join(items[:MOST_LISTED]) + more
