"""Verification: where a model differs from a reference, and the contents of a folder or file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from drawn import checkpoint
from safetensors.numpy import save_file

import dinotxt_jax as dt
from dinotxt_jax.errors import UserError
from weights_convert.__main__ import main
from weights_convert.convert import convert
from weights_convert.settings import Settings
from weights_convert.verify import compare

HEADS = Settings(num_heads=4, text_num_heads=2)


def model_of(folder: Path, *files: dict[str, np.ndarray]) -> Path:
    folder.mkdir()
    for number, arrays in enumerate(files):
        save_file(arrays, folder / f"{number}.safetensors")
    sources = sorted(folder.glob("*.safetensors"))
    convert(sources, folder / "model", settings=HEADS, show_progress=False)
    return folder / "model"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("dinov2_reg", "dinotxt_v2_head", "dinotxt_v2_text")
    return model_of(tmp_path_factory.mktemp("v") / "a", *map(checkpoint, names))


@pytest.fixture(scope="module")
def reference(whole: Path) -> dict[str, np.ndarray]:
    """Returns the model's own outputs, under names that any framework would use."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 6, 8, 3)).astype(np.float32)
    tokens = rng.integers(0, 50, (3, 6)).astype(np.int64)
    backbone, model = dt.load_backbone(whole), dt.load(whole)
    out = backbone(images)
    arrays = {"images": np.moveaxis(images, -1, 1), "tokens": tokens}
    arrays |= {name: np.asarray(array) for name, array in out._asdict().items()}
    arrays["image_features"] = np.asarray(model.encode_image(images))
    arrays["text_features"] = np.asarray(model.encode_text(tokens))
    for number, layer in enumerate(backbone.intermediate_layers(images, 2, normalize=False)):
        parts = (layer.class_token[:, None], layer.register_tokens, layer.patch_tokens)
        arrays[f"layers/{number}"] = np.concatenate(parts, axis=1)
    return arrays


def saved(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(folder / "reference.npz", **arrays)
    return folder / "reference.npz"


def test_a_model_agrees_with_its_outputs(whole, reference, tmp_path, capsys):
    file = saved(tmp_path, reference)
    assert main(["--verify", f"--model={whole}", f"--reference={file}"]) == 0
    out = capsys.readouterr().out
    assert "all 7 agree within 0.001 of their size" in out
    names = [line.split()[0] for line in out.splitlines()[1:-1]]
    assert names == [
        "layers/0",
        "layers/1",
        "class_token",
        "register_tokens",
        "patch_tokens",
        "image_features",
        "text_features",
    ]


def test_the_first_layer_that_parts_is_named(reference, tmp_path, capsys):
    arrays = checkpoint("dinov2_reg")
    arrays["blocks.1.mlp.fc2.bias"] = arrays["blocks.1.mlp.fc2.bias"] + np.float32(0.5)
    other = model_of(tmp_path / "other", arrays)
    only = {k: v for k, v in reference.items() if not k.endswith("_features") and k != "tokens"}
    code = main(["--verify", f"--model={other}", f"--reference={saved(tmp_path, only)}"])
    assert code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("layers/0 still agrees, layers/1 is the first to differ: by 0.")
    assert "4 of 5 differ" in last


def test_a_nan_never_agrees(whole, reference, tmp_path):
    broken = reference["class_token"].copy()
    broken[0, 0] = np.nan
    file = saved(tmp_path, {"images": reference["images"], "class_token": broken})
    assert [result.agrees(1e9) for result in compare(whole, file)] == [False]


def test_the_reference_of_the_official_code_is_met(shared_goldens, tmp_path, capsys):
    """Uses the official layer names, combined as the docs describe."""
    folder = shared_goldens / "backbones"
    convert(
        [folder / "dinov2_tiny_reg.pth"],
        tmp_path / "model",
        settings=Settings(num_heads=4),
        show_progress=False,
    )
    images, out = np.load(folder / "images.npz"), np.load(folder / "dinov2_tiny_reg_out.npz")
    arrays = {"images": images["image_98x98"]}
    for ours, theirs in (("class_token", "clstoken"), ("patch_tokens", "patchtokens")):
        arrays[ours] = out[f"98x98/x_norm_{theirs}"]
    file = saved(tmp_path, arrays)
    options = [f"--model={tmp_path}/model", f"--reference={file}", "--tolerance=5e-5"]
    assert main(["--verify", *options]) == 0
    assert "all 2 agree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "has no images, expected normalised images"),
        ({"images": np.zeros((2, 6, 8))}, r"has images of shape \[2, 6, 8\]"),
        ({"layers/7": np.zeros(1)}, "has layers/7, but the backbone of .* has 2 blocks"),
        ({"logits": np.zeros(1)}, "holds 'logits'; a reference holds images and outputs"),
        ({"class_token": np.zeros((2, 3))}, r"class_token of shape \[2, 3\], but the model"),
        ({"tokens": None}, "has text_features but no tokens"),
        ({"tokens": np.zeros((3, 9), np.int64)}, "does not fit .* rows of 9 tokens"),
        ({"images": np.zeros((2, 7, 8, 3))}, "does not fit .* does not consist of 2x2 patches"),
    ],
)
def test_other_files_are_refused_as_reference(whole, reference, tmp_path, change, message):
    arrays = {k: v for k, v in (reference | change).items() if v is not None}
    with pytest.raises(UserError, match=message):
        compare(whole, saved(tmp_path, arrays))


