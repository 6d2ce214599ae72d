"""Generator for docs/configuration.md: every setting with default, range and meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from dinotxt_jax.config.checking import is_group, keys_of, type_name
from dinotxt_jax.config.curation import CurationConfig
from dinotxt_jax.config.evaluation import EvaluationConfig, TaskConfig
from dinotxt_jax.config.ingestion import IngestionConfig
from dinotxt_jax.config.ranges import Setting, declared_settings
from dinotxt_jax.config.sources import MixtureConfig, SourceConfig
from dinotxt_jax.config.training import Config

_INTRODUCTION = """\
<!-- Written by `python -m dinotxt_jax.config`; change the declarations in dinotxt_jax/config/. -->
# Settings

A file in `configs/` returns the settings that differ from the defaults; `--config.KEY=VALUE`
changes one of them on the command line. `--print_config` shows the result and ends. A value outside
of its range ends the command before anything is read or written.

A tuple is given as `--config.data.crop_scale='(0.5, 1)'`, and one item of it as
`--config.data.crop_scale[0]=0.5`; `""` is the empty text.

"""
_TRAINING = """
## Training

{meaning} `python -m dinotxt_jax.train`, `.precompute` and `.plan` read these settings with
`--config`.
"""
_EVALUATION = """
## Evaluation

{meaning} `python -m dinotxt_jax.evaluate` reads these settings with `--config` and
`python -m dinotxt_jax.plan` with `--eval`; in training they belong to `config.evaluation`.
"""
_TASK = """
## Tasks

{meaning} Its settings are changed by the name of the task: `--config.tasks.NAME.KEY=VALUE`, in
training `--config.evaluation.tasks.NAME.KEY=VALUE`.
"""
_MIXTURE = """
## Mixtures

{meaning} Each has the settings of [config.data](#configdata) from `source` to `max_aspect_ratio`,
and a weight. They are changed by the name of the source: `--config.data.mixture.NAME.KEY=VALUE`.
"""
_CURATION = """
## Curation

{meaning} `python -m dinotxt_jax.curate` reads these settings, also without a config file.
"""
_INGESTION = """
## Ingestion

{meaning} `python -m dinotxt_jax.ingest` reads these settings, also without a config file.
"""
_PARTS = (
    (Config(), "config", _TRAINING),
    (MixtureConfig(), "config.data.mixture.NAME", _MIXTURE),
    (EvaluationConfig(), "config", _EVALUATION),
    (TaskConfig(), "config.tasks.NAME", _TASK),
    (CurationConfig(), "config", _CURATION),
    (IngestionConfig(), "config", _INGESTION),
)


def document() -> str:
    """Returns the text of docs/configuration.md."""
    contents, lines = [], []
    tables: dict[type, str] = {}  # group class -> key under which the table is printed
    for defaults, key, introduction in _PARTS:
        title = introduction.split("\n")[1].removeprefix("## ")
        contents.append(f"- [{title}](#{_anchor(title)})")
        lines += [introduction.format(meaning=_meaning(defaults)), *_table(defaults, key)]
        for inner, inner_key in _groups(defaults, key):
            if tables.get(type(inner)) == inner_key:
                link = f"[{inner_key}](#{_anchor(inner_key)})"
                lines.append(f"\nThe settings of {link} belong to it{_changed(inner)}.")
                continue
            contents.append(f"  - [{inner_key}](#{_anchor(inner_key)})")
            lines += [f"\n### {inner_key}\n", _meaning(inner), ""]
            if type(inner) in tables:
                lines += _difference(inner, tables[type(inner)])
            else:
                tables[type(inner)] = inner_key
                lines += _table(inner, inner_key)
    return _INTRODUCTION + "\n".join([*contents, *lines]) + "\n"


def _anchor(title: str) -> str:
    """Returns the anchor that GitHub generates for a heading."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _meaning(group: Any) -> str:
    return (type(group).__doc__ or "").split("\n\n")[0]


def _groups(config: Any, key: str) -> Iterator[tuple[Any, str]]:
    """Yields (defaults, key) for nested groups, except evaluation groups (a separate part)."""
    cls: type = type(config)
    for setting in declared_settings(cls):
        if is_group(setting.type) and setting.type is not EvaluationConfig:
            inner = getattr(config, setting.name)
            yield inner, f"{key}.{setting.name}"
            yield from _groups(inner, f"{key}.{setting.name}")


def _table(defaults: Any, key: str) -> Iterator[str]:
    """Yields the table lines for the settings of a group, excluding nested groups."""
    yield "| key | default | values | meaning |"
    yield "|---|---|---|---|"
    cls: type = type(defaults)
    # The table of config.data lists the settings that a mixture repeats for each source.
    elsewhere = keys_of(SourceConfig) if cls is MixtureConfig else []
    for setting in declared_settings(cls):
        if not is_group(setting.type) and setting.name not in elsewhere:
            cells = (
                f"`{key}.{setting.name}`",
                _value(getattr(defaults, setting.name)),
                _values(setting),
                setting.meaning,
            )
            yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _difference(group: Any, key: str) -> Iterator[str]:
    """Yields a link to the table of a group, printed elsewhere, with the differing defaults."""
    yield f"The settings of [{key}](#{_anchor(key)}){_changed(group)}."


def _changed(group: Any) -> str:
    """Returns the defaults that differ from those in the table of a group; may be empty."""
    cls: type = type(group)
    usual = cls()
    changed = [
        f"`{setting.name}` is {_value(getattr(group, setting.name))}"
        for setting in declared_settings(cls)
        if getattr(group, setting.name) != getattr(usual, setting.name)
    ]
    return f"; by default {' and '.join(changed)} here" if changed else ""


def _values(setting: Setting) -> str:
    if setting.rule is None:
        return type_name(setting.type)
    if setting.type in (int, float, str):
        return str(setting.rule)
    return f"{type_name(setting.type)}, each {setting.rule}"


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "none"
    if isinstance(value, tuple):
        items = [repr(item) if isinstance(item, str) else f"{item:.4g}" for item in value]
        return f"`({', '.join(items)}{',' * (len(items) == 1)})`"
    return '`""`' if value == "" else f"`{value}`"
