"""The train step against twenty steps of the official loop, and across meshes.

In float64 the steps equal the official steps to the last digits: that proves the formulas. Float32
is then compared with float64: gradients within the gradients' own rounding errors, and
trajectories within the differences caused by rounding the parameters (`loss_bounds`).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from flax import nnx
from packed import captions
from reference_steps import CONFIG, Run, float64_run, golden, in_float64, setting
from tolerances import (
    EXACT,
    ROUNDING,
    SCHEDULE_ROUNDINGS,
    SUM_OVER_TOKENS,
    assert_exact,
    assert_rounded,
)

from dinotxt_jax import UserError, sharding
from dinotxt_jax.config import (
    HeadTrainingConfig,
    LossConfig,
    PrecisionConfig,
    TextTrainingConfig,
)
from dinotxt_jax.models.blocks import Attention
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.training.models import create_model
from dinotxt_jax.training.step import make_trainer

# Four roundings of the largest possible logit, exp(logit_scale) = 1 / 0.07: in the features, in
# the product of features, and in the sum over the batch.
LOSS_ERROR = 4 * ROUNDING / 0.07


def all_steps(*cases: tuple[Any, ...]) -> list[Any]:
    """Returns the cases with all twenty steps, for `make slow`.

    Every first-step gradient is compared, and four steps (the learning rate is 0 in the first) show
    that updates reach all parameter shards. Only the float64 run always takes all twenty.
    """
    return [pytest.param(*case, 20, marks=pytest.mark.slow) for case in cases]


def loss_bounds(grad_norm: np.ndarray) -> np.ndarray:
    """Returns the allowed loss difference between float32 and float64 runs, for each step.

    Every update rounds the parameters, whose magnitudes are about 1, in float32; the loss moves by
    the inner product with the gradient. Storing the float64 parameters in float32 gives 1.6e-6
    after the first update, most of the distance of any float32 run, including the official one.
    The bound is four times this for all updates so far, as if every rounding had the same sign as
    the gradient.

    Args:
        grad_norm: from the float64 run, [steps].
    """
    updates = np.concatenate([[0.0], np.cumsum(grad_norm)[:-1]])
    return 4 * ROUNDING * updates + LOSS_ERROR


def assert_undecided(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Asserts that a float32 trajectory is as near to the float64 one as rounding allows."""
    steps = len(actual["loss"])
    norm, updates = expected["grad_norm"][:steps], np.arange(steps)
    for name, bound in (
        ("loss", loss_bounds(norm)),
        # The gradient rounding, four times, because the rounded parameters move the gradient, too;
        # and once more for each update, which Adam makes from rounded gradients.
        ("grad_norm", SUM_OVER_TOKENS * ROUNDING * (4 + updates) * norm),
        # The rounding of the stored number, once for each update.
        ("logit_scale", 2 * ROUNDING * (1 + updates) * expected["logit_scale"][:steps]),
    ):
        ratio = np.abs(actual[name] - expected[name][:steps]) / bound
        assert ratio.max() <= 1, f"{name} is off by {ratio} times the error of float32"


def assert_same_gradients(actual: Run, expected: Run, compare: Any) -> None:
    """Applies `compare(array, expected, name)` to every array in the first step's gradients."""
    leaves = jax.tree_util.tree_leaves_with_path(actual.gradients)
    for (path, array), other in zip(leaves, jax.tree.leaves(expected.gradients), strict=True):
        compare(array, other, name=jax.tree_util.keystr(path))


def assert_equal_in_float64(actual: Run, expected: Run) -> None:
    """Asserts that two float64 runs over the same steps agree in every metric and every array."""
    for name, values in expected.metrics.items():
        assert_exact(actual.metrics[name], values, name)
    assert_same_gradients(actual, expected, assert_exact)
    jax.tree.map(assert_exact, actual.trainable, expected.trainable)


def assert_official_in_float64(result: dict[str, np.ndarray]) -> None:
    """Asserts that the losses of a float64 run equal the official loop's in float64."""
    steps = len(result["loss"])
    assert_exact(result["loss"], golden()["loss_f64"][:steps], "loss")
    assert_exact(result["learning_rate"], golden()["lr"][:steps], "learning_rate")


