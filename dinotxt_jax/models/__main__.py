"""Prints the models that can be loaded by name."""

from __future__ import annotations

from dinotxt_jax.hub.known import list_models


def main() -> None:
    """The command."""
    rows = [("name", "family", "size", "pixels", "licence", "source", "can")]
    rows += [
        (
            m.name,
            m.family,
            m.size,
            str(m.resolution or "any"),
            m.licence,
            m.source,
            ", ".join(m.can),
        )
        for m in list_models()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )


if __name__ == "__main__":
    main()
