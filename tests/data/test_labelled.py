"""Labelled images: folders by name, number and WordNet id, CSV indices, and bad input."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import png

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.bad_images import BadImageError
from dinotxt_jax.data.evaluation_batches import evaluation_batches
from dinotxt_jax.data.file_lists import image_files
from dinotxt_jax.data.labelled import LabelledSource
from dinotxt_jax.data.sources import open_labelled
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.data.transforms import EvalTransform
from dinotxt_jax.errors import UserError

TENCH, CRANE_BIRD, CRANE, TOILET_PAPER = "n01440764", "n02012849", "n03126707", "n15075141"


def tree_of(root: Path, *folders: str) -> Path:
    """Writes one image into each folder."""
    for value, folder in enumerate(folders):
        (root / folder).mkdir(parents=True)
        (root / folder / "photo.png").write_bytes(png(value))
    return root


def opened(path: Path, **settings: str) -> LabelledSource:
    return open_labelled(DataConfig(source="folder", path=str(path), **settings))


def labels_by_key(source: LabelledSource) -> dict[str, tuple[int, ...]]:
    return {source.key(i): source.labels(i) for i in range(len(source))}


def test_a_folder_a_class_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "great_dane", "tabby", "zebra/deeper")
    (tree / "great_dane" / "other.JPEG").write_bytes(png(9))
    (tree / "tabby" / "notes.txt").write_text("no image")
    source = opened(tree)
    assert source.class_names == ("great dane", "tabby", "zebra")
    assert [source.labels(i) for i in range(len(source))] == [(0,), (0,), (1,), (2,)]
    assert source.key(3) == "zebra/deeper/photo.png"
    assert source[2].captions == ("tabby",)
    assert source[2].image == png(1)
    assert pickle.loads(pickle.dumps(source))[3] == source[3]


def test_an_image_that_is_gone_is_a_bad_image_when_it_is_read(tmp_path: Path) -> None:
    source = opened(tree_of(tmp_path, "cat"))
    (tmp_path / "cat" / "photo.png").unlink()
    with pytest.raises(BadImageError, match=r"cat/photo\.png cannot be read: No such file"):
        source[0]


def test_folders_of_wordnet_ids_are_the_imagenet_classes_that_exist(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, TOILET_PAPER, CRANE, TENCH, CRANE_BIRD)
    source = opened(tree, classes="imagenet1k")
    # Two classes share a name and remain two classes.
    assert source.class_names == ("tench", "crane bird", "construction crane", "toilet paper")
    assert labels_by_key(source) == {
        f"{TENCH}/photo.png": (0,),
        f"{CRANE_BIRD}/photo.png": (1,),
        f"{CRANE}/photo.png": (2,),
        f"{TOILET_PAPER}/photo.png": (3,),
    }


def test_all_thousand_wordnet_ids_have_imagenets_labels(tmp_path: Path) -> None:
    wnids = read_list("imagenet1k_wnids", "x")
    for wnid in wnids:
        (tmp_path / wnid).mkdir()
    (tmp_path / wnids[721] / "a.png").write_bytes(png(0))
    source = opened(tmp_path, classes="imagenet1k")
    assert source.class_names == read_list("imagenet1k", "x")
    assert labels_by_key(source) == {f"{wnids[721]}/a.png": (721,)}


def test_the_bundled_wordnet_ids_equal_the_real_labels(shared_data: Path) -> None:
    source = open_labelled(
        DataConfig(
            source="csv",
            path=str(shared_data / "imagenet_sample" / "labels.csv"),
            classes="imagenet1k_wnids",
        )
    )
    for index in range(len(source)):
        assert source.key(index) == f"{source.captions(index)[0]}.jpg"


def test_equal_class_names_stay_two_classes(tmp_path: Path) -> None:
    # ImageNet calls two classes "missile" and two "sunglasses".
    names, wnids = read_list("imagenet1k", "x"), read_list("imagenet1k_wnids", "x")
    twins = [label for label, name in enumerate(names) if name == "missile"]
    source = opened(tree_of(tmp_path, *(wnids[label] for label in twins)), classes="imagenet1k")
    assert source.class_names == ("missile", "missile")
    assert [source.labels(i) for i in range(2)] == [(0,), (1,)]


def test_user_names_for_imagenet_fit_a_subset_of_the_folders(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"class {i}" for i in range(1000)))
    tree = tree_of(tmp_path / "tree", CRANE_BIRD, TOILET_PAPER)
    source = opened(tree, classes=str(tmp_path / "names.txt"))
    assert source.class_names == ("class 134", "class 999")


def test_wordnet_ids_become_words_where_no_names_are_given(tmp_path: Path) -> None:
    assert opened(tree_of(tmp_path, CRANE, TENCH)).class_names == ("tench", "construction crane")


def test_a_number_is_the_label_and_not_a_place_in_the_order_of_texts(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "0", "1", "10", "100", "2", "999")
    source = opened(tree, classes="imagenet1k")
    assert source.class_names == read_list("imagenet1k", "x")
    assert labels_by_key(source) == {f"{n}/photo.png": (n,) for n in (0, 1, 10, 100, 2, 999)}
    present = opened(tree, classes="imagenet1k", only="present")
    assert [present.labels(i) for i in range(6)] == [(0,), (1,), (3,), (4,), (2,), (5,)]
    assert [present.class_names[i] for i in (0, 2, 5)] == [
        "tench",
        "great white shark",
        "toilet paper",
    ]


def test_present_keeps_the_classes_that_have_an_image(tmp_path: Path) -> None:
    tree = tree_of(tmp_path, "cat", "dog", "fox")
    (tree / "dog" / "photo.png").unlink()
    source = opened(tree, only="present")
    assert source.class_names == ("cat", "fox")
    assert [source.labels(i) for i in range(2)] == [(0,), (1,)]


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ([TENCH, "n00000001"], "has the folder n00000001, which is not the WordNet ID of any of"),
        ([TENCH, "goldfish"], "has the folder goldfish, which is not the WordNet ID of any of"),
        ([TENCH, "7"], f"has the folder {TENCH} next to folders named by number"),
        (["3", "misc"], "has the folder misc next to folders named by number"),
        (["0", "1000"], r"1000: the label 1000 is outside the 1000 classes \(0 to 999\)"),
        (["-1"], "the label -1 is outside the 1000 classes"),
        (["cat", "dog"], "has 2 folders, but config.data.classes names 1000 classes"),
        (["cat", "²"], "has 2 folders, but config.data.classes names 1000 classes"),
    ],
)
def test_folders_that_do_not_fit_the_classes_are_named(tmp_path, folders, message) -> None:
    with pytest.raises(UserError, match=message):
        opened(tree_of(tmp_path, *folders), classes="imagenet1k")


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    tree = tree_of(tmp_path / "tree", "cat")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    with pytest.raises(UserError, match="config.data.path is empty, .*source=folder reads"):
        open_labelled(DataConfig(source="folder"))
    for path, settings, message in (
        (tmp_path / "absent", {}, "is not a folder"),
        (tree / "cat", {}, "cat holds files but no folders, expected one folder for each class"),
        (tmp_path / "nothing", {}, "nothing is empty, expected at least one example"),
        (tmp_path / "hollow", {}, "hollow is empty, expected at least one example"),
        (
            tree,
            {"classes": str(tmp_path / "empty.txt")},
            "config.data.classes names, is empty",
        ),
        (tree_of(tmp_path / "b", "n00000001"), {}, "has the class n00000001, which is not among"),
    ):
        with pytest.raises(UserError, match=message):
            opened(path, **settings)


def csv_of(folder: Path, text: str) -> DataConfig:
    (folder / "index.csv").write_text(text)
    (folder / "names.txt").write_text("cat\ndog\n\ncrane\ncrane\n")
    return DataConfig(source="csv", path=str(folder / "index.csv"))


def test_a_csv_names_files_and_labels_by_number_or_name(tmp_path: Path) -> None:
    config = csv_of(tmp_path, "file,label,split\na.png,3,test\nb.png,0;1,test\nc.png,dog,train\n")
    numbered = DataConfig(
        source="csv", path=config.path, classes=str(tmp_path / "names.txt"), split="test"
    )
    source = open_labelled(numbered)
    assert source.class_names == ("cat", "dog", "crane", "crane")
    assert [source.labels(i) for i in range(2)] == [(3,), (0, 1)]
    assert source.captions(1) == ("cat", "dog")
    named = csv_of(tmp_path, "path,label\na.png,dog\nb.png,cat\n")
    assert open_labelled(named).class_names == ("cat", "dog")


def test_names_in_quoted_fields_are_taken_whole(tmp_path: Path) -> None:
    names = ['a "quoted", odd thing', "potter's wheel", "two\nlines", "Ünïcode 日本"]
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    rows = "".join(f'"{i}, x.png",{name}\n' for i, name in enumerate(quoted))
    source = open_labelled(csv_of(tmp_path, f"file,label\n{rows}"))
    assert source.class_names == tuple(sorted(names))
    assert [source.captions(i) for i in range(4)] == [(name,) for name in names]
    assert source.key(0) == "0, x.png"


def test_classes_can_be_restricted(tmp_path: Path) -> None:
    csv_of(tmp_path, "file,label\na,0\nb,1\nc,2\nd,3\n")
    (tmp_path / "only.txt").write_text("crane\ndog\n")
    source = open_labelled(
        DataConfig(
            source="csv",
            path=str(tmp_path / "index.csv"),
            classes=str(tmp_path / "names.txt"),
            only=str(tmp_path / "only.txt"),
        )
    )
    assert source.class_names == ("dog", "crane", "crane")
    assert [source.labels(i) for i in range(len(source))] == [(0,), (1,), (2,)]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("file,label\na,4\n", {}, r"index.csv:2: the label 4 is outside the 4 classes"),
        ("file,label\na,-1\n", {}, "the label -1 is outside the"),
        ("file,label\na,crane\n", {}, "names several classes; use class numbers"),
        ("file,label\na,cow\n", {}, "names no class"),
        ("file,label\na,²\n", {}, "names no class"),
        ("file,label\na,\n", {}, "index.csv:2: the column label is empty"),
        ("name,label\na,1\n", {}, "has the columns name, label, expected one of file"),
        ("file,class\na,1\n", {}, r"and label; rename the columns, or set config.data.label_key"),
        (
            "",
            {},
            "csv is empty, expected at least one example; fill it, or correct config.data",
        ),
        ("file,label\n", {}, "index.csv is empty, expected at least one example"),
        ("file,label\na,1\n", {"classes": ""}, "stores labels as numbers"),
        (
            "file,label\na,1\n",
            {"split": "test"},
            "split 'test', its examples name no split; set",
        ),
        (
            "file,label\na,1\n",
            {"classes": "/nowhere.txt"},
            "is neither a file nor one of .*imagenet1k",
        ),
        ("file,label\na,1\n", {"only": "imagenet1k"}, "config.data.only names 'tench'"),
        ("file,label\na,1\n", {"image_root": "/nowhere"}, "nowhere is not a folder"),
    ],
)
def test_labels_that_cannot_be_used_are_named(tmp_path, text, changes, message) -> None:
    config = csv_of(tmp_path, text)
    settings = {"source": "csv", "path": config.path, "classes": str(tmp_path / "names.txt")}
    with pytest.raises(UserError, match=message):
        open_labelled(DataConfig(**(settings | changes)))


def test_images_of_every_kind_come_out_as_upright_rgb(tmp_path: Path) -> None:
    """The image is bright above and dark below, however the file stores it."""
    grey = np.repeat([[220], [30]], 24, axis=0).repeat(40, axis=1).astype(np.uint8)
    upright = Image.fromarray(grey)
    wide = grey.astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated; to be rotated clockwise for display
    (tmp_path / "half").mkdir()
    upright.save(tmp_path / "half" / "0_grey.png")
    upright.convert("CMYK").save(tmp_path / "half" / "1_cmyk.jpg", quality=95)
    Image.fromarray(wide).save(tmp_path / "half" / "2_wide.png")
    turned = upright.convert("RGB").transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "half" / "3_exif.jpg", quality=95, exif=exif)
    (tmp_path / "pixel").mkdir()
    Image.new("RGB", (1, 1), (200, 100, 50)).save(tmp_path / "pixel" / "one.png")
    for augmentation in ("squash", "center_crop"):
        config = DataConfig(
            source="folder",
            path=str(tmp_path),
            image_size=16,
            resize=16,
            augmentation=augmentation,
        )
        source = open_labelled(config)
        (images,) = evaluation_batches(source, EvalTransform(config), 8, threads=2)
        keys = [source.key(index) for index in range(5)]
        assert (images.shape, images.dtype) == ((5, 16, 16, 3), np.uint8)
        for image, key in zip(images[:4], keys, strict=False):
            # JPEG and the conversion to CMYK and back change the levels slightly.
            np.testing.assert_allclose(image[:6].astype(int), 220, atol=8, err_msg=key)
            np.testing.assert_allclose(image[-6:].astype(int), 30, atol=8, err_msg=key)
        np.testing.assert_array_equal(images[4], np.full((16, 16, 3), (200, 100, 50)))
        assert [source.captions(index) for index in (3, 4)] == [("half",), ("pixel",)]


def test_names_that_look_like_numbers_stay_names(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("file,label\na.png,cat\nb.png,1\nc.png,2\n")
    source = open_labelled(DataConfig(source="csv", path=str(tmp_path / "i.csv")))
    assert [source.captions(i) for i in range(3)] == [("cat",), ("1",), ("2",)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.png,caf\u00e9\n".encode("latin-1"), "is not a CSV in UTF-8"),
        (b"label,file\ndog\n", "i.csv:2: the column file is empty; fill it or remove the line"),
    ],
)
def test_a_csv_that_cannot_be_read_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_labelled(DataConfig(source="csv", path=str(tmp_path / "i.csv")))


def test_files_that_are_not_read_are_counted_by_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(
        "dinotxt_jax.data.file_lists.logging.warning",
        lambda text, *values: lines.append(text % values),
    )
    tree = tree_of(tmp_path / "tree", "cat", "dog")
    for name in ("cat/1.heic", "cat/2.HEIC", "dog/3.heic", "dog/notes.txt", "dog/.DS_Store"):
        (tree / name).touch()
    assert len(opened(tree)) == 2
    assert lines == [
        f"{tree}: 4 files are not read because of their endings (3 .heic, 1 .txt); images end in "
        ".bmp, .gif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp"
    ]
    lines.clear()
    tree_of(tmp_path / "other", "cat")
    (tmp_path / "other/cat/notes.txt").touch()
    opened(tmp_path / "other")
    assert "other: 1 file is not read because of its ending (1 .txt); images" in lines[0]
    assert [file.name for file in image_files([str(tree), str(tree / "cat/1.heic")])] == [
        *("photo.png", "photo.png", "1.heic")
    ]
    for file in tree.rglob("*.png"):
        file.unlink()
    message = r"tree holds no readable image, only other files \(3 \.heic, 1 \.txt\)"
    with pytest.raises(UserError, match=message):
        opened(tree)
    with pytest.raises(UserError, match=message):
        image_files([str(tree)])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UserError, match="nothing holds no file, expected images"):
        image_files([str(tmp_path / "nothing")])