assert_rounded_gradients = functools.partial(
    assert_same_gradients, compare=functools.partial(assert_rounded, roundings=SUM_OVER_TOKENS)
)


def test_float64_steps_equal_the_official_loop(tiny_dinotxt: Path) -> None:
    """The official float32 loop is also as near to these steps as float32 allows."""
    result = float64_run(tiny_dinotxt).metrics
    assert_official_in_float64(result)
    official = {"loss": golden()["loss"], "grad_norm": golden()["grad_norm"]}
    assert_undecided(official | {"logit_scale": golden()["logit_scale_before"]}, result)


@pytest.mark.parametrize("steps", [4, *all_steps(())])
def test_sharded_packed_float64_steps_equal_the_official_loop(
    tiny_dinotxt: Path, steps: int
) -> None:
    config = dataclasses.replace(in_float64(CONFIG), loss=LossConfig(chunk=12))
    result = setting(tiny_dinotxt, config, 2, 2, 2).run(steps, pack=True)
    assert_official_in_float64(result.metrics)
    assert_equal_in_float64(result, float64_run(tiny_dinotxt, steps))


@pytest.mark.parametrize(
    ("mesh", "chunk", "pack", "steps"),
    [
        ((8, 1, 1), 2048, False, 4),
        ((1, 2, 4), 12, True, 4),
        *all_steps(
            ((1, 1, 1), 6, False),
            ((8, 1, 1), 2048, False),
            ((4, 1, 1), 12, True),
            ((2, 4, 1), 2048, True),
            ((2, 2, 2), 2048, False),
            ((1, 2, 4), 2048, True),
        ),
    ],
)
def test_float32_steps_are_as_near_to_the_official_loop_as_rounding_allows(
    tiny_dinotxt: Path, mesh: tuple[int, int, int], chunk: int, pack: bool, steps: int
) -> None:
    config = dataclasses.replace(CONFIG, loss=LossConfig(chunk=chunk))
    actual = setting(tiny_dinotxt, config, *mesh).run(steps, pack=pack)
    expected = float64_run(tiny_dinotxt)
    assert_rounded_gradients(actual, expected)
    assert_undecided(actual.metrics, expected.metrics)
    bound = SCHEDULE_ROUNDINGS * ROUNDING * CONFIG.optimizer.learning_rate
    lr = golden()["lr"][:steps]
    np.testing.assert_allclose(actual.metrics["learning_rate"], lr, rtol=0, atol=bound)


@pytest.mark.slow
def test_packing_long_and_short_captions_changes_no_step(tiny_dinotxt: Path) -> None:
    tokens = captions([77, 2, 75, 2, 10, 40, 37, 3, 76, 5, 30, 47, 20, 19, 9, 12])
    config = in_float64(CONFIG)
    alone = setting(tiny_dinotxt, config, 1).run(3, tokens=tokens)
    result = setting(tiny_dinotxt, config, 1, 2).run(3, tokens=tokens, pack=True)
    assert_equal_in_float64(result, alone)


