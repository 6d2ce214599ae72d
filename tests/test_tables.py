"""Tables of sources, tasks, protocols: only rows decide, and each name has one meaning."""

from __future__ import annotations

import ast
import collections
import dataclasses
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from dinotxt_jax.config import Config, DataConfig, EvaluationConfig, TaskConfig, check
from dinotxt_jax.config.evaluation import KIND_SETTINGS, KindSettings
from dinotxt_jax.config.sources import CAPTIONS, SOURCE_SETTINGS, SourceSettings
from dinotxt_jax.data import tables
from dinotxt_jax.data.examples import Example
from dinotxt_jax.data.scenes import SceneSource
from dinotxt_jax.data.source_kind import SourceKind
from dinotxt_jax.data.sources import SOURCES, open_source
from dinotxt_jax.errors import UserError
from dinotxt_jax.evaluation.jobs import Job, TaskResult
from dinotxt_jax.evaluation.retrieval import RetrievalKind
from dinotxt_jax.evaluation.tasks import KINDS, open_task, run_task
from dinotxt_jax.inference.protocols import PROTOCOLS
from dinotxt_jax.models.presets import PRESETS
from dinotxt_jax.planning.encoders import image_sizes

ROOT = Path(__file__).parents[1]
FILES = [*ROOT.glob("dinotxt_jax/**/*.py"), *ROOT.glob("weights_convert/**/*.py")]
TABLES = {"source": SOURCES, "kind": KINDS, "protocol": PROTOCOLS}


def compared_rows(tree: ast.AST) -> list[str]:
    """Finds comparisons like `task.kind == "retrieval"` or `config.source in ("csv", "folder")`."""
    result = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            fields = {side.attr for side in sides if isinstance(side, ast.Attribute)}
            values = {
                n.value for side in sides for n in ast.walk(side) if isinstance(n, ast.Constant)
            }
            for field in fields & TABLES.keys():
                result += [f"{field} {value!r}" for value in values if value in TABLES[field]]
    return result


def test_no_module_compares_the_name_of_a_row() -> None:
    assert compared_rows(ast.parse('task.kind != "retrieval" or c.protocol in ("slide", "x")'))
    # `config` is below the tables: it declares the names and the settings that go together.
    files = [file for file in FILES if file.parent.name != "config"]
    result = {file.name: compared_rows(ast.parse(file.read_text())) for file in files}
    assert {name: rows for name, rows in result.items() if rows} == {}


def test_public_names_mean_one_thing() -> None:
    modules = collections.defaultdict(list)
    for file in FILES:
        for node in ast.parse(file.read_text()).body:
            names: list[str] = []
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                modules[name].append(str(file.relative_to(ROOT)))
    several = {name for name, files in modules.items() if len(files) > 1 and name[0] != "_"}
    type_variables = {"DataclassT", "ItemT", "ResultT"}
    assert several - type_variables == {"main"}  # every command has one


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_reads_the_settings_that_its_row_lists(name: str) -> None:
    kind = SOURCES[name]
    opener = kind.captions or kind.labels or kind.masks
    modules = [sys.modules[opener.__module__]]
    if "TableSource" in vars(modules[0]):
        modules.append(tables)  # reads the settings that name columns
    read = {
        node.attr
        for module in modules
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.Attribute)
        if isinstance(node.value, ast.Name) and node.value.id == "config"
    }
    fields = {field.name for field in dataclasses.fields(DataConfig)}
    if "caption_columns" in read:  # the columns that `caption_key` names
        read = (read - {"caption_columns"}) | {"caption_key"}
    # `open_labelled` reads these two for all sources that give class labels.
    shared = {"classes", "only"} if kind.labels else set()
    assert {*kind.reads} <= fields
    assert (read | shared) - {"image_size"} == {*kind.reads}
    assert kind.gives


class Greys:
    """Grey images with captions that describe the brightness."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Example:
        image = np.full((8, 8, 3), 80 * index, np.uint8)
        return Example(image, self.captions(index), f"grey {index}")

    def captions(self, index: int) -> tuple[str, ...]:
        return (f"brightness {index}",)

    def key(self, index: int) -> str:
        return f"grey {index}"


def test_a_new_source_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    row = SourceKind(reads=(), captions=lambda config, section: Greys(), needs_path=False)
    monkeypatch.setitem(SOURCES, "greys", row)
    monkeypatch.setitem(SOURCE_SETTINGS, "greys", SourceSettings((CAPTIONS,), needs=()))
    config = DataConfig(source="greys", augmentation="center_crop")
    assert open_source(config)[2].captions == ("brightness 2",)
    task = TaskConfig(kind="retrieval", data=config, max_examples=2)
    check(EvaluationConfig(tasks={"a": task}))
    KINDS[task.kind].check("config.tasks.a", task, PRESETS["dinov2_vits14"])
    assert len(KINDS[task.kind].open_set("config.tasks.a", task)) == 2
    segmentation = dataclasses.replace(task, kind="segmentation")
    with pytest.raises(UserError, match="config.tasks.a.data.source='greys' has no masks"):
        KINDS["segmentation"].open_set("config.tasks.a", segmentation)
    with pytest.raises(UserError, match="config.tasks.a.data.source is 'greys', which has no m"):
        check(EvaluationConfig(tasks={"a": segmentation}))


class CountingKind(RetrievalKind):
    """Counts the images of a task."""

    metrics = ("images",)

    def run(self, job: Job) -> TaskResult:
        return TaskResult("counting", {"images": float(len(job.source))}, {}, {})


def test_a_new_kind_of_task_is_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "counting", CountingKind())
    settings = KindSettings(CAPTIONS, CountingKind.metrics, encodes_whole_images=False)
    monkeypatch.setitem(KIND_SETTINGS, "counting", settings)
    task = TaskConfig(kind="counting", data=DataConfig(num_scenes=5), max_examples=4)
    opened = open_task("a", task, "config")
    result = run_task(Job(None, "a", task, opened.source, 2))  # type: ignore[arg-type]
    assert result.metrics == {"images": 4}
    config = EvaluationConfig(tasks={"a": task}, best="a/images", every=1)
    check(Config(evaluation=config))
    with pytest.raises(UserError, match="best is 'a/top1', expected a/images"):
        check(Config(evaluation=dataclasses.replace(config, best="a/top1")))


def test_settings_that_a_source_does_not_read_are_named(caplog: pytest.LogCaptureFixture) -> None:
    assert isinstance(open_source(DataConfig(num_scenes=2, image_root="photos")), SceneSource)
    assert "config.data.image_root='photos' is not read by config.data.source=scenes" in caplog.text
    caplog.clear()
    open_source(DataConfig(num_scenes=2, split="test"))
    assert not caplog.text


def test_plans_take_the_encoders_from_the_task_kind() -> None:
    tasks = {name: TaskConfig(kind=name) for name in KINDS}
    sizes = {n: image_sizes(EvaluationConfig(tasks={n: task})) for n, task in tasks.items()}
    assert sizes == {
        "retrieval": {224: "encode_image"},
        "classification": {224: "encode_image"},
        "segmentation": {384: "encode_patches"},
        "text": {},
    }
