"""The flags of a command: config files, changes of their settings, and one sentence per mistake."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Generic, TypeVar, cast

from absl import flags

from dinotxt_jax.config import check
from dinotxt_jax.config.files import load_config
from dinotxt_jax.config.overrides import as_lines, override
from dinotxt_jax.config.ranges import declared_settings
from dinotxt_jax.errors import UserError, closest

ConfigT = TypeVar("ConfigT")


class ConfigFlag(Generic[ConfigT]):
    """A flag that names a config file; --NAME.KEY=VALUE changes one of its settings.

    Attributes:
        name: of the flag.
        cls: the dataclass of the settings.
        needs: settings that the command cannot do without.
    """

    def __init__(self, name: str, cls: type[ConfigT], needs: Sequence[str]):
        self.name, self.cls, self.needs = name, cls, tuple(needs)
        self.overrides: list[tuple[str, str | None]] = []
        self._value: ConfigT | None = None

    @property
    def value(self) -> ConfigT:
        """The checked settings, once flags are parsed; None if no file was named."""
        return cast(ConfigT, self._value)

    def resolve(self) -> ConfigT | None:
        """Reads the file and makes the changes, in their order.

        Raises:
            UserError: a file that cannot be used, or a setting that does not exist.
        """
        file = flags.FLAGS[self.name].value
        if file is None:
            if self.overrides:
                key = f"--{self.name}.{self.overrides[0][0]}"
                raise UserError(
                    f"{key} changes a setting of --{self.name}, which is missing; give "
                    f"--{self.name}=FILE."
                )
            return None
        config = load_config(file, self.cls, self.name)
        for key, text in self.overrides:
            config = override(config, key, text, self.name)
        self._value = config
        return config


_CONFIGS: dict[str, ConfigFlag[Any]] = {}


def define_config(
    name: str, cls: type[ConfigT], text: str, *, needs: Sequence[str] = (), required: bool = True
) -> ConfigFlag[ConfigT]:
    """Defines a flag for a config file.

    Args:
        name: of the flag, and the first part of the keys of settings.
        cls: the dataclass of the settings.
        text: of --help.
        needs: settings that the command cannot do without.
        required: whether the command ends without the flag.
    """
    flags.DEFINE_string(name, None, text, required=required)
    if "print_config" not in flags.FLAGS:
        flags.DEFINE_bool(
            "print_config", False, "Print all settings as they result from file and flags, and end."
        )
    _CONFIGS[name] = ConfigFlag(name, cls, needs)
    return _CONFIGS[name]


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses a command line; returns the program's name and what is no flag.

    Raises:
        UserError: a flag or setting that does not exist, or a value that it cannot have.
        SystemExit: the settings were printed.
    """
    others = _take_overrides(arguments)
    try:
        rest: list[str] = flags.FLAGS(others)
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown_flag(error.flagname)) from error
    except flags.IllegalFlagValueError as error:
        missing = _MISSING.search(str(error))
        if not missing:
            raise UserError(_wrong_value(str(error))) from error
        if not (_CONFIGS and flags.FLAGS.print_config):
            raise UserError(f"--{missing[1]} is missing; see --help.") from error
        rest = []
    except flags.Error as error:
        raise UserError(f"{' '.join(str(error).split()).rstrip('.')}; see --help.") from error
    configs = {name: flag.resolve() for name, flag in _CONFIGS.items()}
    printed = bool(_CONFIGS) and flags.FLAGS.print_config
    for name, config in configs.items():
        if config is None:
            continue
        if printed:
            print("\n".join(as_lines(config, name)))
        check(config, name, () if printed else _CONFIGS[name].needs)
    if printed:
        raise SystemExit(0)
    return rest


def _take_overrides(arguments: Sequence[str]) -> list[str]:
    """Notes --NAME.KEY=VALUE in the config flags; returns the other arguments."""
    for flag in _CONFIGS.values():
        flag.overrides.clear()
    if not _CONFIGS:
        return list(arguments)
    pattern = re.compile(rf"--?(no)?({'|'.join(_CONFIGS)})([.\[][^=]*)(?:=(.*))?", re.DOTALL)
    others: list[str] = []
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        matched = pattern.fullmatch(argument)
        if argument == "--":
            return [*others, argument, *pending]
        if matched is None:
            others.append(argument)
            continue
        negated, name, key, text = matched.groups()
        key = key.removeprefix(".")
        if negated:
            text = "false"
        elif text is None and pending and not _is_bool(_CONFIGS[name].cls, key):
            # "--config.KEY VALUE", where the value may be a negative number.
            text = None if re.match(r"--|-[a-zA-Z]", pending[0]) else pending.pop(0)
        _CONFIGS[name].overrides.append((key, text))
    return others


def _is_bool(cls: Any, key: str) -> bool:
    """Whether a dotted key names a setting that is True or False."""
    for name in key.split("."):
        types = {setting.name: setting.type for setting in declared_settings(cls)}
        cls = types.get(name)
        if not dataclasses.is_dataclass(cls):
            return cls is bool
    return False


def _own_flags() -> list[str]:
    """The flags of this project, without those of libraries."""
    names = flags.FLAGS.flags_by_module_dict()
    ours = [module for module in names if not module.startswith(("absl", "jax", "grain", "etils"))]
    return [flag.name for module in ours for flag in names[module]]


def _unknown_flag(name: str) -> str:
    first, dot, rest = name.partition(".")
    meant = closest(first, _own_flags())
    # Only a config flag has settings.
    if meant and (not dot or meant in _CONFIGS):
        return f"--{name} is not a flag; did you mean --{meant}{dot}{rest}?"
    return f"--{name} is not a flag of this command; see --help."


_MISSING = re.compile(r"flag --(\w+)=None: Flag --\w+ must have a value other than None")
_VALUE = re.compile(r"flag --(\w+)=(.*?): (.*)", re.DOTALL)
_ENUM = re.compile(r"value should be one of <(.*)>")
# What absl and Python say of a value, and what they expected.
_EXPECTED = {
    r"Non-boolean argument": "True or False",
    r"invalid literal for int\(\)": "a whole number",
    r"could not convert string to float": "a number",
}


def _wrong_value(text: str) -> str:
    """The sentence about a flag's value, from the message of absl."""
    matched = _VALUE.fullmatch(text)
    if matched is None:
        return f"{' '.join(text.split()).rstrip('.')}; see --help."
    name, value, reason = matched.groups()
    if choices := _ENUM.search(reason):
        names = choices[1].split("|")
        meant = closest(value, names)
        advice = f"did you mean {meant!r}?" if meant else "choose one of these."
        return f"--{name} is {value!r}, expected {' or '.join(names)}; {advice}"
    for pattern, expected in _EXPECTED.items():
        if re.search(pattern, reason):
            return f"--{name} is {value!r}, expected {expected}; see --help."
    return f"--{name} is {value!r}, but {' '.join(reason.split()).rstrip('.')}; see --help."
