"""The .pth reader: reads the files torch writes, refuses everything else, executes nothing."""

import builtins
import os
import pickle
import sys
import time
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from hostile import corpus
from hypothesis import HealthCheck, given, settings, strategies
from torch_files import text

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


def call(function: str, arguments: bytes) -> bytes:
    """Returns the opcodes that call MODULE.NAME with arguments given as opcodes."""
    module, name = function.rsplit(".", 1)
    return f"c{module}\n{name}\n(".encode() + arguments + b"tR"


FLOAT = b"ctorch\nfloat32\n"
# Values other than weights that `torch.load(weights_only=True)` accepts.
BESIDE_WEIGHTS = {
    "size": call("torch.Size", b"(K\x02K\x03t"),
    "device": call("torch.device", text("cpu")),
    "dtype": FLOAT,
    "set of protocol 2": call("__builtin__.set", b"](K\x01K\x02e"),
    "set of protocol 4": b"\x8f(K\x01K\x02\x90",
    "frozen set": b"(K\x01K\x02\x91",
    "bytes of protocol 2": call("_codecs.encode", text("ab") + text("latin1")),
    "bytes of protocol 3": b"C\x02ab",
    "none": b"N",
    "odd keys": b"}(N\x88\x88K\x01G?\xf8\0\0\0\0\0\0K\x02K\x01K\x02\x86K\x03u",
    "complex": call(
        "torch._utils._rebuild_tensor_v2",
        b"("
        + text("storage")
        + b"ctorch\nComplexFloatStorage\n"
        + text("9")
        + text("cpu")
        + b"K\x01tQK\0K\x01\x85K\x01\x85\x89N",
    ),
}


@pytest.mark.parametrize("name", BESIDE_WEIGHTS)
def test_values_beside_the_weights_are_left_out(torch_files, name):
    tensor = torch_files.tensor("FloatStorage", "0", 2, 0, (2,), (1,))
    values = {"other": BESIDE_WEIGHTS[name], "weight": torch_files.tensor_code(tensor)}
    storage = {"0": np.array([1, 2], np.float32).tobytes()}
    arrays = read_arrays(torch_files.write_raw(torch_files.dictionary(values), storage))
    assert list(arrays) == ["weight"]
    np.testing.assert_array_equal(arrays["weight"].read(), [1, 2])


def test_a_tensor_with_attributes_and_a_negated_and_an_expanded_one(torch_files):
    plain = torch_files.tensor_code(torch_files.tensor("FloatStorage", "0", 2, 0, (2,), (1,)))
    rebuild, arguments = b"ctorch._utils\n_rebuild_tensor_v2\n", plain.partition(b"v2\n")[2][:-2]
    kind = b"ctorch.nn.parameter\nParameter\n"
    attributes = b"}(" + text("tied") + b"\x88u"
    values = {
        "attributes": call(
            "torch._tensor._rebuild_from_type_v2", rebuild + kind + arguments + b"t" + attributes
        ),
        "negated": rebuild + arguments + b"}(" + text("neg") + b"\x88utR",
        "expanded": torch_files.tensor_code(
            torch_files.tensor("FloatStorage", "0", 2, 1, (3, 2), (0, 0))
        ),
    }
    storage = {"0": np.array([1, 2], np.float32).tobytes()}
    arrays = read_arrays(torch_files.write_raw(torch_files.dictionary(values), storage))
    np.testing.assert_array_equal(arrays["attributes"].read(), [1, 2])
    np.testing.assert_array_equal(arrays["negated"].read(), [-1, -2])
    np.testing.assert_array_equal(arrays["expanded"].read(), np.full((3, 2), 2))
    conjugate = rebuild + arguments + b"}(" + text("conj") + b"\x88utR"
    path = torch_files.write_raw(torch_files.dictionary({"a": conjugate}), storage, "c.pth")
    with pytest.raises(UserError, match="the mark 'conj'"):
        read_arrays(path)


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
    # Protocols 0 and 1 write text opcodes, which torch never writes; they stop even earlier.
    named = "mkdir" if protocol >= 2 else "refused"
    with pytest.raises(UserError, match=named):
        read_arrays(torch_files.write_raw(pickled))
    assert not made.exists()


def test_a_hostile_file_is_refused_with_a_sentence_at_once(hostile, tmp_path, monkeypatch):
    """Nothing is imported, called or unpacked; no file takes a second or 100 MB."""
    assert len(hostile) >= 40
    monkeypatch.setattr("builtins.__import__", _no_import)
    for name, (path, expected) in hostile.items():
        start = time.perf_counter()
        tracemalloc.start()
        with pytest.raises(UserError, match=expected) as refused:
            read_arrays(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert "\n" not in str(refused.value), name
        assert str(refused.value).endswith("."), name
        assert len(str(refused.value)) < 1000, name
        assert peak < 10**8, name
        assert time.perf_counter() - start < 5, name


@pytest.fixture
def hostile(tmp_path):
    (tmp_path / "hostile").mkdir()
    return corpus(tmp_path / "hostile")


_real_import = builtins.__import__


def _no_import(name, *arguments, **options):
    """Allows only modules that are already imported; numpy and Python import lazily."""
    assert name.split(".")[0] in sys.modules, f"the reader imported {name}"
    return _real_import(name, *arguments, **options)


@settings(max_examples=3 * settings.default.max_examples, suppress_health_check=list(HealthCheck))
@given(data=strategies.data())
def test_any_damage_to_any_file_is_a_user_error_or_still_arrays(hostile, torch_files, data):
    """Runs a short version of benchmarks/fuzz_torch_file.py."""
    paths = [path for path, _ in hostile.values()]
    paths.append(torch_files.write({"a": np.arange(8, dtype=np.float32)}, "good.pth"))
    content = bytearray(data.draw(strategies.sampled_from(paths)).read_bytes()[:4096])
    for _ in range(data.draw(strategies.integers(0, 6))):
        if content:
            position = data.draw(strategies.integers(0, len(content) - 1))
            content[position] = data.draw(strategies.integers(0, 255))
    damaged = torch_files.folder / "damaged.pth"
    damaged.write_bytes(content)
    try:
        for array in read_arrays(damaged).values():
            assert array.read().shape == array.shape
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 (either outcome is right)


def test_an_endless_pickle_is_refused(torch_files, monkeypatch):
    monkeypatch.setattr(torch_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(UserError, match="more than 1000 opcodes"):
        read_arrays(torch_files.write_raw(b"\x80\x02" + b"N" * 2000 + b"."))
    with pytest.raises(UserError, match="far more than arrays need"):
        read_arrays(torch_files.write_raw(b"N" * (MAX_PICKLE_BYTES + 1)))


def test_a_truncated_file_is_refused_wherever_it_ends(torch_files):
    whole = torch_files.write({"a": np.arange(64, dtype=np.float32)}).read_bytes()
    for size in range(0, len(whole), 7):
        path = torch_files.folder / "truncated.pth"
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"truncated\.pth"):
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


def test_a_file_without_tensors_is_refused_with_its_keys(torch_files):
    pickled = torch_files.dictionary({"iteration": b"K\x07", "seed": b"K\x07"})
    with pytest.raises(UserError, match=r"holds no tensors .*'iteration', 'seed'"):
        read_arrays(torch_files.write_raw(pickled))
    with pytest.raises(UserError, match="holds a list"):
        read_arrays(torch_files.write_raw(b"\x80\x02]."))