@pytest.mark.parametrize(
    ("data", "fsdp", "parts", "pack", "steps"),
    [
        (2, 4, 2, True, 4),
        *all_steps((1, 1, 16, False), (2, 1, 4, True), (2, 4, 2, True)),
    ],
)
def test_accumulated_steps_equal_those_of_the_whole_batch(
    tiny_dinotxt: Path, data: int, fsdp: int, parts: int, pack: bool, steps: int
) -> None:
    config = dataclasses.replace(CONFIG, batch_size=16 // parts, accumulate_steps=parts)
    actual = setting(tiny_dinotxt, config, data, fsdp).run(steps, pack=pack)
    expected = float64_run(tiny_dinotxt)
    assert_rounded_gradients(actual, expected)
    assert_undecided(actual.metrics, expected.metrics)


@pytest.mark.slow
def test_accumulation_changes_no_update_with_any_other_option(tiny_dinotxt: Path) -> None:
    config = dataclasses.replace(
        in_float64(CONFIG),
        batch_size=48,  # two groups of 24 examples for drop path
        head=dataclasses.replace(CONFIG.head, drop_path=0.3, patch_tokens=9),
        loss=LossConfig(kind="sigmoid", gram_weight=0.5, gram_patches=5),
    )
    parts = dataclasses.replace(config, batch_size=24, accumulate_steps=2)
    whole, accumulated = (
        setting(tiny_dinotxt, each, 1).run(2, repeats=3) for each in (config, parts)
    )
    assert_equal_in_float64(accumulated, whole)


def test_first_gradients_equal_the_official_ones(tiny_dinotxt: Path, shared_goldens: Path) -> None:
    """The official gradients are float32, and ours float64."""
    from weights_convert.layouts.dinotxt_v2 import TEXT_ENCODER, VISION_HEAD

    gradients = float64_run(tiny_dinotxt).gradients
    official = np.load(shared_goldens / "train/grads_step0.npz")
    sizes = {"h": 4, "k": 16, "v": 133}
    compared = 0
    for prefix, layout in (("visual_model.head.", VISION_HEAD), ("text_model.", TEXT_ENCODER)):
        for rule in layout.rules:
            ours = gradients
            for name in rule.place.split("/"):
                ours = ours[name]
            for layer in range(ours.shape[0]) if rule.stacked else (None,):
                value = np.asarray(ours if layer is None else ours[layer])
                (value,) = rule.to_source([value], sizes)
                expected = official[prefix + rule.keys(layer)[0]]
                if rule.place == "text/token_embedding":  # stored: occurring rows, in order
                    value, expected = (a[np.abs(a).sum(1) > 0] for a in (value, expected))
                assert_rounded(expected, value, SUM_OVER_TOKENS, rule.source)
                compared += 1
    assert compared == 70
    assert_rounded(official["logit_scale"][0], gradients["logit_scale"], SUM_OVER_TOKENS)


@pytest.mark.slow
def test_drop_path_steps_on_eight_devices_equal_one_device(tiny_dinotxt: Path) -> None:
    head = dataclasses.replace(CONFIG.head, drop_path=0.3)
    config = dataclasses.replace(in_float64(CONFIG), head=head)
    alone, together = (
        setting(tiny_dinotxt, config, data, fsdp).run(3) for data, fsdp in ((1, 1), (4, 2))
    )
    assert_equal_in_float64(together, alone)
    assert alone.metrics["loss"][0] != float64_run(tiny_dinotxt).metrics["loss"][0]


@pytest.mark.parametrize("steps", [1, 2])
def test_running_the_backbone_equals_its_tokens(tiny_dinotxt: Path, steps: int) -> None:
    config = dataclasses.replace(in_float64(CONFIG), batch_size=16 // steps, accumulate_steps=steps)
    eight, alone = setting(tiny_dinotxt, config, 8), setting(tiny_dinotxt, in_float64(CONFIG), 1)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 98, 98, 3), np.uint8)
    frozen = {"backbone": eight.parts["backbone"]}
    with eight.context():
        placed = sharding.global_batch({"image": pixels}, eight.mesh)
        tokens = np.asarray(jax.jit(eight.trainer.backbone_tokens)(frozen, placed))
    # Pixels are normalised in float32; the compiler may divide by 255 or multiply by 1 / 255.
    assert_rounded(tokens, alone.backbone_tokens(pixels.astype(np.float32) / 255), 16)


def test_only_trained_arrays_have_optimizer_state(tiny_dinotxt: Path) -> None:
    state = setting(tiny_dinotxt, CONFIG, 8).trainer.abstract_state()
    assert set(state.trainable) == {"head", "text", "logit_scale"}
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert moments == pytest.approx(2 * trained, abs=2)


@functools.cache
def step_with_gram_and_ceiling(model: Path) -> Run:
    """Runs one float64 step with a Gram loss and a logit scale that has to be clamped."""
    loss = LossConfig(gram_weight=0.5, gram_patches=20, max_logit_scale=10.0)
    return setting(model, dataclasses.replace(in_float64(CONFIG), loss=loss), 1).run(1)


def test_the_logit_scale_is_clamped_after_the_step(tiny_dinotxt: Path) -> None:
    result = step_with_gram_and_ceiling(tiny_dinotxt)
    assert result.metrics["logit_scale"][0] == pytest.approx(math.log(1 / 0.07), rel=4 * ROUNDING)
    assert result.trainable["logit_scale"] == pytest.approx(math.log(10.0), rel=EXACT)


