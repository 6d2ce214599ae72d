"""How every command starts: flags, configs, and one sentence for what the user got wrong."""

from __future__ import annotations

import dataclasses
import importlib
import logging as std_logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from dinotxt_jax.config import from_dict
from dinotxt_jax.errors import UserError, exit_with

COMMANDS = {
    "convert": "weights_convert.__main__",
    "train": "dinotxt_jax.train",
    "precompute": "dinotxt_jax.precompute",
    "plan": "dinotxt_jax.plan",
    "evaluate": "dinotxt_jax.evaluate",
    "classify": "dinotxt_jax.classify",
    "segment": "dinotxt_jax.segment",
    "embed": "dinotxt_jax.embed",
}


def run(body: Callable[[], None]) -> None:
    """Parses the flags of an entry point that takes nothing else, and runs its body.

    A flag or a config key that does not exist, and every `UserError`, ends in one sentence on
    standard error and exit code 2.
    """

    def without_paths(rest: Sequence[str]) -> None:
        if rest:
            raise UserError(f"{rest[0]!r} is not a flag; flags are --NAME=VALUE, see --help.")
        body()

    run_with_paths(without_paths, "the same command goes on where it stopped")


def run_with_paths(
    body: Callable[[Sequence[str]], None], interrupted: str = "nothing was written"
) -> None:
    """As `run`, for an entry point that takes paths beside its flags.

    Args:
        body: takes the paths.
        interrupted: what an interruption means to the user.
    """

    def main(arguments: Sequence[str]) -> None:
        # Imported here, with JAX, so that help and mistakes in flags do not wait for it.
        from dinotxt_jax.runtime import processes

        logging.set_verbosity(logging.INFO)
        std_logging.getLogger("jax").setLevel(std_logging.WARNING)
        _set_format("%(levelname)s: %(message)s")
        try:
            _start_processes()
            _use_compilation_cache()
            body(arguments[1:])
        except UserError as error:
            processes.exit_without_waiting(error)
        except KeyboardInterrupt:
            print(f"interrupted; {interrupted}", file=sys.stderr)
            if processes.several():
                processes.leave(130)
            raise SystemExit(130) from None
        except Exception as error:
            if isinstance(error, OSError) and error.filename is not None:
                text = f"{error.filename}: {error.strerror}; correct the path."
                processes.exit_without_waiting(UserError(text))
            if not processes.several():
                raise
            processes.exit_after(error)

    _define_compilation_flag()
    app.run(main, flags_parser=_parse_flags)


COMPILATION_CACHE_HELP = (
    "Folder or bucket address where compiled programs are kept for the next start, or off (plan "
    "keeps none). "
    "Default: JAX_COMPILATION_CACHE_DIR, or ~/.cache/dinotxt_jax/xla."
)


def _define_compilation_flag() -> None:
    """The flag that every entry point has."""
    if "compilation_cache" not in flags.FLAGS:
        flags.DEFINE_string("compilation_cache", None, COMPILATION_CACHE_HELP)


def _use_compilation_cache() -> None:
    from dinotxt_jax.runtime.compilation_cache import use_compilation_cache
    from dinotxt_jax.storage.downloads import cache_folder

    use_compilation_cache(flags.FLAGS.compilation_cache, cache_folder() / "xla")


