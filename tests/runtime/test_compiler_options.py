"""The options passed to the compiler on CPUs, and the cases without options."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from tolerances import assert_same

import dinotxt_jax as dt
from dinotxt_jax.models.attention import choose
from dinotxt_jax.runtime import compiler_options as module
from dinotxt_jax.runtime.compiler_options import compiler_options

OPTION = "xla_cpu_experimental_ynn_fusion_type"


def test_float32_products_on_cpus_are_left_to_xla(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "")
    assert compiler_options(["float32"]) == {OPTION: ""}
    assert compiler_options(["float32", "bfloat16"]) == {}


def test_user_flags_take_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--{OPTION}=LIBRARY_FUSION_TYPE_DOT")
    assert compiler_options(["float32"]) == {}


@pytest.mark.parametrize(
    ("flag", "used"), [("", True), ("=true", True), ("=false", False), ("_x=true", False)]
)
def test_products_that_go_to_onednn_are_left_as_they_are(
    flag: str, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--xla_cpu_experimental_onednn_custom_call{flag} --xla_other")
    assert compiler_options(["float32"]) == ({} if used else {OPTION: ""})
    assert choose("auto", "cpu", ("float32",), (64,)) == ("xla" if used else "grouped")
    assert choose("grouped", "cpu", ("float32",), (64,)) == "grouped"


def test_accelerators_get_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    assert compiler_options(["float32"]) == {}


def test_a_compiler_without_the_option_is_not_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARY", "xla_cpu_no_such_option")
    module._is_known.cache_clear()
    assert compiler_options(["float32"]) == {}
    module._is_known.cache_clear()


def test_a_model_can_be_part_of_a_larger_compiled_function(tiny_backbone: Path) -> None:
    backbone = dt.load_backbone(tiny_backbone)
    images = jnp.ones((2, 28, 28, 3))
    larger = jax.jit(lambda images: 2 * backbone(images).class_token)
    assert_same(larger(images), 2 * backbone(images).class_token)
