"""Command-line flags: accepted forms, and one sentence for each mistake.

One interpreter parses all command lines, since starting it takes most of the time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/quickstart.py"
BACKBONE = "--config.backbone=B"
WORKDIR = "--workdir=W"

REFUSED = [
    (
        [CONFIG, WORKDIR, "--config.optimizer.lr=3"],
        "config.optimizer.lr is not a setting; did you mean config.optimizer.learning_rate?",
    ),
    (
        [CONFIG, WORKDIR, "--config.optimizer=lion"],
        "config.optimizer is 'lion', expected a group of settings; set one of its keys, such as "
        "config.optimizer.learning_rate.",
    ),
    (
        [CONFIG, WORKDIR, "--config.data.num-scenes=3"],
        "config.data.num-scenes is not a setting; did you mean config.data.num_scenes?",
    ),
    (
        [CONFIG, WORKDIR, "--config.data.num-scenes"],
        "config.data.num-scenes is not a setting; did you mean config.data.num_scenes?",
    ),
    (
        [CONFIG, WORKDIR, BACKBONE, "--config.data.crop_scale[0]=0"],
        "config.data.crop_scale[0] is 0.0, expected a number above 0 and at most 1; set it to a "
        "number in this range.",
    ),
    (
        [CONFIG, WORKDIR, BACKBONE, "--config.evaluation.tasks.scenes.data.split=val"],
        "config.evaluation.tasks.scenes.data.split is 'val', expected train or test; set it to one "
        "of these.",
    ),
    (
        [CONFIG, WORKDIR, "--config.seed"],
        "config.seed has no value, expected a whole number; add =VALUE.",
    ),
    (
        [CONFIG, WORKDIR, "--noconfig.seed"],
        "config.seed is 'false', expected a whole number; correct it.",
    ),
    (
        [CONFIG, WORKDIR, "--confg.backbone=B"],
        "--confg.backbone is not a flag; did you mean --config.backbone?",
    ),
    (
        [CONFIG, "--wrkdir=W"],
        "--wrkdir is not a flag; did you mean --workdir?",
    ),
    (
        [CONFIG, WORKDIR, "--workdir.x=3"],
        "--workdir.x is not a flag of this command; see --help.",
    ),
    (
        [CONFIG, WORKDIR, "--colour=red"],
        "--colour is not a flag of this command; see --help.",
    ),
    (
        [CONFIG, WORKDIR, "--num_processes=two"],
        "--num_processes is 'two', expected a whole number; see --help.",
    ),
    (
        [CONFIG, WORKDIR, "--print_config=maybe"],
        "--print_config is 'maybe', expected True or False; see --help.",
    ),
    ([CONFIG], "--workdir is missing; see --help."),
    ([WORKDIR], "--config is missing; see --help."),
    (
        [CONFIG, WORKDIR],
        "config.backbone is empty, expected the model directory with the frozen backbone, written "
        "by `python -m weights_convert`; set config.backbone.",
    ),
    (
        ["--config=nowhere.py", WORKDIR],
        "the config file nowhere.py could not be loaded (there is no such file); give a file with "
        "get_config(), such as configs/quickstart.py.",
    ),
    (
        ["--config=configs", WORKDIR],
        "the config file configs could not be loaded (it is a folder); give a file with "
        "get_config(), such as configs/quickstart.py.",
    ),
    (
        ["--config=configs/dinotxt_dinov2_reg.py:vitz", WORKDIR],
        "backbone 'vitz' is unknown; choose among vits14, vitb14, vitl14, vitg14; correct "
        "--config=configs/dinotxt_dinov2_reg.py:ARGUMENT.",
    ),
    (
        ["--config=configs/quickstart.py:small", WORKDIR],
        "the config file failed at configs/quickstart.py (TypeError: get_config() takes 0 "
        "positional arguments but 1 was given); correct it.",
    ),
    (
        ["--config=FOLDER/none.py", WORKDIR],
        "the config file FOLDER/none.py has no function get_config(), expected one that returns "
        "to_config_dict(...); add it, or give a file such as configs/quickstart.py.",
    ),
    (
        ["--config=FOLDER/raises.py", WORKDIR],
        "the config file failed at FOLDER/raises.py:2 (KeyError: 'a'); correct it.",
    ),
    (
        ["--config=FOLDER/dataclass.py", WORKDIR],
        "get_config() of FOLDER/dataclass.py returned Config, expected the result of "
        "to_config_dict(...) of dinotxt_jax.config; return that.",
    ),
    (
        ["--config=FOLDER/syntax.py", WORKDIR],
        "FOLDER/syntax.py:1 is not Python (invalid syntax); correct the config file.",
    ),
    (
        ["--config=FOLDER/unknown.py", WORKDIR],
        "config.optimizer.lr is not a setting; did you mean config.optimizer.learning_rate?",
    ),
    (
        ["--config.seed=3", WORKDIR, "--print_config"],
        "--config.seed changes a setting of --config, which is missing; give --config=FILE.",
    ),
]
TAKEN = {
    "equals sign": ["--config.steps=120"],
    "space": ["--config.steps", "120"],
    "one dash": ["-config.steps=120"],
    "before the file": ["--config.steps=120"],
    "the last one": ["--config.steps=110", "--config.steps=120"],
    "bare": ["--config.text.pack", "--config.steps=120"],
    "negated": ["--noconfig.text.pack", "--config.steps=120"],
    "negative": ["--config.mesh.data", "-1", "--config.steps=120"],
}
FILES = {
    "none.py": "",
    "raises.py": "def get_config():\n    return {}['a']\n",
    "dataclass.py": "from dinotxt_jax.config import Config\nget_config = Config\n",
    "syntax.py": "def def\n",
    "unknown.py": "import ml_collections\ndef get_config():\n    "
    "return ml_collections.ConfigDict({'optimizer': {'lr': 1.0}})\n",
}
PARSER = """
import contextlib, io, json, sys
from absl import flags
from dinotxt_jax import cli_flags, train
from dinotxt_jax.errors import UserError

