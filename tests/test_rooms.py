"""The package layers ("rooms"): imports point down, and no two modules import each other."""

from __future__ import annotations

import ast
import functools
import graphlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
# From bottom to top; a package may import packages below it and packages on the same level.
FLOORS = (
    ("errors",),
    ("config",),
    ("runtime",),
    ("storage",),
    ("sharding",),
    ("tokenizers", "losses", "models", "data"),
    ("ingestion",),
    ("visualize",),
    ("inference",),
    ("evaluation", "curation"),
    ("training",),
    ("planning",),
    # These know weights_convert, which knows nothing above inference.
    ("hub",),
    ("__init__",),
    ("cli_flags",),
    ("cli",),
    (
        *("train", "precompute", "plan", "status", "evaluate", "compare", "curate"),
        *("classify", "segment", "embed", "ingest", "push"),
    ),
    ("data.benchmark", "models.__main__"),
)
# Commands that stand beside their subject; nothing imports them.
ENTRY_POINTS = {"dinotxt_jax.data.benchmark", "dinotxt_jax.models.__main__"}
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> list[str]:
    """Returns every module in the two packages, by dotted name."""
    files = [*ROOT.glob("dinotxt_jax/**/*.py"), *ROOT.glob("weights_convert/**/*.py")]
    return sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files)


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Returns the project modules that a module imports, at the top or inside a function."""
    known = set(modules())
    file = ROOT / (module.replace(".", "/") + ".py")
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    result = set()
    for name in names:
        # The module itself, the package's `__init__`, or the module that contains the name.
        holder = name.rpartition(".")[0]
        candidates = (name, f"{name}.__init__", holder, f"{holder}.__init__")
        result |= set([candidate for candidate in candidates if candidate in known][:1])
    return frozenset(result - {module})


def room(module: str) -> str:
    """Returns the package that contains a module, or the name of a command within a package."""
    return module.partition(".")[2] if module in ENTRY_POINTS else module.split(".")[1]


def is_above(name: str, module: str) -> bool:
    """Returns whether an imported module lies above the one that imports it."""
    if name.startswith("weights_convert"):
        return FLOOR[room(module)] < FLOOR["hub"]
    return room(name) != "__init__" and FLOOR[room(name)] > FLOOR[room(module)]


def test_every_room_has_a_floor() -> None:
    assert {room(name) for name in modules() if name.startswith("dinotxt_jax")} == set(FLOOR)


def test_imports_point_down() -> None:
    upward = [
        f"{module} imports {name}"
        for module in modules()
        if module.startswith("dinotxt_jax")
        for name in imports(module)
        if is_above(name, module)
    ]
    assert upward == []


def test_weights_convert_knows_no_training() -> None:
    above = {
        name
        for module in modules()
        if module.startswith("weights_convert")
        for name in imports(module)
        if name.startswith("dinotxt_jax") and room(name) != "__init__"
        if FLOOR[room(name)] > FLOOR["inference"]
    }
    assert above <= {"dinotxt_jax.cli"}


def test_no_two_modules_need_each_other() -> None:
    order = graphlib.TopologicalSorter({module: imports(module) for module in modules()})
    circle: list[str] = []
    try:
        order.prepare()
    except graphlib.CycleError as error:
        circle = error.args[1]
    assert circle == []
