"""Published segmentation data sets, read from small synthetic folders in the original layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from mask_trees import SIZE, ade20k, camvid, cityscapes, coco, context, msrc, save, spread, voc

from dinotxt_jax.config import DataConfig
from dinotxt_jax.data.mask_layouts import MASK_LAYOUTS
from dinotxt_jax.data.masks import IGNORED
from dinotxt_jax.data.sources import open_masks
from dinotxt_jax.data.texts import read_list
from dinotxt_jax.errors import UserError


def masks(name: str, path: Path, split: str = "", classes: str = "") -> DataConfig:
    return DataConfig(source="masks", name=name, path=str(path), split=split, classes=classes)


# layout: (drawing function, keys, expected mask, some classes by index, number of classes)
EXPECTED = {
    "ade20k_150": (
        ade20k,
        ["images/validation/ADE_val_00000001.jpg", "images/validation/ADE_val_00000002.jpg"],
        (IGNORED, 0, 149),
        {0: "wall", 12: "person", 149: "flag"},
        150,
    ),
    "cityscapes_19": (
        cityscapes,
        [
            "leftImg8bit/val/frankfurt/frankfurt_000000_000019_leftImg8bit.png",
            "leftImg8bit/val/munster/munster_000000_000019_leftImg8bit.png",
        ],
        (0, 18, IGNORED, IGNORED, 11),
        {0: "road", 11: "person", 18: "bicycle"},
        19,
    ),
    "voc_20": (
        voc,
        ["JPEGImages/2007_000042.jpg", "JPEGImages/2007_000033.jpg"],
        (IGNORED, 0, 19, IGNORED),
        {0: "aeroplane", 14: "person", 19: "tv monitor"},
        20,
    ),
    "voc_21": (
        voc,
        ["JPEGImages/2007_000042.jpg", "JPEGImages/2007_000033.jpg"],
        (0, 1, 20, IGNORED),
        {0: "background", 1: "aeroplane", 20: "tv monitor"},
        21,
    ),
    "context_59": (
        context,
        ["JPEGImages/2008_000002.jpg", "JPEGImages/2008_000003.jpg"],
        (IGNORED, 0, 54, 58),
        {0: "aeroplane", 1: "bag", 54: "tv monitor", 58: "wood"},
        59,
    ),
    "context_60": (
        context,
        ["JPEGImages/2008_000002.jpg", "JPEGImages/2008_000003.jpg"],
        (0, 1, 55, 59),
        {0: "background", 1: "aeroplane", 54: "truck", 59: "wood"},
        60,
    ),
    "coco_stuff_171": (
        coco,
        ["images/val2017/000000000139.jpg", "images/val2017/000000000285.jpg"],
        (0, 11, 79, 80, 84, 170, IGNORED),
        {0: "person", 11: "stop sign", 79: "toothbrush", 80: "banner", 84: "building", 170: "wood"},
        171,
    ),
    "coco_stuff_27": (
        coco,
        ["images/val2017/000000000139.jpg", "images/val2017/000000000285.jpg"],
        (9, 8, 4, 17, 20, 24, IGNORED),
        {9: "person", 8: "outdoor", 4: "indoor", 17: "textile", 20: "building", 24: "solid"},
        27,
    ),
    "coco_object": (
        coco,
        ["images/val2017/000000000139.jpg", "images/val2017/000000000285.jpg"],
        (1, 12, 80, 0, 0, 0, 0),
        {0: "background", 1: "person", 12: "stop sign", 80: "toothbrush"},
        81,
    ),
    "camvid_11": (
        camvid,
        ["test/0001TP_008550.png", "test/Seq05VD_f00030.png"],
        (0, 2, 10, IGNORED),
        {0: "sky", 2: "pole", 10: "bicyclist"},
        11,
    ),
    "msrc_v2": (
        msrc,
        ["Images/10_4_s.bmp", "Images/2_1_s.bmp"],
        (IGNORED, 0, 3, 13, 22),
        {0: "building", 3: "cow", 13: "flower", 22: "boat"},
        23,
    ),
}


def test_every_layout_is_tested() -> None:
    assert EXPECTED.keys() == MASK_LAYOUTS.keys()


@pytest.mark.parametrize("name", EXPECTED)
def test_a_published_data_set_is_read_from_its_original_folders(name: str, tmp_path: Path) -> None:
    draw, keys, indices, some_names, classes = EXPECTED[name]
    draw(tmp_path)
    source = open_masks(masks(name, tmp_path))
    assert [source.key(number) for number in range(len(source))] == keys
    assert len(source.class_names) == classes
    assert {index: source.class_names[index] for index in some_names} == some_names
    background = 0 if name in ("voc_21", "context_60", "coco_object") else None
    assert source.background == background
    for number in range(len(source)):
        image, mask = source.load(number)
        assert image.mode == "RGB"
        assert image.size == SIZE[::-1]
        assert mask.dtype == np.int32
        np.testing.assert_array_equal(mask, spread(*indices))


@pytest.mark.parametrize(
    ("name", "draw", "folder"),
    [
        ("ade20k_150", ade20k, "ADEChallengeData2016"),
        ("voc_20", voc, "VOC2012"),
        ("context_59", context, "VOC2010"),
        ("camvid_11", camvid, "CamVid"),
        ("msrc_v2", msrc, "MSRC_ObjCategImageDatabase_v2"),
    ],
)
def test_the_folder_above_the_root_does_as_well(name, draw, folder, tmp_path: Path) -> None:
    draw(tmp_path / folder)
    above, root = (open_masks(masks(name, path)) for path in (tmp_path, tmp_path / folder))
    assert [above.key(i) for i in range(len(above))] == [root.key(i) for i in range(len(root))]
    np.testing.assert_array_equal(above.load(0)[1], root.load(0)[1])


@pytest.mark.parametrize("images", ["", "images/"])
@pytest.mark.parametrize("maps", ["stuffthingmaps", "stuffthingmaps_trainval2017", "annotations"])
def test_the_maps_of_coco_may_lie_in_several_folders(images, maps, tmp_path: Path) -> None:
    coco(tmp_path, images, maps)
    (tmp_path / "annotations").mkdir(exist_ok=True)  # from instances_val2017.json
    assert len(open_masks(masks("coco_stuff_171", tmp_path))) == 2


def test_other_splits_are_read_when_named(tmp_path: Path) -> None:
    ade20k(tmp_path)
    source = open_masks(masks("ade20k_150", tmp_path, "training"))
    assert source.key(0) == "images/training/ADE_tra_00000001.jpg"
    assert source.load(0)[0].getpixel((0, 0)) == (2, 2, 2)


def test_classes_may_be_given_other_names(tmp_path: Path) -> None:
    camvid(tmp_path)
    (tmp_path / "names.txt").write_text("\n".join(f"thing {n}" for n in range(11)))
    source = open_masks(masks("camvid_11", tmp_path, classes=str(tmp_path / "names.txt")))
    assert source.class_names[10] == "thing 10"
    with pytest.raises(
        UserError, match="names 19 classes, but camvid_11 has 11; give one name per class"
    ):
        open_masks(masks("camvid_11", tmp_path, classes="cityscapes_19"))


@pytest.mark.parametrize("name", MASK_LAYOUTS)
def test_every_class_has_a_name_and_occurs_in_the_table_of_values(name: str) -> None:
    layout = MASK_LAYOUTS[name]
    indices = {index for index in layout.ids.values() if index != IGNORED}
    assert indices | {layout.others} - {None, IGNORED} == set(range(len(layout.class_names())))


@pytest.mark.parametrize("name", sorted(MASK_LAYOUTS.keys() - {"coco_stuff_27"}))
def test_classes_have_distinct_values_and_names(name: str) -> None:
    layout = MASK_LAYOUTS[name]
    indices = [index for index in layout.ids.values() if index != IGNORED]
    assert len(indices) == len(set(indices))
    assert len(set(layout.class_names())) == len(layout.class_names())


def value_of(name: str, value: int) -> int:
    return int(MASK_LAYOUTS[name].to_indices(np.array([[value]]), "config.data")[0, 0])


def test_train_ids_of_cityscapes() -> None:
    pairs = {0: 255, 6: 255, 7: 0, 8: 1, 11: 2, 17: 5, 18: 255, 19: 6, 23: 10, 28: 15, 29: 255}
    pairs |= {30: 255, 31: 16, 32: 17, 33: 18, 34: 255, 255: 255}
    assert {value: value_of("cityscapes_19", value) for value in pairs} == pairs


def test_thing_ids_of_coco_leave_out_those_that_never_occur() -> None:
    values = [value for value in range(91) if value in MASK_LAYOUTS["coco_stuff_171"].ids]
    assert len(values) == 80
    never = {value + 1 for value in range(91)} - {value + 1 for value in values}
    assert never == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91}
    assert [value_of("coco_stuff_171", value) for value in values] == list(range(80))
    assert [value_of("coco_object", value) for value in values] == list(range(1, 81))
    assert [value_of("coco_stuff_171", value) for value in range(91, 182)] == list(range(80, 171))
    assert {value_of("coco_object", value) for value in (*range(91, 182), 255)} == {0}


def test_supercategories_of_coco_hold_the_classes_that_they_should() -> None:
    fine, coarse = MASK_LAYOUTS["coco_stuff_171"], MASK_LAYOUTS["coco_stuff_27"]
    names, groups = fine.class_names(), coarse.class_names()
    members: dict[int, list[str]] = {index: [] for index in range(27)}
    for value, index in fine.ids.items():
        if index != IGNORED:
            members[coarse.ids[value]].append(names[index])
    sizes = [len(members[index]) for index in range(27)]
    assert sizes[:12] == [6, 5, 10, 6, 7, 7, 5, 10, 5, 1, 10, 8]
    assert sizes[12:] == [2, 6, 4, 11, 4, 11, 7, 2, 6, 11, 9, 2, 6, 5, 5]
    assert groups.index("food") == 2
    assert groups[14] == "food"
    assert members[14] == ["food", "fruit", "salad", "vegetable"]
    assert members[2][0] == "banana"
    assert members[2][-1] == "cake"
    assert members[3] == ["chair", "couch", "potted plant", "bed", "dining table", "toilet"]
    assert members[12] == ["ceiling", "tile ceiling"]
    assert members[18][0] == "brick wall"
    assert all(name.endswith("wall") for name in members[18])
    assert members[20] == ["bridge", "building", "house", "roof", "skyscraper", "tent"]
    assert members[22][:5] == ["branch", "bush", "flower", "grass", "leaves"]
    assert members[23] == ["clouds", "sky"]
    assert members[26] == ["fog", "river", "sea", "water", "water drops"]


def test_msrc_colours_equal_voc_colours_without_two() -> None:
    def voc_colour(number: int) -> int:
        """Assigns three bits at a time to the next lower bit of red, green and blue."""
        return sum(
            (number >> (3 * level + channel) & 1) << (7 - level + 16 - 8 * channel)
            for level in range(8)
            for channel in range(3)
        )

    numbers = [0, *range(1, 19), *range(21, 26)]
    expected = [IGNORED, *range(23)]
    assert MASK_LAYOUTS["msrc_v2"].ids == dict(zip(map(voc_colour, numbers), expected, strict=True))


def test_scene_words_are_single_and_no_object_classes() -> None:
    words = read_list("scene_words", "")
    assert 35 <= len(words) == len(set(words)) <= 45
    assert all(word.isalpha() and word.islower() for word in words)
    assert not set(words) & {*read_list("voc_20", ""), *read_list("coco_things_80", "")}
    assert {"sky", "wall", "grass", "road", "floor"} <= set(words)


@pytest.mark.parametrize(
    ("name", "draw", "spoil", "message"),
    [
        ("ade20k_150", ade20k, "annotations/validation/ADE_val_00000002.png", "is missing, expect"),
        (
            "voc_20",
            voc,
            "SegmentationClass/2007_000042.png",
            "expected the mask for JPEGImages/2007",
        ),
        ("voc_20", voc, "JPEGImages/2007_000033.jpg", "expected an image in the split val"),
        ("cityscapes_19", cityscapes, "gtFine", r"leftImg8bit/SPLIT/CITY/\*_leftImg8bit.png and"),
        ("voc_21", voc, "ImageSets/Segmentation/val.txt", "there are train"),
        ("voc_21", voc, "ImageSets", "val.txt is missing, .* in the split 'val'; restore it"),
        ("camvid_11", camvid, "testannot", "no split 'test' for camvid_11, only train, val;"),
        ("msrc_v2", msrc, "Images", r"expected MSRC_ObjCategImageDatabase_v2/\{Images"),
    ],
)
def test_missing_parts_of_a_data_set_are_named(
    name: str, draw, spoil: str, message: str, tmp_path: Path
) -> None:
    draw(tmp_path)
    (tmp_path / spoil).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=message):
        open_masks(masks(name, tmp_path))


def test_a_split_that_is_not_there_is_named_beside_those_that_are(tmp_path: Path) -> None:
    for name, draw, splits in (
        ("ade20k_150", ade20k, "only training, validation; correct config.data.split"),
        ("cityscapes_19", cityscapes, "only val; correct"),
        ("coco_object", coco, "only val2017; correct"),
        ("camvid_11", camvid, "only test, train, val; correct"),
        ("voc_20", voc, r"correct config.data.split \(there are train, val\)"),
    ):
        draw(tmp_path / name)
        with pytest.raises(UserError, match=f"split 'minival'.*{splits}"):
            open_masks(masks(name, tmp_path / name, "minival"))
    msrc(tmp_path / "msrc")
    with pytest.raises(UserError, match="'test', but msrc_v2 has no splits; leave it empty"):
        open_masks(masks("msrc_v2", tmp_path / "msrc", "test"))


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config.data.name is 'ade'.*ade20k_150, .*msrc_v2\.$"):
        open_masks(masks("ade", tmp_path))
    with pytest.raises(UserError, match="='jsonl' has no masks; choose among scenes, csv, ma"):
        open_masks(DataConfig(source="jsonl"))
    for path in (tmp_path, tmp_path / "nowhere"):
        for name in MASK_LAYOUTS:
            with pytest.raises(UserError, match=f"is not the folder of {name}, expected .*; corr"):
                open_masks(masks(name, path))


def test_empty_folders_and_lists_are_named(tmp_path: Path) -> None:
    for folder in ("images/validation", "annotations/validation"):
        (tmp_path / "ade" / folder).mkdir(parents=True)
    with pytest.raises(UserError, match="images/validation is empty"):
        open_masks(masks("ade20k_150", tmp_path / "ade"))
    voc(tmp_path / "voc")
    (tmp_path / "voc/ImageSets/Segmentation/val.txt").write_text("\n")
    with pytest.raises(UserError, match=r"val.txt, which config.data.split names, is empty"):
        open_masks(masks("voc_20", tmp_path / "voc"))


def test_values_and_colours_without_a_class_are_named(tmp_path: Path) -> None:
    msrc(tmp_path / "msrc")
    truth = tmp_path / "msrc/GroundTruth/10_4_s_GT.bmp"
    save(np.full((*SIZE, 3), (128, 0, 1), np.uint8), truth)
    source = open_masks(masks("msrc_v2", tmp_path / "msrc"))
    with pytest.raises(UserError, match=r"10_4_s_GT.bmp holds the colour \(128, 0, 1\), which is"):
        source.load(0)
    save(np.zeros(SIZE, np.uint8), truth)
    with pytest.raises(UserError, match=r"shape \[10, 12\], expected 8-bit RGB colours"):
        source.load(0)
    ade20k(tmp_path / "ade")
    truth = tmp_path / "ade/annotations/validation/ADE_val_00000001.png"
    source = open_masks(masks("ade20k_150", tmp_path / "ade"))
    for value, dtype in ((151, np.uint8), (4000, np.uint16)):
        save(np.full(SIZE, value, dtype), truth)
        with pytest.raises(UserError, match=f"holds the value {value}, which is not a class"):
            source.load(0)
    save(np.zeros((*SIZE, 3), np.uint8), truth)
    with pytest.raises(UserError, match=r"shape \[10, 12, 3\], expected one integer class"):
        source.load(0)


def test_things_of_coco_that_were_never_drawn_are_an_error() -> None:
    for name in ("coco_stuff_171", "coco_stuff_27"):
        with pytest.raises(ValueError, match="holds the value 11, which is not a class"):
            value_of(name, 11)
