"""Prints the lower bounds of pyproject.toml as exact versions: a constraints file for pip.

Takes the dependencies and those of the extras named as arguments. Used by `make lowest`.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_REQUIREMENT = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?>=(?P<bound>[\w.]+)(?P<marker>\s*;.*)?")


def exact(requirement: str) -> str:
    """Returns `name==bound` of `name>=bound`, with its environment marker."""
    parts = _REQUIREMENT.fullmatch(requirement)
    if parts is None:
        sys.exit(
            f"error: {requirement!r} in pyproject.toml has no lower bound; write NAME>=VERSION."
        )
    return f"{parts['name']}=={parts['bound']}{parts['marker'] or ''}"


def main() -> None:
    """Prints one line for each dependency."""
    project = tomllib.loads(Path(__file__).parent.parent.joinpath("pyproject.toml").read_text())
    tables = project["project"]
    requirements = list(tables["dependencies"])
    for extra in sys.argv[1:]:
        requirements += tables["optional-dependencies"][extra]
    print("\n".join(map(exact, requirements)))


if __name__ == "__main__":
    main()
