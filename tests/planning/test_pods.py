"""The shipped pod configs: each names a topology on which the real step compiles and fits."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dinotxt_jax.config import Config, from_dict
from dinotxt_jax.planning.topologies import parse_topology

ROOT = Path(__file__).parents[2]
SHIPPED = {
    "dinotxt_dinov2_reg": ("vits14", "vitb14", "vitl14", "vitg14"),
    "dinotxt_dinov3": ("vitl16", "vit7b16"),
}


def file_of(name: str) -> Path:
    return ROOT / "configs" / f"{name}.py"


def shipped(name: str, backbone: str) -> Config:
    spec = importlib.util.spec_from_file_location("pod", file_of(name))
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert SHIPPED[name] == module.BACKBONES
    return from_dict(Config, module.get_config(backbone).to_dict())


@pytest.mark.parametrize(
    ("name", "backbone"), [(name, one) for name, result in SHIPPED.items() for one in result]
)
def test_a_pod_config_names_a_topology_that_its_batch_divides_over(
    name: str, backbone: str
) -> None:
    config = shipped(name, backbone)
    devices = parse_topology(config.topology).device_count
    assert devices >= 64
    assert config.batch_size % devices == 0
    assert devices % config.mesh.fsdp == 0


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is missing"
)
@pytest.mark.parametrize("backbone", ["vits14", "vitl14"])
def test_a_pod_config_fits_its_topology(backbone: str, tmp_path: Path) -> None:
    config = f"--config={file_of('dinotxt_dinov2_reg')}:{backbone}"
    output = f"--output={tmp_path}"
    result = subprocess.run(
        [sys.executable, "-m", "dinotxt_jax.plan", config, output],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (plan,) = json.loads((tmp_path / "plan.json").read_text())["plans"]
    memory = plan["compiled"]["memory_bytes_per_device"]
    assert plan["fits"]
    assert 0 < memory["temporaries"] < memory["limit"]
    # Products are spread evenly and not repeated, except for the drawing of examples by drop path.
    assert plan["compiled"]["flops_per_device"] * plan["devices"] == pytest.approx(
        plan["traced"]["flops_all_devices"], rel=0.1
    )
