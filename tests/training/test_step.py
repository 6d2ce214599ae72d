"""The train step against twenty steps of the official loop, and across meshes."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
from flax import nnx
from packed import captions, packed

from dinotxt_jax import UserError, sharding
from dinotxt_jax.config import (
    Config,
    HeadTrainingConfig,
    LossConfig,
    OptimizerConfig,
    PrecisionConfig,
    TextTrainingConfig,
)
from dinotxt_jax.models.blocks import Attention
from dinotxt_jax.storage.model_directory import Preprocessing, load_parts, read_description
from dinotxt_jax.training.models import create_model
from dinotxt_jax.training.step import Trainer, TrainState, make_trainer

CONFIG = Config(
    steps=20,
    batch_size=16,
    head=HeadTrainingConfig(drop_path=0.0, num_heads=4),
    text=TextTrainingConfig(width=64, depth=3, num_heads=4),
    precision=PrecisionConfig(compute="float32", frozen="float32"),
    optimizer=OptimizerConfig(warmup_steps=5),
)
# Images of the reference are normalised already.
AS_THEY_ARE = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


class Setting:
    """The reference model, batch and recipe on a mesh."""

    def __init__(self, model: Path, config: Config, data: int = -1, fsdp: int = 1, tensor: int = 1):
        devices = jax.devices() if data == -1 else jax.devices()[: data * fsdp * tensor]
        self.mesh = sharding.make_mesh(data, fsdp, tensor, devices=devices)
        description = dataclasses.replace(read_description(model), preprocessing=AS_THEY_ARE)
        self.trainer: Trainer = make_trainer(config, description, 133, self.mesh)
        self.parts = load_parts(model, self.trainer.abstract)
        golden = np.load(Path(__file__).parent.parent / "goldens/train/train.npz")
        self.golden: dict[str, np.ndarray] = dict(golden)

    def features(self) -> np.ndarray:
        images = np.moveaxis(self.golden["images"], 1, -1)
        with jax.set_mesh(self.mesh):
            return np.asarray(self.trainer.merge(self.parts).backbone.tokens(images))

    def run(
        self,
        steps: int,
        *,
        tokens: np.ndarray | None = None,
        pack: bool = False,
        repeats: int = 1,
    ) -> tuple[TrainState, dict[str, np.ndarray]]:
        """Trains on the reference batch from the reference weights, or on other `tokens`."""
        tokens = self.golden["tokens"] if tokens is None else tokens
        tokens, features = (np.concatenate([x] * repeats) for x in (tokens, self.features()))
        parts = sharding.batch_parts(self.mesh) * self.trainer.config.accumulate_steps
        text = packed(tokens, parts)._asdict() if pack else {"tokens": tokens}
        batch = {"features": features} | text
        history: list[dict[str, float]] = []
        with jax.set_mesh(self.mesh):
            state = self.trainer.create_state()
            trained = {name: self.parts.get(name, v) for name, v in state.trainable.items()}
            state = state._replace(trainable=trained)
            step = self.trainer.compiled_step()
            placed = sharding.global_batch(batch, self.mesh)
            for _ in range(steps):
                state, metrics = step(state, {}, placed)
                history.append({name: float(value) for name, value in metrics.items()})
        return state, {name: np.asarray([row[name] for row in history]) for name in history[0]}


@pytest.mark.parametrize(
    ("mesh", "chunk", "pack"),
    [
        ((1, 1, 1), 6, False),
        ((8, 1, 1), 2048, False),
        ((4, 1, 1), 12, True),
        ((2, 4, 1), 2048, True),
        ((2, 2, 2), 2048, False),
        ((1, 2, 4), 2048, True),
    ],
)
def test_twenty_steps_equal_the_official_loop(
    tiny_dinotxt: Path, mesh: tuple[int, int, int], chunk: int, pack: bool
) -> None:
    config = dataclasses.replace(CONFIG, loss=LossConfig(chunk=chunk))
    setting = Setting(tiny_dinotxt, config, *mesh)
    _, found = setting.run(20, pack=pack)
    golden = setting.golden
    np.testing.assert_allclose(found["loss"], golden["loss"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(found["loss"], golden["loss_f64"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(found["learning_rate"], golden["lr"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(
        found["logit_scale"], golden["logit_scale_before"], rtol=0, atol=5e-6
    )
    np.testing.assert_allclose(found["grad_norm"], golden["grad_norm"], rtol=1e-4)


def test_packing_long_and_short_captions_changes_no_step(tiny_dinotxt: Path) -> None:
    tokens = captions([77, 2, 75, 2, 10, 40, 37, 3, 76, 5, 30, 47, 20, 19, 9, 12])
    _, alone = Setting(tiny_dinotxt, CONFIG, 1).run(5, tokens=tokens)
    _, found = Setting(tiny_dinotxt, CONFIG, 2, 4).run(5, tokens=tokens, pack=True)
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(found[name], alone[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("data", "fsdp", "steps", "pack"), [(1, 1, 16, False), (2, 1, 4, True), (2, 4, 2, True)]
)
def test_accumulated_steps_equal_those_of_the_whole_batch(
    tiny_dinotxt: Path, data: int, fsdp: int, steps: int, pack: bool
) -> None:
    config = dataclasses.replace(CONFIG, batch_size=16 // steps, accumulate_steps=steps)
    _, found = Setting(tiny_dinotxt, config, data, fsdp).run(20, pack=pack)
    golden = Setting(tiny_dinotxt, CONFIG, 1).golden
    np.testing.assert_allclose(found["loss"], golden["loss_f64"], rtol=0, atol=5e-6)
    np.testing.assert_allclose(found["grad_norm"], golden["grad_norm"], rtol=1e-4)


def test_accumulation_changes_no_update_whatever_else_is_on(tiny_dinotxt: Path) -> None:
    config = dataclasses.replace(
        CONFIG,
        batch_size=128,
        head=dataclasses.replace(CONFIG.head, drop_path=0.3, patch_tokens=9),
        loss=LossConfig(kind="sigmoid", gram_weight=0.5, gram_patches=5),
    )
    parts = dataclasses.replace(config, batch_size=64, accumulate_steps=2)
    whole, accumulated = (
        Setting(tiny_dinotxt, one, 2).run(3, repeats=8) for one in (config, parts)
    )
    for name in whole[1]:
        np.testing.assert_allclose(accumulated[1][name], whole[1][name], rtol=1e-5, err_msg=name)
    for a, b in zip(
        *(jax.tree.leaves(run[0].trainable) for run in (whole, accumulated)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_first_gradients_equal_the_official_ones(tiny_dinotxt: Path, shared_goldens: Path) -> None:
    from weights_convert.layouts.dinotxt_v2 import TEXT_ENCODER, VISION_HEAD

    setting = Setting(tiny_dinotxt, CONFIG, 1)
    golden = np.load(shared_goldens / "train/grads_step0.npz")
    trained = {name: setting.parts[name] for name in ("head", "text", "logit_scale")}
    features, key = setting.features(), jax.random.key(0)
    batch = {"tokens": setting.golden["tokens"]}
    _, gradients = setting.trainer.loss_and_gradients(trained, features, batch, key)
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
                expected = golden[prefix + rule.keys(layer)[0]]
                if rule.place == "text/token_embedding":  # stored: rows that occur, in order
                    value, expected = (a[np.abs(a).sum(1) > 0] for a in (value, expected))
                np.testing.assert_allclose(
                    value,
                    expected,
                    rtol=0,
                    atol=2e-5 * max(1, np.abs(expected).max()),
                    err_msg=rule.source,
                )
                compared += 1
    assert compared == 70
    np.testing.assert_allclose(gradients["logit_scale"], golden["logit_scale"][0], atol=2e-6)


def test_eight_devices_take_the_step_of_one_with_drop_path(tiny_dinotxt: Path) -> None:
    config = dataclasses.replace(CONFIG, head=dataclasses.replace(CONFIG.head, drop_path=0.3))
    (one, alone), (eight, together) = (
        Setting(tiny_dinotxt, config, data, fsdp).run(3) for data, fsdp in ((1, 1), (4, 2))
    )
    np.testing.assert_allclose(together["loss"], alone["loss"], rtol=0, atol=1e-6)
    assert alone["loss"][0] != Setting(tiny_dinotxt, CONFIG, 1).run(1)[1]["loss"][0]

    def check(a: jax.Array, b: jax.Array) -> None:
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)

    jax.tree.map(check, one.trainable["head"], eight.trainable["head"])


@pytest.mark.parametrize("steps", [1, 2])
def test_running_the_backbone_equals_its_tokens(tiny_dinotxt: Path, steps: int) -> None:
    config = dataclasses.replace(CONFIG, batch_size=16 // steps, accumulate_steps=steps)
    setting = Setting(tiny_dinotxt, config, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 98, 98, 3), np.uint8)
    batch = {"tokens": setting.golden["tokens"], "image": pixels}
    frozen = {"backbone": setting.parts["backbone"]}
    with jax.set_mesh(setting.mesh):
        placed = sharding.global_batch(batch, setting.mesh)
        tokens = jax.jit(setting.trainer.backbone_tokens)(frozen, placed)
        direct = setting.trainer.merge(frozen).backbone.tokens(pixels.astype(np.float32) / 255)
    np.testing.assert_allclose(tokens, direct, rtol=0, atol=5e-5)


def test_only_what_is_trained_has_state(tiny_dinotxt: Path) -> None:
    state = Setting(tiny_dinotxt, CONFIG, 8).trainer.abstract_state()
    assert set(state.trainable) == {"head", "text", "logit_scale"}
    trained = sum(leaf.size for leaf in jax.tree.leaves(state.trainable))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.optimizer) if leaf.ndim)
    assert moments == pytest.approx(2 * trained, abs=2)


def test_the_logit_scale_is_clamped_after_the_step(tiny_dinotxt: Path) -> None:
    config = dataclasses.replace(CONFIG, loss=LossConfig(max_logit_scale=10.0))
    state, metrics = Setting(tiny_dinotxt, config, 1).run(1)
    assert metrics["logit_scale"][0] == pytest.approx(np.log(1 / 0.07), abs=1e-6)
    assert float(state.trainable["logit_scale"]) == pytest.approx(np.log(10.0), abs=1e-6)


def test_the_gram_loss_is_added_with_its_weight(tiny_dinotxt: Path) -> None:
    loss = LossConfig(gram_weight=0.5, gram_patches=20)
    _, with_gram = Setting(tiny_dinotxt, dataclasses.replace(CONFIG, loss=loss), 1).run(1)
    _, without = Setting(tiny_dinotxt, CONFIG, 1).run(1)
    assert with_gram["contrastive_loss"][0] == pytest.approx(without["loss"][0], abs=1e-6)
    assert with_gram["gram_loss"][0] > 0
    total = with_gram["contrastive_loss"][0] + 0.5 * with_gram["gram_loss"][0]
    assert with_gram["loss"][0] == pytest.approx(total, abs=1e-6)


def test_the_head_sees_the_patches_that_are_drawn(tiny_dinotxt: Path) -> None:
    head = dataclasses.replace(CONFIG.head, patch_tokens=20)
    trainer = Setting(tiny_dinotxt, dataclasses.replace(CONFIG, head=head), 1).trainer
    tokens = jnp.arange(54.0).reshape(1, 54, 1)
    drawn = [trainer._drawn_patches(tokens, 20, jax.random.key(i))[0, :, 0] for i in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert set(drawn[0].tolist()) != set(drawn[2].tolist())
    np.testing.assert_array_equal(drawn[0][:5], np.arange(5.0))  # class and register tokens
    assert len(set(drawn[0][5:].tolist())) == 20
    assert trainer._drawn_patches(tokens, 0, jax.random.key(0)) is tokens


def test_the_sigmoid_loss_trains_its_bias(tiny_dinotxt: Path) -> None:
    config = dataclasses.replace(CONFIG, loss=LossConfig(kind="sigmoid"))
    state, metrics = Setting(tiny_dinotxt, config, 8).run(20)
    assert metrics["loss"][-1] < metrics["loss"][0]
    assert float(state.trainable["logit_bias"]) != -10.0


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_logits_come_in_chunks_of_the_size_that_is_set(tiny_dinotxt: Path, kind: str) -> None:
    config = dataclasses.replace(CONFIG, loss=LossConfig(kind=kind, chunk=5))
    setting = Setting(tiny_dinotxt, config, 1)
    trained = setting.trainer.abstract_state().trainable
    run = functools.partial(setting.trainer.loss_and_gradients, key=jax.random.key(0))
    batch = {"tokens": setting.golden["tokens"]}
    program = str(jax.make_jaxpr(run)(trained, setting.features(), batch))
    assert "f32[16,5]" in program
    assert "f32[16,16]" not in program


def test_the_backbone_is_in_the_frozen_dtype_and_trained_arrays_in_theirs(
    tiny_dinotxt: Path,
) -> None:
    config = dataclasses.replace(CONFIG, precision=PrecisionConfig())
    trainer = Setting(tiny_dinotxt, config, 8).trainer
    assert trainer.abstract["backbone"]["norm"]["scale"].dtype == jnp.bfloat16
    assert trainer.abstract["head"]["norm"]["scale"].dtype == jnp.float32


def test_initialisation_is_the_released_one(tiny_dinotxt: Path) -> None:
    config = dataclasses.replace(CONFIG, text=TextTrainingConfig(width=256, depth=4, num_heads=4))
    setting = Setting(tiny_dinotxt, CONFIG, 8)
    trainer = make_trainer(config, read_description(tiny_dinotxt), 4096, setting.mesh)
    trained = trainer.create_state().trainable
    text = trained["text"]

    def deviation(array: Any) -> float:
        return float(jnp.std(array))

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
    # The official cut of the head's draws, at -2 and 2, cuts nothing off a deviation of 0.02.
    head = trained["head"]["blocks"]
    for kernels in (head["attention"], head["mlp"]):
        for kernel in kernels.values():
            assert deviation(kernel["kernel"]) == pytest.approx(0.02, rel=0.02)
    assert float(head["layer_scale1"]["scale"][0, 0]) == pytest.approx(1e-5)
    assert float(trained["logit_scale"]) == pytest.approx(np.log(1 / 0.07), abs=1e-6)


def test_a_run_starts_from_the_same_values_on_every_mesh() -> None:
    states = {name: meshes.trainer(name).create_state() for name in ("1", "2x4", "2x2x2")}
    for name, state in states.items():
        assert meshes.lies_as_wanted(state, name)
        jax.tree.map(np.testing.assert_array_equal, state, states["1"])


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_scalars_learn_where_parameters_are_bfloat16(kind: str, tiny_dinotxt: Path) -> None:
    """Between 2 and 4 bfloat16 has steps of 1/64, and a step at this rate moves by 7e-4."""
    precision = dataclasses.replace(CONFIG.precision, parameters="bfloat16")
    config = dataclasses.replace(CONFIG, precision=precision, loss=LossConfig(kind=kind))
    setting = Setting(tiny_dinotxt, config, 2)
    first = setting.trainer.create_state().trainable
    assert first["text"]["token_embedding"].dtype == jnp.bfloat16
    state, metrics = setting.run(3)
    names = ["logit_scale", "logit_bias"] if kind == "sigmoid" else ["logit_scale"]
    for name in names:
        assert state.trainable[name].dtype == jnp.float32
    assert len(set(metrics["logit_scale"])) == 2  # the first rate is 0
    assert 1e-5 < abs(float(state.trainable[names[-1]]) - float(first[names[-1]])) < 2e-3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 12}, "batch_size=12 does not divide"),
        ({"remat": "some"}, "config.remat='some' is unknown; choose among none, full, dots"),
        ({"attention": "flash"}, "config.attention='flash' is unknown; choose among auto, xla"),
        ({"attention": "splash"}, "config.attention='splash' runs on tpu devices and these are"),
        (
            {"precision": PrecisionConfig(frozen_products="int4")},
            "config.precision.frozen_products='int4' is unknown; choose among none, int8, float8",
        ),
        ({"loss": LossConfig(kind="local")}, "config.loss.kind='local' is unknown"),
        ({"head": HeadTrainingConfig(pooling="sum")}, "config.head.pooling='sum' is unknown"),
        ({"head": HeadTrainingConfig(num_heads=5)}, "config.head.num_heads=5 does not divide"),
        ({"text": TextTrainingConfig(width=64, num_heads=5)}, "config.text.num_heads=5 does not"),
    ],
)
def test_settings_that_cannot_be_run_are_named(
    change: dict, message: str, tiny_dinotxt: Path
) -> None:
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(UserError, match=message):
        make_trainer(config, read_description(tiny_dinotxt), 133, sharding.make_mesh())


def test_the_chosen_attention_is_that_of_every_tower(tiny_dinotxt: Path) -> None:
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
    quantised = Setting(tiny_dinotxt, dataclasses.replace(CONFIG, precision=precision), 2, 4)
    kernel = quantised.parts["backbone"]["blocks"]["mlp"]["fc1"]["kernel"]
    assert kernel.dtype == "int8"
    assert np.prod(kernel.sharding.shard_shape(kernel.shape)) == kernel.size // 4
    plain, found = Setting(tiny_dinotxt, CONFIG, 2, 4).features(), quantised.features()
    error = np.linalg.norm(found - plain) / np.linalg.norm(plain)
    assert 1e-4 < error < 0.05


def test_nothing_is_stored_whole_on_one_device(tiny_dinotxt: Path) -> None:
    state = Setting(tiny_dinotxt, CONFIG, 1, 8).trainer.create_state()
    moment = state.optimizer[0].mu["text"]["token_embedding"]
    for array in (state.trainable["text"]["token_embedding"], moment):
        assert array.sharding.shard_shape(array.shape) == (133, 8)