def test_a_file_that_is_no_npz_is_refused(whole, tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="is not an .npz file with arrays"):
        compare(whole, tmp_path / "x.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "empty.npz").write_bytes(b"")
    np.savez(tmp_path / "whole.npz", images=np.zeros(1000))
    (tmp_path / "cut.npz").write_bytes((tmp_path / "whole.npz").read_bytes()[:700])
    for name in ("absent.npz", "array.npy", "empty.npz", "cut.npz"):
        with pytest.raises(UserError, match="is not an .npz file with arrays"):
            compare(whole, tmp_path / name)


def test_a_model_directory_is_described_without_its_arrays(whole, capsys, monkeypatch):
    monkeypatch.setattr("dinotxt_jax.storage.model_arrays.load_arrays", None)
    assert main(["--describe", str(whole)]) == 0
    out = capsys.readouterr().out
    for part in (
        "made from: 0.safetensors, dinov2_reg, float32, sha256 ",
        "architecture: has no name",
        "  backbone: patch_size 2, dim 64, depth 2, num_heads 4,",
        "  head: num_blocks 2,",
        "  text: vocabulary_size 50,",
        "stored as: float32",
        "fingerprint of the backbone: ",
        "images: mean (0.485, 0.456, 0.406)",
        "tokenizer: none is known",
    ):
        assert part in out
    arrays = (
        checkpoint("dinov2_reg") | checkpoint("dinotxt_v2_head") | checkpoint("dinotxt_v2_text")
    )
    total = sum(array.size for array in arrays.values()) + 1
    assert f"numbers: {total:,} (backbone " in out


def test_a_source_is_described_without_reading_it(tmp_path, capsys, monkeypatch):
    arrays = checkpoint("dinov3", p=16, q=16)
    save_file({f"module.{k}": v for k, v in arrays.items()}, tmp_path / "x.safetensors")
    monkeypatch.setattr("weights_convert.sources.SafetensorsArray.read", None)
    assert main(["--describe", str(tmp_path / "x.safetensors")]) == 0
    out = capsys.readouterr().out
    assert "official DINOv3 backbone (dinov3)" in out
    assert "found under: 'module.'" in out
    assert "num_heads 4" in out
    assert f"numbers: {sum(a.size for a in arrays.values()):,}" in out
    del arrays["norm.bias"]
    save_file(arrays, tmp_path / "y.safetensors")
    assert main(["--describe", str(tmp_path / "y.safetensors")]) == 0
    assert "cannot be converted: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "a checkpoint (SOURCE) is missing"),
        (["x.pth"], "--output=DIR is missing"),
        (["--export", "--output=x.safetensors"], "--model=DIR is missing"),
        (["--export", "--model=x"], "--output=FILE.safetensors is missing"),
        (["--verify", "--model=x"], "--reference=FILE.npz is missing"),
        (["--describe"], "a model directory or a checkpoint is missing"),
        (["x.pth", "--output=y", "--dtype=float16"], "--dtype=float16 is for --export"),
    ],
)
def test_missing_arguments_are_named(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_mistyped_flag_gets_a_suggestion(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["x.pth", "--outptu=y"])
    assert ended.value.code == 2
    assert "--outptu is not a flag; did you mean --output?" in capsys.readouterr().err
