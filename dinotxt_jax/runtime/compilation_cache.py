"""The persistent compilation cache: a restarted command reuses compiled programs.

The JAX cache key contains the program, the compiler options, the JAX and compiler versions, and the
devices. On CPUs the key includes the processor features, so that different machine types can share
a folder. With several processes, only the first process writes.
"""

from __future__ import annotations

import glob
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
from absl import logging

OFF = "off"
JAX_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
# Size limit in bytes for the default folder, enough for a few hundred runs with a large model.
LARGEST_DEFAULT = 4 * 2**30
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def use_compilation_cache(address: str | None, default: Path) -> None:
    """Turns the compilation cache on; must be called before anything is compiled.

    If the folder is not writable, the function logs a warning and the command runs without a cache.

    Args:
        address: a folder, a bucket address, or "off"; None uses the folder in
            JAX_COMPILATION_CACHE_DIR, or `default` if that variable is not set.
        default: default folder, limited to `LARGEST_DEFAULT` bytes: the least recently used
            programs are removed.
    """
    if address == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    chosen = address or os.environ.get(JAX_VARIABLE) or str(default)
    if "://" not in chosen:
        folder = Path(chosen).expanduser()
        if not _is_writable(folder):
            jax.config.update("jax_enable_compilation_cache", False)
            return
        _compile_damaged_programs_again(folder)
        if folder == default:
            _remove_unused(folder, LARGEST_DEFAULT)
        chosen = str(folder)
    jax.config.update("jax_compilation_cache_dir", chosen)
    if _MIN_SECONDS.upper() not in os.environ:
        # Start-up compiles many small programs, all below JAX's default minimum of one second.
        jax.config.update(_MIN_SECONDS, 0.0)


def _is_writable(folder: Path) -> bool:
    """Returns whether a folder is writable or, if the folder is missing, can be created."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            return True
    except OSError as error:
        logging.warning(
            "compiled programs are not kept: the folder %s cannot be written (%s); choose another "
            "with --compilation_cache=DIR, or --compilation_cache=off",
            folder,
            error.strerror,
        )
        return False


def _compile_damaged_programs_again(folder: Path) -> None:
    """Replaces cached programs that a killed process or a full disk left incomplete.

    When JAX reads a damaged file, it warns and compiles the program, but does not replace the file,
    so that every run would warn again. This function installs a warning hook that deletes the file;
    JAX then writes the new program.
    """
    show = warnings.showwarning

    def show_warning(message: Warning | str, *details: Any, **options: Any) -> None:
        damaged = _DAMAGED.match(str(message))
        if damaged is None:
            return show(message, *details, **options)
        for file in folder.glob(f"{glob.escape(damaged[1])}-*-cache"):
            file.unlink(missing_ok=True)
        logging.info("a damaged program in %s was removed and is compiled again", folder)
        return None

    warnings.filterwarnings("always", _DAMAGED.pattern)
    warnings.showwarning = show_warning


def _remove_unused(folder: Path, limit: int) -> None:
    """Removes the least recently used programs until the cache fits a size limit.

    Args:
        folder: cache folder.
        limit: size limit in bytes.
    """
    used = []
    for file in folder.glob("*-cache"):
        try:
            status = file.stat()
        except FileNotFoundError:  # another process also removes files
            continue
        used.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    kept_bytes = 0
    for _, size, file in sorted(used, reverse=True):
        kept_bytes += size
        if kept_bytes > limit:
            file.unlink(missing_ok=True)
