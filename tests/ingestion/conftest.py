"""A pool with examples that cannot be stored and with duplicates."""

from __future__ import annotations

from pathlib import Path

import pytest
from ingested import photo, write_pairs
from small_sets import png

from dinotxt_jax.config import DataConfig


@pytest.fixture
def mixed(tmp_path: Path) -> DataConfig:
    """Writes 40 images: four cannot be stored, and six repeat earlier ones."""
    images = [png(number) for number in range(34)]
    images[3], images[11] = b"", b"no image at all"
    images[20] = photo((30, 20), "PNG")[:400]
    images += [png(number) for number in (0, 1, 2, 8, 9, 0)]
    data = write_pairs(tmp_path / "pairs", images)
    (tmp_path / "pairs" / "025.img").unlink()
    return data
