"""Embeddings of a pool: the backbone's class tokens, in shards, continued, with bad images."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dinotxt_jax import UserError, load_backbone
from dinotxt_jax.config import CurationConfig, DataConfig, MeshConfig
from dinotxt_jax.curation import embed_pool as module
from dinotxt_jax.curation.embed_pool import embed_pool
from dinotxt_jax.curation.embeddings import Embeddings
from dinotxt_jax.data.sources import open_source
from dinotxt_jax.data.transforms import EvalTransform, decode_image, normalize

DATA = DataConfig(num_scenes=21, image_size=56, resize=64, augmentation="center_crop", threads=2)
CONFIG = CurationConfig(data=DATA, mesh=MeshConfig(fsdp=2))


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "shard_rows", lambda examples: 8)


def embed(config: CurationConfig, model: Path, folder: Path) -> str:
    return embed_pool(config, model, folder, 8, "float32")


def test_embeddings_are_class_tokens_of_prepared_images(
    tiny_backbone: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "e"
    assert embed(CONFIG, tiny_backbone, folder) == "21 examples are embedded."
    backbone, source = load_backbone(tiny_backbone), open_source(DATA)
    pixels = np.stack([EvalTransform(DATA)(decode_image(source[i].image)) for i in range(21)])
    preprocessing = backbone.description.preprocessing
    images = normalize(pixels, preprocessing.mean, preprocessing.std)
    expected = np.asarray(backbone(images).class_token)
    embeddings = Embeddings(folder)
    assert (len(embeddings), embeddings.width) == expected.shape
    # float16 has 11 bits.
    np.testing.assert_allclose(embeddings.read(0, 21), expected, rtol=2**-11, atol=1e-4)
    np.testing.assert_array_equal(embeddings.read(7, 17), embeddings.read(0, 21)[7:17])
    assert sorted(file.name for file in folder.glob("*.npy")) == [
        f"s{shard:05d}.npy" for shard in range(3)
    ]
    # Each shard is a plain npy file.
    np.testing.assert_array_equal(np.load(folder / "s00001.npy"), embeddings.read(8, 16))


@pytest.mark.parametrize("axis", ["data", "tensor"])
def test_mesh_axes_that_embed_does_not_use_are_refused(
    axis: str, tiny_backbone: Path, tmp_path: Path
) -> None:
    config = dataclasses.replace(CONFIG, mesh=MeshConfig(**{axis: 2}))
    with pytest.raises(UserError, match=f"config.mesh.{axis} is 2, expected"):
        embed(config, tiny_backbone, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_missing_and_damaged_shards_are_embedded_again(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    folder = tmp_path / "e"
    embed(CONFIG, tiny_backbone, folder)
    before = [file.read_bytes() for file in sorted(folder.iterdir())]
    (folder / "s00000.npy").unlink()
    content = bytearray((folder / "s00002.npy").read_bytes())
    content[200] ^= 4
    (folder / "s00002.npy").write_bytes(content)
    written = []
    write = module.write_shard
    monkeypatch.setattr(
        module,
        "write_shard",
        lambda f, shard, *rest: (written.append(shard), write(f, shard, *rest)),
    )
    embed(CONFIG, tiny_backbone, folder)
    assert written == [0, 2]
    assert "s00002.npy differs from what was written: it is embedded again" in caplog.text
    assert [file.read_bytes() for file in sorted(folder.iterdir())] == before


def photos(folder: Path, bad: int, count: int) -> DataConfig:
    """Writes images with captions, some of which are no images."""
    folder.mkdir()
    rows = []
    for number in range(count):
        name = f"{number}.png"
        if number < bad:
            (folder / name).write_bytes(b"no image")
        else:
            Image.new("RGB", (60, 60), (number, 100, 50)).save(folder / name)
        rows.append(json.dumps({"image": name, "caption": f"photo {number}"}))
    (folder / "captions.jsonl").write_text("\n".join(rows))
    file = str(folder / "captions.jsonl")
    return DataConfig(source="jsonl", path=file, image_size=56, resize=64, threads=2)


def test_bad_images_have_no_embedding_up_to_a_limit(tiny_backbone: Path, tmp_path: Path) -> None:
    data = photos(tmp_path / "photos", bad=2, count=20)
    data = dataclasses.replace(data, max_bad_fraction=0.1)
    sentence = embed(CurationConfig(data=data), tiny_backbone, tmp_path / "e")
    assert sentence == "20 examples are embedded, 2 of them without an image that can be read."
    embeddings = Embeddings(tmp_path / "e")
    assert embeddings.missing.tolist() == [0, 1]
    assert embeddings.present(0, 4).tolist() == [False, False, True, True]
    assert not embeddings.read(0, 2).any()
    assert embeddings.read(2, 20).any(1).all()
    strict = dataclasses.replace(data, max_bad_fraction=0.05)
    with pytest.raises(UserError, match="2 of 20 images .* could not be read or decoded"):
        embed(CurationConfig(data=strict), tiny_backbone, tmp_path / "strict")
    # What the failed run left is no complete set.
    with pytest.raises(UserError, match="lacks 3 of 3 shards"):
        Embeddings(tmp_path / "strict")


def test_other_embeddings_in_the_folder_are_refused(tiny_backbone: Path, tmp_path: Path) -> None:
    embed(CONFIG, tiny_backbone, tmp_path / "e")
    for changed, message in (
        ({"image_size": 42}, "holds embeddings with image_size 56, expected image_size 42; name"),
        ({"num_scenes": 22}, "holds embeddings with pool .'examples': 21"),
        ({"image_size": 57}, "config.data.image_size is 57, expected a multiple of 14"),
        ({"resize": 42}, "config.data.resize is 42, expected at least config.data.image_size=56"),
        ({"decoder": "official"}, "decoder 'exact', expected decoder 'official'; name a new"),
        ({"augmentation": "squash_bilinear"}, "resize 64, rule 'center_crop', expected resize 0, "),
    ):
        config = dataclasses.replace(CONFIG, data=dataclasses.replace(DATA, **changed))
        with pytest.raises(UserError, match=message):
            embed(config, tiny_backbone, tmp_path / "e")


@pytest.mark.parametrize("augmentation", ["center_crop", "squash"])
def test_embeddings_from_before_rules_were_recorded_stay_good(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augmentation: str
) -> None:
    data = dataclasses.replace(DATA, augmentation=augmentation)
    embed(dataclasses.replace(CONFIG, data=data), tiny_backbone, tmp_path)
    file = tmp_path / "embeddings.json"
    old = json.loads(file.read_text())
    assert (old.pop("rule"), old.pop("decoder")) == (augmentation, "exact")
    file.write_text(json.dumps(old))
    monkeypatch.setattr(module, "write_shard", None)  # nothing is embedded again
    embed(dataclasses.replace(CONFIG, data=data), tiny_backbone, tmp_path)
    other = dataclasses.replace(data, augmentation="squash_bilinear_plain")
    file.write_text(json.dumps(old))
    with pytest.raises(UserError, match=f"rule '{augmentation}'.* rule 'squash_bilinear_plain'"):
        embed(dataclasses.replace(CONFIG, data=other), tiny_backbone, tmp_path)


def test_embeddings_that_are_not_finite_are_not_written(
    tiny_backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.full((8, 4), np.nan, np.float16)
    monkeypatch.setattr(module, "_encoder", lambda *_: lambda pixels: rows[: len(pixels)])
    with pytest.raises(UserError, match="the embedding of .* is not finite, expected numbers"):
        embed(CONFIG, tiny_backbone, tmp_path / "e")
    assert not list((tmp_path / "e").glob("*.npy"))
