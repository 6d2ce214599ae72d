"""Encoding batches: padding, order and trimming do not change the results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from models import with_tokenizer
from shape_checks import unchecked
from tolerances import assert_same

import dinotxt_jax as dt
from dinotxt_jax import sharding
from dinotxt_jax.inference import Model
from dinotxt_jax.inference.loading import load_dinotxt
from dinotxt_jax.models.layers import DTypes
from dinotxt_jax.storage.model_directory import read_description
from dinotxt_jax.tokenizers import RowFormat, TrainedTokenizer, trimmed_length


class Letters(TrainedTokenizer):
    """Ids below 133, the reference model's vocabulary size; the last is the end-of-text token."""

    def __init__(self, *, padding_is_input: bool = False) -> None:
        self.format = RowFormat(77, None, 132, padding_is_input=padding_is_input)

    def __call__(self, texts: list[str]) -> np.ndarray:  # type: ignore[override]
        rows = np.zeros((len(texts), 77), np.int32)
        for row, text in zip(rows, texts, strict=True):
            row[: len(text) + 1] = [*(ord(c) % 130 for c in text), 132]
        return rows


def make_model(
    path: Path,
    mesh: jax.sharding.Mesh | None,
    make_tokenizer: Callable[[], Letters] = Letters,
) -> Model:
    module, description = load_dinotxt(path, DTypes(), mesh)
    graphdef, state = nnx.split(module)
    return Model(graphdef, nnx.to_pure_dict(state), description, make_tokenizer, mesh)


@pytest.fixture(scope="module", params=["one device", "eight devices"])
def model(request: pytest.FixtureRequest, tiny_dinotxt: Path) -> Model:
    mesh = sharding.make_mesh(data=4, fsdp=2) if request.param == "eight devices" else None
    return make_model(tiny_dinotxt, mesh)


def test_texts_keep_their_order_for_any_length(model: Model) -> None:
    texts = ["z" * n for n in (30, 2, 17, 70, 5, 9, 1, 40, 3)]
    together = model.embed_texts(texts, batch_size=8)
    for text, features in zip(texts, together, strict=True):
        alone = model.embed_texts([text], batch_size=8, trim=77)[0]
        assert_same(features, alone)


@pytest.mark.parametrize(("padding_is_input", "length"), [(False, 8), (True, 77)])
def test_rows_whose_padding_is_input_are_encoded_whole(
    tiny_dinotxt: Path, monkeypatch: pytest.MonkeyPatch, padding_is_input: bool, length: int
) -> None:
    model = make_model(tiny_dinotxt, None, lambda: Letters(padding_is_input=padding_is_input))
    run, shapes = model._run, []

    def recorded(method: str, rows: jax.Array, **options: Any) -> jax.Array:
        shapes.append(rows.shape)
        return run(method, rows, **options)

    monkeypatch.setattr(model, "_run", recorded)
    model.embed_texts(["zz", "zzz"], batch_size=2)
    assert shapes == [(2, length)]


def test_short_batches_are_padded_and_cut_again(model: Model) -> None:
    images = np.random.default_rng(0).integers(0, 256, (11, 56, 56, 3), np.uint8)
    result = list(model.embed_batches([images[:8], images[8:]], batch_size=8))
    assert [len(rows) for rows in result] == [8, 3]
    again = np.concatenate(list(model.embed_batches([images[8:]], batch_size=8)))
    assert_same(result[1], again)
    np.testing.assert_allclose(np.linalg.norm(np.concatenate(result), axis=1), 1, rtol=1e-5)


def test_the_logit_scale_is_the_logarithm(model: Model) -> None:
    assert model.logit_scale == pytest.approx(2.65926, abs=1e-5)


def test_rows_are_cut_to_multiples_within_the_context() -> None:
    assert [trimmed_length(n, 8, 77) for n in (1, 8, 9, 76)] == [8, 8, 16, 77]


