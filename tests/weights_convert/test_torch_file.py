"""The reader of .pth files: reads what torch writes, refuses everything else, executes nothing."""

import os
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from dinotxt_jax.errors import UserError
from weights_convert import torch_pickle
from weights_convert.torch_file import MAX_PICKLE_BYTES, read_arrays


@pytest.mark.parametrize(
    "dtype",
    ["float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool"],
)
def test_every_element_type_is_read_as_written(torch_files, dtype):
    written = {"a": np.arange(12).reshape(3, 4).astype(dtype), "b": np.array(1).astype(dtype)}
    arrays = read_arrays(torch_files.write(written))
    assert list(arrays) == ["a", "b"]
    for name, array in arrays.items():
        assert (array.shape, array.dtype) == (written[name].shape, written[name].dtype)
        np.testing.assert_array_equal(array.read(), written[name])


def test_bfloat16_is_read_as_bfloat16(torch_files):
    written = np.array([1.5, -2.25, 3e38], ml_dtypes.bfloat16)
    array = read_arrays(torch_files.write({"a": written}))["a"]
    assert array.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(array.read(), written)


def test_an_array_is_read_only_and_not_copied(torch_files):
    array = read_arrays(torch_files.write({"a": np.zeros(4, np.float32)}))["a"].read()
    assert not array.flags.writeable
    assert not array.flags.owndata


def test_offsets_and_non_contiguous_strides_are_honoured(torch_files):
    values = np.arange(24, dtype=np.float32)
    tensors = {
        "transposed": torch_files.tensor("FloatStorage", "0", 24, 0, (4, 6), (1, 4)),
        "slice": torch_files.tensor("FloatStorage", "0", 24, 13, (2, 3), (6, 2)),
        "single": torch_files.tensor("FloatStorage", "0", 24, 23, (1, 1), (10**15, 7)),
    }
    path = torch_files.write_raw(torch_files.state_dict(tensors), {"0": values.tobytes()})
    arrays = read_arrays(path)
    np.testing.assert_array_equal(arrays["transposed"].read(), values.reshape(6, 4).T)
    np.testing.assert_array_equal(
        arrays["slice"].read(), values[13:].reshape(-1)[[[0, 2, 4], [6, 8, 10]]]
    )
    np.testing.assert_array_equal(arrays["single"].read(), [[23]])


def test_tensors_may_share_a_storage_and_be_empty(torch_files):
    tensors = {
        "whole": torch_files.tensor("FloatStorage", "0", 6, 0, (6,), (1,)),
        "half": torch_files.tensor("FloatStorage", "0", 6, 3, (3,), (1,)),
        "empty": torch_files.tensor("FloatStorage", "0", 6, 0, (0, 5), (5, 1)),
    }
    storage = np.arange(6, dtype=np.float32).tobytes()
    arrays = read_arrays(torch_files.write_raw(torch_files.state_dict(tensors), {"0": storage}))
    np.testing.assert_array_equal(arrays["whole"].read()[3:], arrays["half"].read())
    assert arrays["empty"].read().shape == (0, 5)


def test_parameters_are_read_like_tensors(torch_files):
    tensor = torch_files.tensor("FloatStorage", "0", 2, 0, (2,), (1,))
    hooks = b"\x88ccollections\nOrderedDict\n)R"
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + torch_files.tensor_code(tensor)
    pickled = torch_files.dictionary({"a": parameter + hooks + b"tR"})
    path = torch_files.write_raw(pickled, {"0": np.array([1, 2], np.float32).tobytes()})
    np.testing.assert_array_equal(read_arrays(path)["a"].read(), [1, 2])


