"""Files that grow during a run: written locally, and copied to a bucket at intervals.

Objects in a bucket cannot be appended to, and each write replaces the whole object.
"""

from __future__ import annotations

import functools
import tempfile
import threading
from pathlib import Path

from absl import logging

from dinotxt_jax.storage.addresses import Address, is_remote, upload
from dinotxt_jax.storage.retries import retried

# Seconds between two copies. A bucket accepts about one write of an object per second.
EVERY = 30.0


class Mirror:
    """A local folder whose files appear in a folder anywhere.

    For a local folder this is the folder itself, and nothing is copied. For a remote one, changed
    files are copied every `EVERY` seconds, on `copy`, and on `close`.

    Args:
        folder: where the files appear.

    Attributes:
        path: where to write them.
    """

    path: Path

    def __init__(self, folder: Address):
        self._folder = folder
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if not is_remote(folder):
            self.path = folder
            return
        self._temporary = tempfile.TemporaryDirectory(prefix="dinotxt_jax-")
        self.path = Path(self._temporary.name)
        self._copied: dict[Path, tuple[int, int]] = {}
        self._copying = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._copy_at_intervals, daemon=True)
        self._thread.start()

    def copy(self) -> None:
        """Copies the files that have changed.

        Raises:
            OSError: the storage failed repeatedly.
        """
        if self._temporary is None:
            return
        with self._copying:
            for file in sorted(self.path.rglob("*")):
                status = file.stat()
                version = (status.st_size, status.st_mtime_ns)
                if file.is_file() and self._copied.get(file) != version:
                    target = self._folder / file.relative_to(self.path).as_posix()
                    retried(functools.partial(upload, file, target))
                    self._copied[file] = version

    def close(self) -> None:
        """Copies the files for the last time, and removes the local ones."""
        if self._temporary is None:
            return
        self._stop.set()
        self._thread.join()
        try:
            self.copy()
        finally:
            self._temporary.cleanup()

    def _copy_at_intervals(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.copy()
            except Exception as error:  # the next copy includes these files
                logging.warning("%s cannot be written at the moment: %s", self._folder, error)
