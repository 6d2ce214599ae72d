"""The persistent compilation cache, by which a restarted command does not compile again.

JAX keeps compiled programs under a key of the program, its compiler options, the versions of JAX
and of the compiler, and the devices. On CPUs the key includes the features of the processor, so
that machines of different kinds can share a folder. Of several processes the first one writes.
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
# A folder that nobody chose is kept below this size, which is a few hundred runs of a large model.
LARGEST_DEFAULT = 4 * 2**30
_DAMAGED = re.compile(r"Error reading persistent compilation cache entry for '([^']+)'")
_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"


def use_compilation_cache(address: str | None, default: Path) -> None:
    """Keeps compiled programs from now on; must come before anything is compiled.

    A folder that cannot be written is a warning: the command runs without a cache.

    Args:
        address: a folder, the address of a bucket, or "off"; None stands for the folder that
            JAX_COMPILATION_CACHE_DIR names, or without that variable for `default`.
        default: kept small: the programs that were not used for the longest time are removed.
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
        # Start-up compiles many small programs, none of which reaches JAX's own limit of a second.
        jax.config.update(_MIN_SECONDS, 0.0)


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or where it is missing, the folder itself."""
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
    """Replaces programs that a killed process or a full disk left incomplete.

    JAX then warns and compiles, but leaves the damaged file where it is, and would warn in every
    run. Once the file is gone, JAX writes the new program.
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
    """Removes the programs that were not used for the longest time, until the others fit a limit.

    Args:
        folder: the cache.
        limit: bytes.
    """
    used = []
    for file in folder.glob("*-cache"):
        try:
            status = file.stat()
        except FileNotFoundError:  # another process removes, too
            continue
        used.append((max(status.st_atime, status.st_mtime), status.st_size, file))
    kept = 0
    for _, size, file in sorted(used, reverse=True):
        kept += size
        if kept > limit:
            file.unlink(missing_ok=True)