def define_process_flags() -> None:
    """The flags of an entry point that several processes may run together."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, to run several processes; Slurm, Open MPI, Kubernetes and TPU "
        "VMs tell by themselves. Or set JAX_COORDINATOR_ADDRESS.",
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "How many processes there are; 1 asks no launcher. Or set JAX_NUM_PROCESSES.",
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "Which of them this is, from 0. Or set JAX_PROCESS_ID.",
    )
    flags.DEFINE_integer(
        "heartbeat_timeout",
        100,
        "Seconds after which the others end because a process does not answer.",
    )


def _start_processes() -> None:
    import jax

    from dinotxt_jax.runtime import processes

    values = flags.FLAGS
    if "coordinator" not in values:
        return
    processes.start(
        values.coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        _number(values.num_processes, "JAX_NUM_PROCESSES"),
        _number(values.process_id, "JAX_PROCESS_ID"),
        values.heartbeat_timeout,
    )
    if not processes.is_first():
        logging.set_verbosity(logging.WARNING)
        _set_format(f"%(levelname)s: process {jax.process_index()}: %(message)s")


def _number(value: int | None, variable: str) -> int | None:
    """A flag's value, or an environment variable's."""
    text = os.environ.get(variable)
    if value is not None or text is None:
        return value
    if not text.isdigit():
        raise UserError(f"{variable}={text} is not a number; correct or unset it.")
    return int(text)


def _set_format(text: str) -> None:
    logging.get_absl_handler().setFormatter(std_logging.Formatter(text))


# What ml_collections says of a key that a config lacks.
_MEANT = re.compile(r"(\w+)\W+n?Did you mean \W*(\w+)")
# What Python and absl say of a value, and what they wanted.
_VALUES = {
    r"\('Non-boolean argument to boolean flag', '(.*)'\)": "True or False",
    r"invalid literal for int\(\) with base 10: '(.*)'": "a whole number",
    r"could not convert string to float: '(.*)'": "a number",
}
_MISSING = re.compile(r"flag --(\w+)=None: Flag --\w+ must have a value other than None")


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    if any(argument in ("-h", "--help", "-help", "--helpshort") for argument in arguments):
        print(_help(arguments[0]))
        raise SystemExit(0)
    try:
        rest: list[str] = flags.FLAGS(list(arguments))
        flags.FLAGS.validate_all_flags()
    except UserError as error:
        exit_with(error)
    except flags.IllegalFlagValueError as error:
        missing = _MISSING.search(str(error))
        reason = f"--{missing[1]} is missing" if missing else _one_line(error)
        exit_with(UserError(f"{reason}; see --help."))
    except SyntaxError as error:
        where = f"{error.filename}:{error.lineno}"
        exit_with(UserError(f"{where} is not Python ({error.msg}); correct the config file."))
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = _one_line(error)
        if unknown := re.fullmatch(r"\W*(\w+)\W*", reason):
            named = next((a for a in arguments if unknown[1] in re.split(r"[.=]", a)), reason)
            reason = f"{named} sets a key that the config does not have"
        exit_with(UserError(f"{reason}; see --help."))
    return rest


def _help(program: str) -> str:
    """The entry point's docstring and its own flags."""
    # `dinotxt NAME` has imported the entry point, `python -m` runs it as __main__.
    main = sys.modules.get(COMMANDS.get(program, ""), sys.modules["__main__"])
    own = flags.FLAGS.get_key_flags_for_module(main) or []
    own += flags.FLAGS.get_key_flags_for_module(__name__) or []
    lines = [(main.__doc__ or "").strip(), "", "flags:"]
    for flag in own:
        default = f" (default: {flag.default})" if flag.default not in (None, "") else ""
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    if any(flag.name == "config" for flag in own):
        lines.append("  --config.KEY=VALUE: a setting of it; dinotxt_jax/config/ explains all")
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    text = str(error.args[0]) if error.args else str(error)
    if "Traceback (most recent call last)" in text:  # raised in the config file: its last line
        text = text.strip().splitlines()[-1]
    text = re.sub(r"^ValueError: ", "", text)
    for pattern, expected in _VALUES.items():
        text = re.sub(pattern, rf"{expected} was expected, not '\1'", text)
    if meant := _MEANT.search(text):
        return f"the config has no key {meant[1]!r}, did you mean {meant[2]}?"
    return " ".join(text.split()).rstrip(".")


DataclassT = TypeVar("DataclassT")


def checked(
    config: ml_collections.ConfigDict, cls: type[DataclassT], flag: str = "config"
) -> DataclassT:
    """The value of a config flag as a dataclass; raises `UserError` for what is wrong in it."""
    if dataclasses.is_dataclass(config):
        raise UserError(
            f"get_config() returned {type(config).__name__}, expected what to_config_dict(...) of "
            "dinotxt_jax.config makes; return that."
        )
    try:
        values = config.to_dict()
    except OSError as error:  # the flag was parsed, but its file could not be loaded
        file = config_flags.get_config_filename(flags.FLAGS[flag])
        reason = _one_line(error) if Path(file).exists() else "there is no such file"
        raise UserError(
            f"the config file {file} could not be loaded ({reason}); give a file with "
            "get_config(), such as configs/quickstart.py."
        ) from error
    return from_dict(cls, values)


def dispatch() -> None:
    """`dinotxt NAME ...`: the same as `python -m` of that entry point."""
    names = ", ".join(COMMANDS)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: dinotxt COMMAND [flags]\n\ncommands: {names}\n\ndinotxt COMMAND --help")
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    name = sys.argv.pop(1)
    if name not in COMMANDS:
        exit_with(UserError(f"{name!r} is not a command; choose among {names}."))
    sys.argv[0] = name
    module = importlib.import_module(COMMANDS[name])
    raise SystemExit(module.main())


if __name__ == "__main__":
    dispatch()
