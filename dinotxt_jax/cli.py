"""How every command starts: flags, configs, and one sentence for what the user got wrong."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging as std_logging
import os
import re
import resource
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from dinotxt_jax import cli_flags
from dinotxt_jax.errors import UserError, closest, exit_with

COMMANDS = {
    "convert": "weights_convert.__main__",
    "train": "dinotxt_jax.train",
    "ingest": "dinotxt_jax.ingest",
    "precompute": "dinotxt_jax.precompute",
    "status": "dinotxt_jax.status",
    "plan": "dinotxt_jax.plan",
    "evaluate": "dinotxt_jax.evaluate",
    "compare": "dinotxt_jax.compare",
    "curate": "dinotxt_jax.curate",
    "classify": "dinotxt_jax.classify",
    "segment": "dinotxt_jax.segment",
    "embed": "dinotxt_jax.embed",
    "push": "dinotxt_jax.push",
    "models": "dinotxt_jax.models.__main__",
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

    run_with_paths(without_paths, "run the same command again to continue")


def run_with_paths(
    body: Callable[[Sequence[str]], None], interrupted: str = "nothing was written"
) -> None:
    """As `run`, for an entry point that takes paths beside its flags.

    Args:
        body: takes the paths.
        interrupted: what an interruption means to the user.
    """

    def main(arguments: Sequence[str]) -> None:
        """Prepares logging, caches and processes, and runs the body with the parsed flags."""
        unset_empty_variables()
        # Imported here, with JAX, so that help and mistakes in flags do not wait for it.
        from dinotxt_jax.runtime import processes
        from dinotxt_jax.storage import object_cache
        from dinotxt_jax.storage.checksums import CHECKSUMS_VARIABLE, is_verifying
        from dinotxt_jax.storage.faults import storage_fault

        logging.set_verbosity(logging.INFO)
        std_logging.getLogger("jax").setLevel(std_logging.WARNING)
        _set_format("%(levelname)s: %(message)s")
        try:
            raise_file_limit()
            if not flags.FLAGS.checksums:
                os.environ[CHECKSUMS_VARIABLE] = "off"  # also for processes that decode images
            _set_object_cache()
            # An unusable value of a variable ends the command here.
            is_verifying()
            object_cache.limit()
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
            fault = storage_fault(error)
            if fault is not None:
                processes.exit_without_waiting(fault)
            if not processes.several():
                raise
            processes.exit_after(error)

    _define_common_flags()
    app.run(main, flags_parser=_parse_flags)


def raise_file_limit() -> None:
    """Raises the soft limit on open files to the hard limit: data may be in thousands of files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # some systems allow less than they report
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def unset_empty_variables() -> None:
    """Removes empty variables for JAX and launchers: job templates set them to mean "unset".

    JAX reads some of them when it is imported, and takes an empty text for a mistake.
    """
    for name, value in list(os.environ.items()):
        if not value and name.startswith(("JAX_", "OMPI_", "SLURM_")):
            del os.environ[name]


CHECKSUMS_HELP = (
    "Compare model directories and feature caches with their checksums when they are read; "
    "--nochecksums skips this for huge ones, as does DINOTXT_CHECKSUMS=off."
)
CACHE_DIR_HELP = (
    "Folder for downloads, indexes, and local copies of what is read from buckets. Default: "
    "DINOTXT_CACHE, or ~/.cache/dinotxt_jax."
)
CACHE_GIB_HELP = (
    "Limit of the local copies, in GiB: one for byte ranges, and one for whole files. Default: "
    "DINOTXT_CACHE_GIB, or 20."
)
MODEL_HELP = (
    "Model directory; or hf://ORG/NAME[@REVISION], which is fetched and converted once; or a name "
    "from python -m dinotxt_jax.models."
)
COMPILATION_CACHE_HELP = (
    "Folder or bucket address where compiled programs are kept for the next start, or off (plan "
    "keeps none). "
    "Default: JAX_COMPILATION_CACHE_DIR, or ~/.cache/dinotxt_jax/xla."
)


def _define_common_flags() -> None:
    """Defines the flags that every entry point has."""
    if "compilation_cache" not in flags.FLAGS:
        flags.DEFINE_string("compilation_cache", None, COMPILATION_CACHE_HELP)
        flags.DEFINE_boolean("checksums", True, CHECKSUMS_HELP)
        flags.DEFINE_string("cache_dir", None, CACHE_DIR_HELP)
        flags.DEFINE_float("cache_gib", None, CACHE_GIB_HELP, lower_bound=0.0)


