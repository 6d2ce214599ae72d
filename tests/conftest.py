"""Eight pretend devices for every test, and the places where reference data may lie."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The second flag: JAX 0.12 may start independent collectives of one program in another order on
# each pretend device, which deadlocks where there are fewer cores than devices.
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_cpu_enable_concurrency_optimized_scheduler=false",
    )
)

import pytest

ROOT = Path(__file__).parent.parent
GOLDENS = ROOT / "tests" / "goldens"
SHARED = ROOT.parent / "shared"


@pytest.fixture
def goldens() -> Path:
    """The small reference arrays that are part of the project."""
    return GOLDENS


@pytest.fixture
def shared_goldens() -> Path:
    """The whole set of reference arrays, which is not part of the project."""
    folder = SHARED / "goldens"
    if not folder.is_dir():
        pytest.skip("the full reference arrays are not beside this checkout (../shared/goldens)")
    return folder


@pytest.fixture
def shared_data() -> Path:
    """Small real data sets and weights, which are not part of the project."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("the real data sets are not beside this checkout (../shared/data)")
    return folder


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference DINOv2 (4 registers, random weights) as a model directory."""
    return _converted(tmp_path_factory, "backbones/dinov2_tiny_reg.pth")


@pytest.fixture(scope="session")
def tiny_dinotxt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference dino.txt (vocabulary of 133, no tokenizer) as a model directory."""
    return _converted(
        tmp_path_factory,
        "backbones/dinov2_tiny_reg.pth",
        "dinotxt_v2/vision_head.safetensors",
        "dinotxt_v2/text_encoder.safetensors",
    )


def _converted(tmp_path_factory: pytest.TempPathFactory, *files: str) -> Path:
    from weights_convert.architecture import parse_settings
    from weights_convert.convert import convert

    output = tmp_path_factory.mktemp("models") / "model"
    heads = ["num_heads=4", "text_num_heads=4"][: 1 + (len(files) > 1)]
    sources = [GOLDENS / file for file in files]
    convert(sources, output, settings=parse_settings(heads), show_progress=False)
    return output
