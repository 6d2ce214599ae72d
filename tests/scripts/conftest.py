from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from clouds import Cloud, cloud_in


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    yield from cloud_in(tmp_path / "cloud")
