"""Tokenizers that several test files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dinotxt_jax import tokenizers
from dinotxt_jax.tokenizers import ClipTokenizer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def vocabulary() -> Path:
    shared = ROOT.parent / "shared" / "data" / "clip_bpe" / tokenizers.CLIP_VOCABULARY_FILE
    path = Path(os.environ.get("DINOTXT_CLIP_VOCABULARY", shared))
    if not path.is_file():
        pytest.skip(f"no CLIP vocabulary at {path}; set DINOTXT_CLIP_VOCABULARY to its path")
    return path


@pytest.fixture(scope="session")
def clip(vocabulary: Path) -> ClipTokenizer:
    return ClipTokenizer(vocabulary)