def test_a_model_without_a_tokenizer_takes_token_rows(tiny_dinotxt: Path) -> None:
    model = dt.load(tiny_dinotxt)
    assert model.encode_text(np.array([[130, 5, 132, 0]])).shape == (1, 128)
    with pytest.raises(dt.UserError, match="names no tokenizer"):
        model.embed_texts(["a"], batch_size=1)


def test_a_model_describes_itself(tiny_dinotxt: Path, tmp_path: Path) -> None:
    captions = ["a cat", "a dog"]
    model = dt.load(with_tokenizer(tiny_dinotxt, tmp_path / "model", captions), dtype="bfloat16")
    backbone = dt.load_backbone(tiny_dinotxt)
    size = backbone.size_in_bytes
    count = size // 4  # float32
    images = (
        "  images: short side 256, center crop 224, mean (0.485, 0.456, 0.406), "
        "std (0.229, 0.224, 0.225)"
    )
    assert repr(backbone).splitlines() == [
        f"Backbone ({count / 1e6:.4g} M parameters, float32, {size / 1e6:.4g} MB)",
        "  backbone: patch 14, width 64, 3 blocks, 4 heads, 4 registers "
        f"({count / 1e6:.4g} M parameters, float32, {size / 1e6:.4g} MB)",
        images,
    ]
    title, part, head, text, tokenizer, last = repr(model).splitlines()
    assert title.startswith("Model (0.")
    assert "bfloat16" in part
    assert head.startswith("  vision head: 2 blocks, pooling mean (")
    assert text.startswith("  text transformer: width 64, 3 blocks, 4 heads, features of 128 dim")
    assert tokenizer == "  tokenizer: bpe, 300 token ids, 77 tokens for each text"
    assert last == images.replace("256", "64").replace("224, m", "56, m")
    assert "  tokenizer: none (encode_text takes token ids)" in repr(dt.load(tiny_dinotxt))


def test_the_public_names_are_few() -> None:
    assert dt.__all__ == ["UserError", "list_models", "load", "load_backbone"]


def test_wrong_inputs_are_refused_with_the_expected_type(tiny_dinotxt: Path) -> None:
    model, backbone = dt.load(tiny_dinotxt), dt.load_backbone(tiny_dinotxt)
    pixels = np.zeros((1, 98, 98, 3), np.uint8)
    with unchecked():
        for call in (
            model.encode_image,
            model.encode_patches,
            backbone,
            backbone.intermediate_layers,
        ):
            with pytest.raises(dt.UserError, match=r"images are uint8\[1, 98, 98, 3\], expected"):
                call(pixels)
            with pytest.raises(dt.UserError, match="expected floating point"):
                call(np.zeros((1, 3, 98, 98), np.float32))
        with pytest.raises(dt.UserError, match="encode texts with model.tokenizer"):
            model.encode_text(["a dog"])
    with pytest.raises(dt.UserError, match="dtype is 'float16', expected float32, bfloat16"):
        dt.load(tiny_dinotxt, dtype="float16")


@pytest.mark.parametrize("wrong", [-1, 133])
def test_token_ids_outside_the_vocabulary_are_refused(tiny_dinotxt: Path, wrong: int) -> None:
    message = rf"hold the id {wrong}, but the model's vocabulary has 133 tokens \(0 to 132\); enc"
    with pytest.raises(dt.UserError, match=message):
        dt.load(tiny_dinotxt).encode_text(np.array([[130, wrong, 132, 0]]))


def test_the_model_inside_a_work_directory_is_pointed_at(
    tiny_dinotxt: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(tiny_dinotxt)
    with pytest.raises(dt.UserError, match=rf"take {tmp_path}/model"):
        dt.load(tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(dt.UserError, match="or make one with python -m weights_convert"):
        dt.load(empty)
    with pytest.raises(dt.UserError, match="make one with python -m weights_convert hf://a/b"):
        read_description("hf://a/b")
