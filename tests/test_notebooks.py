"""The notebooks: stored without outputs, and every cell runs.

The cells run as plain Python, without Jupyter: they use no Jupyter feature, and a kernel with two
dozen packages would make every test installation slower.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# Runs the notebook cells one after the other; the value of a cell's last expression is displayed
# as in Jupyter: as a PNG if it has a PNG form, as text otherwise.
RUNNER = """
import ast, json, sys
from pathlib import Path

cells, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
names = {"__name__": "__main__"}
for number, cell in enumerate(cells):
    body = ast.parse(cell).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), f"<cell {number}>", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), f"<cell {number}>", "eval"), names)
        if hasattr(value, "_repr_png_"):
            (folder / f"{number:02d}.png").write_bytes(value._repr_png_())
        elif value is not None:
            print(repr(value))
"""


def cells_of(notebook: Path, kind: str = "code") -> list[dict[str, Any]]:
    cells = json.loads(notebook.read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def run_cells(name: str, folder: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
    """Runs a notebook, with other values for names in the parameter cell."""
    sources = []
    for cell in cells_of(ROOT / "notebooks" / name):
        source = "".join(cell["source"])
        if "parameters" in cell["metadata"].get("tags", ()):
            known = {t.id for s in ast.parse(source).body for t in s.targets}  # type: ignore[attr-defined]
            assert set(parameters) <= known
            source += "".join(f"\n{key} = {value}" for key, value in parameters.items())
        sources.append(source)
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-c", RUNNER, json.dumps(sources), str(folder)],
        cwd=ROOT / "notebooks",
        env=os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs_and_use_nothing_of_jupyter(notebook: Path) -> None:
    content = json.loads(notebook.read_text())
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in content["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    assert content["cells"][0]["source"][0].startswith("# ")
    for cell in cells_of(notebook):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)
        ast.parse("".join(cell["source"]))  # magics are not Python


def test_the_readme_has_every_notebook() -> None:
    readme = (ROOT / "README.md").read_text()
    assert len(NOTEBOOKS) == 2
    assert all(f"notebooks/{notebook.name}" in readme for notebook in NOTEBOOKS)


@pytest.mark.slow
def test_a_model_is_trained_on_captions_and_then_used(tmp_path: Path) -> None:
    work = tmp_path / "work"
    trained = run_cells(
        "train_on_your_captions.ipynb",
        tmp_path / "trained",
        FOLDER=f"Path({str(work)!r})",
        CAPTIONS=f"Path({str(work / 'data' / 'captions.jsonl')!r})",
    )
    assert trained.returncode == 0, trained.stderr
    scores = json.loads((work / "evaluation" / "results.json").read_text())["scenes"]
    assert scores["metrics"]["mean_recall"] > 5 * scores["chance"]["mean_recall"]
    pictures = [Image.open(file) for file in sorted((tmp_path / "trained").iterdir())]
    assert [picture.size for picture in pictures[1:]] == [
        Image.open(work / "run" / "curves.png").size,
        Image.open(work / "evaluation" / "scenes.png").size,
    ]
    model = work / "run" / "model"
    used = run_cells("use_a_model.ipynb", tmp_path / "used", MODEL=f"Path({str(model)!r})")
    assert used.returncode == 0, used.stderr
    assert "image " in used.stdout
    assert len(list((tmp_path / "used").iterdir())) == 6
