"""Names of TPU slices, and the messages about unavailable slices."""

from __future__ import annotations

import importlib.util

import jax
import pytest

from dinotxt_jax.errors import UserError
from dinotxt_jax.planning.compiling import Target
from dinotxt_jax.planning.topologies import parse_topology
from dinotxt_jax.runtime.chips import CHIPS


@pytest.mark.parametrize(
    ("name", "kind", "shape", "slices", "chips", "devices"),
    [
        ("v5e:16x16", "v5e", (16, 16), 1, 256, 256),
        ("v4:4x4x8", "v4", (4, 4, 8), 1, 128, 128),
        ("v5p:2x2x1", "v5p", (2, 2, 1), 1, 4, 4),
        ("2*v6e:4x8", "v6e", (4, 8), 2, 64, 64),
        ("tpu7x:4x4x4", "tpu7x", (4, 4, 4), 1, 64, 128),
    ],
)
def test_names_are_understood(
    name: str, kind: str, shape: tuple[int, ...], slices: int, chips: int, devices: int
) -> None:
    result = parse_topology(name)
    assert (result.name, result.kind, result.shape, result.slices) == (name, kind, shape, slices)
    assert (result.chips, result.device_count) == (chips, devices)
    assert result.chip is CHIPS[kind]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v6e", "does not have the form KIND:AxB"),
        ("v6e:256", "does not have the form KIND:AxB"),
        ("v2:4x4", "'v2' is unknown; choose among v4, v5e, v5p, v6e, tpu7x."),
        ("v6e:3x3", "there is no slice v6e:3x3; a slice of v6e has the shape 2x2, 2x4, 4x4,"),
        ("v5e:4x4x4", "there is no slice v5e:4x4x4"),
        ("v5p:4x4", "three multiples of 4 of at most 6144 chips"),
        ("v5p:4x4x6", "three multiples of 4"),
        ("v5p:64x64x64", "at most 6144 chips"),
        ("v5p:0x4x4", "there is no slice"),
        ("0*v5e:4x4", "there is no slice 0"),
    ],
)
def test_other_names_get_the_choices(name: str, message: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_topology(name)
    assert message in str(raised.value)


def test_without_libtpu_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"libtpu, which is not installed; run pip install 'jax"):
        parse_topology("v5e:4x4").devices()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("v4:4x4x8", "v4-256"),  # TensorCores, two per chip
        ("v5p:4x4x8", "v5p-256"),
        ("v5e:16x16", "v5litepod-256"),
        ("v6e:16x16", "v6e-256"),
        ("2*v6e:8x16", "v6e-128"),  # of each slice
        ("tpu7x:4x4x4", ""),  # requested by topology, on GKE
    ],
)
def test_the_type_to_request_counts_what_the_cloud_counts(name: str, expected: str) -> None:
    topology = parse_topology(name)
    devices = [jax.devices()[0]] * topology.device_count
    assert Target(name, topology.chip, devices, topology.slices).accelerator_type == expected
