"""Buckets for tests: a server on loopback, and the variables that make all libraries use it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_SCRIPT = Path(__file__).with_name("bucket_server.py")


@contextlib.contextmanager
def serve() -> Iterator[None]:
    """Serves the buckets `pod`, `flaky` and `denied` at gs:// while the block runs.

    Commands that are started in the block use them as well.
    """
    process = subprocess.Popen([sys.executable, str(_SCRIPT)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline())
    variables = {
        "STORAGE_EMULATOR_HOST": f"http://localhost:{port}",
        "TENSORSTORE_GCS_HTTP_URL": f"http://localhost:{port}",
        # Without it, gcsfs asks the real service for the kind of each bucket, for a minute.
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        process.kill()
        process.wait()
