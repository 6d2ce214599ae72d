"""Shared fixtures for the conversion tests."""

from pathlib import Path

import pytest
from torch_files import TorchFiles


@pytest.fixture
def torch_files(tmp_path: Path) -> TorchFiles:
    """Writes torch files into the test's folder."""
    return TorchFiles(tmp_path)