found = []
for arguments in json.loads(sys.stdin.read()):
    flags.FLAGS.unparse_flags()
    for name in ("config", "workdir", "print_config", "num_processes"):
        flags.FLAGS[name].unparse()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            cli_flags.parse_flags(["train", *arguments])
        config = train._CONFIG.value
        found.append([config.steps, config.text.pack, config.mesh.data, config.seed])
    except UserError as error:
        found.append(str(error))
    except SystemExit as error:
        found.append([error.code, printed.getvalue()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with unusable config files."""
    folder = tmp_path_factory.mktemp("configs")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> list:
    """Returns the results for all command lines in this file, in order."""
    refused = [
        [argument.replace("FOLDER", str(folder)) for argument in arguments]
        for arguments, _ in REFUSED
    ]
    taken = [[*arguments, CONFIG, WORKDIR, BACKBONE] for arguments in TAKEN.values()]
    printed = [[CONFIG, "--print_config", "--config.steps=300"]]
    printed += [[CONFIG, "--print_config", "--config.steps=0"]]
    result = subprocess.run(
        [sys.executable, "-c", PARSER],
        input=json.dumps(refused + taken + printed),
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    actual: list = json.loads(result.stdout)
    return actual


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_a_mistake_is_one_sentence(number: int, outcomes: list, folder: Path) -> None:
    assert outcomes[number] == REFUSED[number][1].replace("FOLDER", str(folder))


@pytest.mark.parametrize("way", TAKEN)
def test_a_setting_is_changed(way: str, outcomes: list) -> None:
    steps, pack, data, seed = outcomes[len(REFUSED) + list(TAKEN).index(way)]
    assert (steps, data, seed) == (120, -1, 0)
    assert pack is (way != "negated")


def test_the_resolved_config_is_printed(outcomes: list) -> None:
    """The work directory and the backbone, which training needs, are omitted."""
    code, text = outcomes[-2]
    assert code == 0
    assert "config.steps=300  # default: 50000\n" in text
    assert "config.evaluation.tasks.scenes.kind=retrieval\n" in text
    assert "config.backbone=\n" in text


def test_a_printed_config_is_checked(outcomes: list) -> None:
    assert outcomes[-1] == (
        "config.steps is 0, expected a number from 1 to 2^31 - 1; set it to a number in this range."
    )