def test_the_gram_loss_is_added_with_its_weight(tiny_dinotxt: Path) -> None:
    result = step_with_gram_and_ceiling(tiny_dinotxt).metrics
    assert_exact(result["contrastive_loss"], float64_run(tiny_dinotxt).metrics["loss"][:1])
    assert result["gram_loss"][0] > 0
    assert_exact(result["loss"], result["contrastive_loss"] + 0.5 * result["gram_loss"])


def test_the_head_sees_the_patches_that_are_drawn(tiny_dinotxt: Path) -> None:
    head = dataclasses.replace(CONFIG.head, patch_tokens=20)
    trainer = setting(tiny_dinotxt, dataclasses.replace(CONFIG, head=head), 1).trainer
    tokens = jnp.arange(54.0).reshape(1, 54, 1)
    drawn = [trainer._drawn_patches(tokens, 20, jax.random.key(i))[0, :, 0] for i in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert set(drawn[0].tolist()) != set(drawn[2].tolist())
    np.testing.assert_array_equal(drawn[0][:5], np.arange(5.0))  # class and register tokens
    assert len(set(drawn[0][5:].tolist())) == 20
    assert trainer._drawn_patches(tokens, 0, jax.random.key(0)) is tokens


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_logits_come_in_chunks_of_the_size_that_is_set(tiny_dinotxt: Path, kind: str) -> None:
    config = dataclasses.replace(CONFIG, loss=LossConfig(kind=kind, chunk=6))
    trainer = setting(tiny_dinotxt, config, 1).trainer
    trained = trainer.abstract_state().trainable
    run = functools.partial(trainer.loss_and_gradients, key=jax.random.key(0))
    batch = {"tokens": golden()["tokens"]}
    features = jax.ShapeDtypeStruct((16, 54, 64), "float32")
    # Three blocks of 6 columns; the last block is padded.
    program = str(jax.make_jaxpr(run)(trained, features, batch))
    assert "f32[16,6]" in program
    assert "f32[16,16]" not in program


def test_the_backbone_is_in_the_frozen_dtype_and_trained_arrays_in_theirs(
    tiny_dinotxt: Path,
) -> None:
    config = dataclasses.replace(CONFIG, precision=PrecisionConfig())
    trainer = setting(tiny_dinotxt, config, 8).trainer
    assert trainer.abstract["backbone"]["norm"]["scale"].dtype == jnp.bfloat16
    assert trainer.abstract["head"]["norm"]["scale"].dtype == jnp.float32


def test_initialisation_is_the_released_one(tiny_dinotxt: Path) -> None:
    config = dataclasses.replace(CONFIG, text=TextTrainingConfig(width=256, depth=4, num_heads=4))
    trainer = make_trainer(config, read_description(tiny_dinotxt), 4096, sharding.make_mesh())
    trained = trainer.create_state().trainable
    text = trained["text"]

    def deviation(array: Any) -> float:
        return float(jnp.std(array))

    # The smallest array has 77 x 256 numbers, whose deviation is known within 0.5 %.
    assert deviation(text["token_embedding"]) == pytest.approx(0.02, rel=0.02)
    assert deviation(text["position_embedding"]) == pytest.approx(0.01, rel=0.02)
    width = 256**-0.5
    blocks = text["blocks"]
    assert deviation(blocks["attention"]["qkv"]["kernel"]) == pytest.approx(width, rel=0.02)
    out = width * 8**-0.5
    assert deviation(blocks["attention"]["out"]["kernel"]) == pytest.approx(out, rel=0.02)
    assert deviation(blocks["mlp"]["fc1"]["kernel"]) == pytest.approx(512**-0.5, rel=0.02)
    assert deviation(blocks["mlp"]["fc2"]["kernel"]) == pytest.approx(out, rel=0.02)
    assert deviation(text["projection"]["kernel"]) == pytest.approx(width, rel=0.02)
    # The official truncation at -2 and 2 for the head's draws has no effect at a deviation of 0.02.
    head = trained["head"]["blocks"]
    for kernels in (head["attention"], head["mlp"]):
        for kernel in kernels.values():
            assert deviation(kernel["kernel"]) == pytest.approx(0.02, rel=0.02)
    assert float(head["layer_scale1"]["scale"][0, 0]) == pytest.approx(1e-5)
    assert float(trained["logit_scale"]) == pytest.approx(np.log(1 / 0.07), abs=1e-6)


def test_a_run_starts_from_the_same_values_on_every_mesh() -> None:
    states = {name: meshes.trainer(name).create_state() for name in ("1", "2x4", "2x2x2")}
    for name, state in states.items():
        assert meshes.has_sharding(state, name)
        jax.tree.map(np.testing.assert_array_equal, state, states["1"])


def test_scalars_learn_where_parameters_are_bfloat16(tiny_dinotxt: Path) -> None:
    """Between 2 and 4, bfloat16 has steps of 1/64, and a step at this rate moves by 7e-4."""
    precision = dataclasses.replace(CONFIG.precision, parameters="bfloat16")
    softmax, sigmoid = (
        dataclasses.replace(CONFIG, precision=precision, loss=LossConfig(kind=kind))
        for kind in ("softmax", "sigmoid")
    )
    two = setting(tiny_dinotxt, sigmoid, 2)
    for kind in (setting(tiny_dinotxt, softmax, 2), two):
        trained = kind.trainer.abstract_state().trainable
        dtypes = {name: str(array.dtype) for name, array in trained.items() if "logit" in name}
        assert set(dtypes.values()) == {"float32"}, dtypes
    with two.context():
        first = two.trainer.create_state().trainable
    assert first["text"]["token_embedding"].dtype == jnp.bfloat16
    run = two.run(6)
    starts = {"logit_scale": run.metrics["logit_scale"][0], "logit_bias": first["logit_bias"]}
    for name, start in starts.items():
        assert 1e-5 < abs(float(run.trainable[name]) - float(start)) < 4e-3
    assert len(set(run.metrics["logit_scale"])) == 5  # the first rate is 0
    assert run.metrics["loss"][-1] < run.metrics["loss"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 12}, "batch_size=12 does not divide"),
        ({"attention": "splash"}, "config.attention='splash' needs tpu devices, but these are"),
        (
            {"head": HeadTrainingConfig(num_heads=5)},
            "config.head.num_heads is 5, expected a divisor of 64, the width of the backbone; set "
            "it to one such as 4",
        ),
    ],
)
def test_settings_that_cannot_be_run_are_named(
    change: dict, message: str, tiny_dinotxt: Path
) -> None:
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match=message):
        make_trainer(config, read_description(tiny_dinotxt), 133, sharding.make_mesh())


