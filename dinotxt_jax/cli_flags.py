"""Command-line flags: config files, setting overrides, and one error sentence per mistake."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from absl import flags

from dinotxt_jax.config import check
from dinotxt_jax.config.files import load_config
from dinotxt_jax.config.overrides import as_lines, override
from dinotxt_jax.config.ranges import declared_settings
from dinotxt_jax.errors import UserError, closest

if TYPE_CHECKING:
    from dinotxt_jax.runtime.beam_pipelines import BeamPipelines

ConfigT = TypeVar("ConfigT")


class ConfigFlag(Generic[ConfigT]):
    """A flag that names a config file; --NAME.KEY=VALUE changes one setting from the file.

    Attributes:
        name: flag name.
        cls: the settings dataclass.
        needs: settings that the command requires.
        default: the settings if no file is given; None if there are none then.
    """

    def __init__(
        self, name: str, cls: type[ConfigT], needs: Sequence[str], default: ConfigT | None = None
    ):
        self.name, self.cls, self.needs, self.default = name, cls, tuple(needs), default
        self.overrides: list[tuple[str, str | None]] = []
        self._value: ConfigT | None = None

    @property
    def value(self) -> ConfigT:
        """The checked settings after flags are parsed; `default` if no file was given."""
        return cast(ConfigT, self._value)

    def resolve(self) -> ConfigT | None:
        """Reads the file and applies the overrides in command-line order.

        Raises:
            UserError: the file cannot be used, or a setting does not exist.
        """
        file = flags.FLAGS[self.name].value
        if file is None and self.default is None:
            if self.overrides:
                key = f"--{self.name}.{self.overrides[0][0]}"
                raise UserError(
                    f"{key} changes a setting of --{self.name}, which is missing; give "
                    f"--{self.name}=FILE."
                )
            return None
        config = self.default if file is None else load_config(file, self.cls, self.name)
        for key, text in self.overrides:
            config = override(config, key, text, self.name)
        self._value = config
        return config


_CONFIGS: dict[str, ConfigFlag[Any]] = {}


def define_config(
    name: str,
    cls: type[ConfigT],
    text: str,
    *,
    needs: Sequence[str] = (),
    required: bool = True,
    default: ConfigT | None = None,
) -> ConfigFlag[ConfigT]:
    """Defines a flag for a config file.

    Args:
        name: flag name, and the first part of each setting key.
        cls: the settings dataclass.
        text: description for --help.
        needs: settings that the command requires.
        required: whether the command exits if the flag is missing.
        default: the settings if the flag is missing, which then is not required.
    """
    flags.DEFINE_string(name, None, text, required=required and default is None)
    if "print_config" not in flags.FLAGS:
        flags.DEFINE_bool(
            "print_config",
            False,
            "Print all settings after applying the config file and the flags, and exit.",
        )
    _CONFIGS[name] = ConfigFlag(name, cls, needs, default)
    return _CONFIGS[name]


def define_beam() -> Callable[[], BeamPipelines | None]:
    """Defines --runner and --beam_options.

    Returns:
        A function for the time after parsing, which returns None without --runner. It raises
        `UserError` if Beam is not installed, if the runner or an option cannot be used, or if
        several processes were started.
    """
    runner = flags.DEFINE_string(
        "runner",
        "",
        "Apache Beam runner, such as DirectRunner, DataflowRunner, FlinkRunner or SparkRunner; by "
        "default processes on this machine do the work.",
    )
    options = flags.DEFINE_string(
        "beam_options", "", 'Options for the runner: "--project=P --region=R ...".'
    )

    def pipelines() -> BeamPipelines | None:
        """Returns the runner that the flags name, or None."""
        if not runner.value:
            if options.value:
                raise UserError("--beam_options is given without --runner; give the runner, too.")
            return None
        if importlib.util.find_spec("apache_beam") is None:
            raise UserError(
                f"--runner={runner.value} needs Apache Beam, which is not installed; run pip "
                "install 'dinotxt_jax[beam]', or leave out --runner."
            )
        from dinotxt_jax.runtime import processes
        from dinotxt_jax.runtime.beam_pipelines import BeamPipelines

        if processes.several():
            raise UserError(
                f"--runner={runner.value} is given to several processes, expected one that submits "
                "the pipeline; start the command once, with --num_processes=1."
            )
        return BeamPipelines(runner.value, options.value)

    return pipelines


def parse_flags(arguments: Sequence[str]) -> list[str]:
    """Parses a command line; returns the program name and the arguments that are not flags.

    Raises:
        UserError: a flag or setting does not exist, or cannot have the given value.
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
    """Records each --NAME.KEY=VALUE in the matching config flag; returns the other arguments."""
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
    """Returns whether a dotted key names a boolean setting."""
    for name in key.split("."):
        types = {setting.name: setting.type for setting in declared_settings(cls)}
        cls = types.get(name)
        if not dataclasses.is_dataclass(cls):
            return cls is bool
    return False


def _own_flags() -> list[str]:
    """Returns the flags that this project defines, excluding library flags."""
    names = flags.FLAGS.flags_by_module_dict()
    ours = [module for module in names if not module.startswith(("absl", "jax", "grain", "etils"))]
    return [flag.name for module in ours for flag in names[module]]


def _unknown_flag(name: str) -> str:
    first, dot, rest = name.partition(".")
    suggestion = closest(first, _own_flags())
    # Only a config flag has settings, so a dotted name must match a config flag.
    if suggestion and (not dot or suggestion in _CONFIGS):
        return f"--{name} is not a flag; did you mean --{suggestion}{dot}{rest}?"
    return f"--{name} is not a flag of this command; see --help."


_MISSING = re.compile(r"flag --(\w+)=None: Flag --\w+ must have a value other than None")
_VALUE = re.compile(r"flag --(\w+)=(.*?): (.*)", re.DOTALL)
_ENUM = re.compile(r"value should be one of <(.*)>")
# Error text from absl and Python -> description of the expected value.
_EXPECTED = {
    r"Non-boolean argument": "True or False",
    r"invalid literal for int\(\)": "a whole number",
    r"could not convert string to float": "a number",
}


def _wrong_value(text: str) -> str:
    """Converts an absl error message into the error sentence for a wrong flag value."""
    matched = _VALUE.fullmatch(text)
    if matched is None:
        return f"{' '.join(text.split()).rstrip('.')}; see --help."
    name, value, reason = matched.groups()
    if choices := _ENUM.search(reason):
        names = choices[1].split("|")
        suggestion = closest(value, names)
        advice = f"did you mean {suggestion!r}?" if suggestion else "choose one of these."
        return f"--{name} is {value!r}, expected {' or '.join(names)}; {advice}"
    for pattern, expected in _EXPECTED.items():
        if re.search(pattern, reason):
            return f"--{name} is {value!r}, expected {expected}; see --help."
    return f"--{name} is {value!r}, but {' '.join(reason.split()).rstrip('.')}; see --help."
