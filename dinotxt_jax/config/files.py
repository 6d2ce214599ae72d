"""Config files: Python files whose `get_config()` returns a `ConfigDict`."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import ml_collections

from dinotxt_jax.config.checking import from_dict
from dinotxt_jax.errors import UserError

DataclassT = TypeVar("DataclassT")


def load_config(name: str, cls: type[DataclassT], where: str = "config") -> DataclassT:
    """Loads the settings from a config file.

    Args:
        name: FILE, or FILE:ARGUMENT, where the argument is passed to `get_config`.
        cls: the dataclass to return.
        where: root key in error messages.

    Raises:
        UserError: the file is missing or fails, or `cls` does not have a setting from the file.
    """
    file, colon, argument = name.partition(":")
    get_config = _get_config(Path(file))
    config = _called(file, get_config, *([argument] if colon else []))
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"get_config() of {file} returned {type(config).__name__}, expected the result of "
            "to_config_dict(...) of dinotxt_jax.config; return that."
        )
    return from_dict(cls, config.to_dict(), where)


def _get_config(file: Path) -> Callable[..., Any]:
    if not file.is_file():
        reason = "it is a folder" if file.is_dir() else "there is no such file"
        raise UserError(
            f"the config file {file} could not be loaded ({reason}); give a file with "
            "get_config(), such as configs/quickstart.py."
        )
    loader = importlib.machinery.SourceFileLoader(f"config_file_{file.stem}", str(file))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # `dataclasses` looks up the defining module by name
    _called(str(file), lambda: loader.exec_module(module))
    if not callable(getattr(module, "get_config", None)):
        raise UserError(
            f"the config file {file} has no function get_config(), expected one that returns "
            "to_config_dict(...); add it, or give a file such as configs/quickstart.py."
        )
    get_config: Callable[..., Any] = module.get_config
    return get_config


def _called(file: str, function: Callable[..., Any], *arguments: str) -> Any:
    """Calls a function from a config file and converts errors into one sentence."""
    try:
        return function(*arguments)
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(
            f"{error.filename}:{error.lineno} is not Python ({error.msg}); correct the config file."
        ) from error
    except ValueError as error:  # a config file raises ValueError to reject the argument
        raise UserError(f"{_one_line(error)}; correct --config={file}:ARGUMENT.") from error
    except Exception as error:
        lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
        where = f"{file}:{lines[-1]}" if lines else file
        raise UserError(
            f"the config file failed at {where} ({type(error).__name__}: {_one_line(error)}); "
            "correct it."
        ) from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")