class _Shell:
    """Pickles to a call, as an attacker would write it."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_a_foreign_global_is_refused_by_name_and_not_called(torch_files, tmp_path, protocol):
    made = tmp_path / "made"
    pickled = pickle.dumps({"a": _Shell(os.mkdir, str(made))}, protocol=protocol)
    # Protocols 0 and 1 write text opcodes, of which torch writes none; they stop even earlier.
    named = "mkdir" if protocol >= 2 else "refused"
    with pytest.raises(UserError, match=named):
        read_arrays(torch_files.write_raw(pickled))
    assert not made.exists()


@pytest.mark.parametrize(
    ("code", "named"),
    [
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
        (b"(X\x01\x00\x00\x001ibuiltins\neval\n.", "builtins.eval"),
        (b"ctorch\nload\n)R.", "torch.load"),
        (b"ctorch.serialization\n_get_layout\n)R.", "torch.serialization._get_layout"),
        (b"ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
        (b"(ccollections\nOrderedDict\no.", "OBJ"),
        (b"\x82\x01.", "EXT1"),
        (b"Pstorage\n.", "PERSID"),
        (b"}ccollections\nOrderedDict\nb.", "attributes"),
        (b"}}X\x08\x00\x00\x00__dict__}sb.", "attributes"),
        (b"}(ccollections\nOrderedDict\n)Rtb.", "attributes"),
        (b"X\x01\x00\x00\x00a)R.", "calls something"),
        (b"ctorch\nFloatStorage\n)R.", "FloatStorage"),
        (b"}))s.", "dictionary key"),
        (b"\x8f.", "EMPTY_SET"),
        (b"cos\x1b[31m\nsystem\n.", r"os\\x1b\[31m"),
    ],
)
def test_opcodes_that_call_import_or_build_are_refused(torch_files, code, named):
    with pytest.raises(UserError, match=f"refused.*{named}"):
        read_arrays(torch_files.write_raw(b"\x80\x04" + code))


@pytest.mark.parametrize(
    "pickled",
    [
        b"",
        b"\x80\x02",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02(.",
        b"\x80\x02R.",
        b"\x80\x02u.",
        b"\x80\x02h\x05.",
        b"\x80\x02q\x05.",
        b"\x80\x02}\x93.",
        b"\x80\x02}Q.",
        b"\x80\x02}}.",
        b"\x80\x02Ke.",
        b"\xff\xff",
        b"\x80\x02X\xff\xff\xff\xffa.",
        b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    ],
)
def test_a_malformed_pickle_is_refused(torch_files, pickled):
    with pytest.raises(UserError, match=r"refused: .*\."):
        read_arrays(torch_files.write_raw(pickled))


def test_an_endless_pickle_is_refused(torch_files, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(UserError, match="more than 1000 opcodes"):
        read_arrays(torch_files.write_raw(b"\x80\x02" + b"N" * 2000 + b"."))
    with pytest.raises(UserError, match="far more than arrays need"):
        read_arrays(torch_files.write_raw(b"N" * (MAX_PICKLE_BYTES + 1)))


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "named"),
    [
        (0, (5,), (1,), "has 4 elements"),
        (1, (4,), (1,), "reaches for number 4"),
        (0, (2, 2), (3, 1), "reaches for number 4"),
        (10**9, (1,), (1,), "reaches for number 1000000000"),
        (0, (10**6, 10**6), (0, 0), "has 4 elements"),
        (-1, (1,), (1,), "negative"),
        (0, (-2,), (1,), "negative"),
        (3, (2,), (-1,), "negative"),
        (0, (2**200,), (0,), "absurd"),
        (0, (2,), (1, 1), "do not match"),
        (0, (1,) * 17, (1,) * 17, "17 dimensions"),
        (0, (0, 2**40), (1, 1), "absurd"),
    ],
)
def test_a_tensor_beyond_its_storage_is_refused(torch_files, offset, shape, strides, named):
    tensor = torch_files.tensor("FloatStorage", "0", 4, offset, shape, strides)
    path = torch_files.write_raw(torch_files.state_dict({"a": tensor}), {"0": bytes(16)})
    with pytest.raises(UserError, match=named):
        read_arrays(path)


def test_a_storage_of_another_size_than_the_pickle_says_is_refused(torch_files):
    tensor = torch_files.tensor("FloatStorage", "0", 4, 0, (4,), (1,))
    pickled = torch_files.state_dict({"a": tensor})
    with pytest.raises(UserError, match="has 12 bytes in storage '0', and its pickle says 16"):
        read_arrays(torch_files.write_raw(pickled, {"0": bytes(12)}))
    with pytest.raises(UserError, match="lacks the record 'archive/data/0'"):
        read_arrays(torch_files.write_raw(pickled, {"../0": bytes(16)}))


def test_a_truncated_file_is_refused_wherever_it_ends(torch_files):
    whole = torch_files.write({"a": np.arange(64, dtype=np.float32)}).read_bytes()
    for size in range(0, len(whole), 7):
        path = torch_files.folder / "truncated.pth"
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"truncated\.pth"):
            read_arrays(path)


def test_damage_anywhere_is_a_user_error_or_still_an_array(torch_files):
    whole = torch_files.write({"a": np.arange(8, dtype=np.float32)}).read_bytes()
    draw = np.random.default_rng(0)
    path = torch_files.folder / "damaged.pth"
    for _ in range(400):
        damaged = bytearray(whole)
        for position in draw.integers(len(whole), size=3):
            damaged[position] = draw.integers(256)
        path.write_bytes(bytes(damaged))
        try:
            for array in read_arrays(path).values():
                assert array.read().shape == array.shape
        except UserError as error:
            assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)


def test_compressed_records_are_refused(torch_files):
    tensor = torch_files.tensor("FloatStorage", "0", 4, 0, (4,), (1,))
    pickled = torch_files.state_dict({"a": tensor})
    path = torch_files.write_raw(pickled, {"0": bytes(16)}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed or encrypted"):
        read_arrays(path)


def test_overlapping_records_are_refused(torch_files):
    path = torch_files.write({"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)})
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("archive/data/0").header_offset
        second = archive.getinfo("archive/data/1").header_offset
    directory = content.rindex(b"archive/data/1") - 4
    assert content[directory : directory + 4] == second.to_bytes(4, "little")
    path.write_bytes(content[:directory] + first.to_bytes(4, "little") + content[directory + 4 :])
    with pytest.raises(UserError, match="other records inside"):
        read_arrays(path)


def test_big_endian_files_are_refused(torch_files):
    path = torch_files.write_raw(torch_files.state_dict({}), extra={"byteorder": b"big"})
    with pytest.raises(UserError, match="little-endian"):
        read_arrays(path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"", "is empty"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "torch before 1.6"),
        (b"not a checkpoint", "not a torch file"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, named):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=named):
        read_arrays(path)


def test_a_zip_without_a_pickle_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"0 NAME/data.pkl records"):
        read_arrays(path)


def test_a_training_checkpoint_gives_dotted_names_and_only_tensors(torch_files):
    tensor = torch_files.tensor("FloatStorage", "0", 1, 0, (1,), (1,))
    code = torch_files.tensor_code(tensor)
    teacher = torch_files.dictionary({"w": code, "epoch": b"K\x07"})[2:-1]
    pickled = torch_files.dictionary({"teacher": teacher, "b": code, "iteration": b"K\x07"})
    path = torch_files.write_raw(pickled, {"0": np.float32(5).tobytes()})
    arrays = read_arrays(path)
    assert list(arrays) == ["b", "teacher.w"]
    assert arrays["teacher.w"].read() == np.float32(5)


def test_what_holds_no_tensors_is_refused_with_the_keys_found(torch_files):
    pickled = torch_files.dictionary({"iteration": b"K\x07", "seed": b"K\x07"})
    with pytest.raises(UserError, match=r"holds no tensors .*'iteration', 'seed'"):
        read_arrays(torch_files.write_raw(pickled))
    with pytest.raises(UserError, match="holds a list"):
        read_arrays(torch_files.write_raw(b"\x80\x02]."))