def test_all_towers_use_the_configured_attention(tiny_dinotxt: Path) -> None:
    architecture = read_description(tiny_dinotxt).dinotxt
    config = dataclasses.replace(CONFIG, attention="splash")
    model = create_model(architecture, config)
    towers = {
        path[0]: module.implementation
        for path, module in nnx.iter_graph(model)
        if isinstance(module, Attention)
    }
    assert towers == {"backbone": "splash", "head": "splash", "text": "splash"}


def test_a_step_runs_the_quantised_backbone(tiny_dinotxt: Path) -> None:
    precision = dataclasses.replace(CONFIG.precision, frozen_products="int8")
    quantised = setting(tiny_dinotxt, dataclasses.replace(CONFIG, precision=precision), 2, 4)
    kernel = quantised.parts["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.dtype == "int8"
    assert np.prod(kernel.sharding.shard_shape(kernel.shape)) == kernel.size // 4
    plain, result = (
        each.backbone_tokens() for each in (setting(tiny_dinotxt, CONFIG, 2, 4), quantised)
    )
    error = np.linalg.norm(result - plain) / np.linalg.norm(plain)
    assert 1e-4 < error < 0.05


def test_nothing_is_stored_whole_on_one_device(tiny_dinotxt: Path) -> None:
    state = setting(tiny_dinotxt, CONFIG, 1, 8).trainer.create_state()
    moment = state.optimizer[0].mu["text"]["token_embedding"]
    for array in (state.trainable["text"]["token_embedding"], moment):
        assert array.sharding.shard_shape(array.shape) == (133, 8)