def _set_object_cache() -> None:
    """Passes the flags on in variables, which processes that decode images inherit."""
    from dinotxt_jax.storage.downloads import CACHE_VARIABLE
    from dinotxt_jax.storage.object_cache import LIMIT_VARIABLE

    if flags.FLAGS.cache_dir:
        os.environ[CACHE_VARIABLE] = flags.FLAGS.cache_dir
    if flags.FLAGS.cache_gib is not None:
        os.environ[LIMIT_VARIABLE] = str(flags.FLAGS.cache_gib)


def _use_compilation_cache() -> None:
    from dinotxt_jax.runtime.compilation_cache import use_compilation_cache
    from dinotxt_jax.storage.downloads import cache_folder

    use_compilation_cache(flags.FLAGS.compilation_cache, cache_folder() / "xla")


def define_process_flags() -> None:
    """The flags of an entry point that several processes may run together."""
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, to run several processes; detected on Slurm, Open MPI, "
        "Kubernetes and TPU VMs. Or set JAX_COORDINATOR_ADDRESS.",
    )
    flags.DEFINE_integer(
        "num_processes",
        None,
        "Number of processes; 1 ignores launchers. Or set JAX_NUM_PROCESSES.",
    )
    flags.DEFINE_integer(
        "process_id",
        None,
        "Index of this process, from 0. Or set JAX_PROCESS_ID.",
    )
    flags.DEFINE_integer(
        "heartbeat_timeout",
        100,
        "Seconds without an answer from a process after which the other processes stop.",
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


def _parse_flags(arguments: Sequence[str]) -> list[str]:
    requested = set(arguments)
    if requested & {"-h", "--help", "-help", "--helpshort"}:
        print(_help(arguments[0]))
        raise SystemExit(0)
    if "--version" in requested:
        print(version())
        raise SystemExit(0)
    try:
        return cli_flags.parse_flags(arguments)
    except UserError as error:
        exit_with(error)


def version() -> str:
    """The versions of this project and of the libraries that decide its results."""
    names = ("dinotxt_jax", "jax", "flax")
    python = ".".join(map(str, sys.version_info[:3]))
    return ", ".join([*(f"{name} {_version_of(name)}" for name in names), f"Python {python}"])


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        project = Path(__file__).parents[1] / "pyproject.toml"
        return str(tomllib.loads(project.read_text())["project"]["version"])


def _help(program: str) -> str:
    """The entry point's docstring and its own flags."""
    # `dinotxt NAME` has imported the entry point, `python -m` runs it as __main__.
    main = sys.modules.get(COMMANDS.get(program, ""), sys.modules["__main__"])
    command_flags = flags.FLAGS.get_key_flags_for_module(main) or []
    for module in (__name__, cli_flags.__name__):
        command_flags += flags.FLAGS.get_key_flags_for_module(module) or []
    lines = [(main.__doc__ or "").strip(), "", "flags:"]
    for flag in command_flags:
        default = f" (default: {flag.default})" if flag.default not in (None, "") else ""
        text = re.sub(r"^<[^>]*>: ", "", flag.help)  # absl repeats the choices
        lines.append(f"  --{flag.name}: {text}{default}")
    if any(flag.name == "config" for flag in command_flags):
        lines.append(
            "  --config.KEY=VALUE: a setting in the config; docs/configuration.md explains all"
        )
    return "\n".join(lines)


def description(module: str) -> str:
    """The first sentence of a module's docstring, without importing it."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def _overview() -> str:
    """The commands, and a line about each."""
    wide = max(map(len, COMMANDS))
    lines = [f"  {name:{wide}}  {description(module)}" for name, module in COMMANDS.items()]
    return "\n".join(
        ["usage: dinotxt COMMAND [flags]", "", "commands:", *lines, "", "dinotxt COMMAND --help"]
    )


def dispatch() -> None:
    """`dinotxt NAME ...`: the same as `python -m` of that entry point."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help", "help"):
        print(_overview())
        raise SystemExit(0 if len(sys.argv) > 1 else 2)
    if sys.argv[1] == "--version":
        print(version())
        raise SystemExit(0)
    name = sys.argv.pop(1)
    if name not in COMMANDS:
        suggestion = closest(name, COMMANDS)
        advice = (
            f"did you mean {suggestion}?" if suggestion else f"choose among {', '.join(COMMANDS)}."
        )
        exit_with(UserError(f"{name!r} is not a command; {advice}"))
    sys.argv[0] = name
    module = importlib.import_module(COMMANDS[name])
    raise SystemExit(module.main())


if __name__ == "__main__":
    dispatch()
