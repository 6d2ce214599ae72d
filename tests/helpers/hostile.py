"""Malicious or corrupted torch files, every one of which must be refused.

`corpus` writes all files and returns each with a part of the expected error message. Fuzzing also
starts from these files (benchmarks/fuzz_torch_file.py).
"""

from __future__ import annotations

import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch_files import Tensor, TorchFiles, text

# Opcodes that call, import or build, and the name in the error message.
CALLS: dict[str, tuple[bytes, str]] = {
    "eval by REDUCE": (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
    "eval by INST": (b"(X\x01\x00\x00\x001ibuiltins\neval\n.", "builtins.eval"),
    "eval by STACK_GLOBAL": (
        b"X\x08\x00\x00\x00builtinsX\x04\x00\x00\x00eval\x93(X\x01\x00\x00\x001tR.",
        "builtins.eval",
    ),
    "system by OBJ": (b"(cos\nsystem\nX\x02\x00\x00\x00lso.", "os.system"),
    "torch.load": (b"ctorch\nload\n)R.", "torch.load"),
    "a private function of torch": (
        b"ctorch.serialization\n_get_layout\n)R.",
        "torch.serialization._get_layout",
    ),
    "getattr on an allowed name": (
        b"cbuiltins\ngetattr\n(ccollections\nOrderedDict\nX\x01\x00\x00\x00ptR.",
        "builtins.getattr",
    ),
    "a dotted walk to globals": (
        b"ccollections\nOrderedDict.__reduce__.__globals__\n.",
        "OrderedDict.__reduce__.__globals__",
    ),
    "NEWOBJ": (b"ccollections\nOrderedDict\n)\x81.", "not a module of TorchScript"),
    "NEWOBJ of a script class with arguments": (
        b"c__torch__\nM\n(K\x01t\x81.",
        "not a module of TorchScript",
    ),
    "REDUCE of a script class": (b"c__torch__\nM\n)R.", "__torch__.M"),
    "BUILD of a script object twice": (
        b"c__torch__\nM\n)\x81}X\x01\x00\x00\x00aNsb}X\x01\x00\x00\x00aNsb.",
        "attributes",
    ),
    "a script object in itself": (
        b"c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",
        "nested more than",
    ),
    "NEWOBJ_EX": (b"ccollections\nOrderedDict\n)}\x92.", "NEWOBJ_EX"),
    "OBJ": (b"(ccollections\nOrderedDict\no.", "OBJ"),
    "EXT1": (b"\x82\x01.", "EXT1"),
    "EXT4": (b"\x84\x01\x00\x00\x00.", "EXT4"),
    "PERSID": (b"Pstorage\n.", "PERSID"),
    "BUILD on a dictionary": (b"}ccollections\nOrderedDict\nb.", "attributes"),
    "BUILD of __dict__": (b"}}X\x08\x00\x00\x00__dict__}sb.", "attributes"),
    "BUILD of __class__": (
        b"ccollections\nOrderedDict\n)R}X\x09\x00\x00\x00__class__ccollections\nOrderedDict\nsb.",
        "attributes",
    ),
    "BUILD with slots": (b"}(ccollections\nOrderedDict\n)Rtb.", "attributes"),
    "REDUCE of text": (b"X\x01\x00\x00\x00a)R.", "calls something"),
    "REDUCE of a storage type": (b"ctorch\nFloatStorage\n)R.", "FloatStorage"),
    "OrderedDict of something": (b"ccollections\nOrderedDict\n(]tR.", "OrderedDict"),
    "a tuple as key": (b"}))s.", "no tensors"),
    "a key that shares its hash with others": (
        b"}\x8a\x08" + (2**61 - 1).to_bytes(8, "little") + b"Ns.",
        "dictionary key",
    ),
    "a negative key": (b"}J\xff\xff\xff\xffNs.", "dictionary key"),
    "a set alone": (b"\x8f.", "a value without weights where"),
    "a frozen set alone": (b"(\x91.", "a value without weights where"),
    "BYTEARRAY8": (b"\x96\x01\x00\x00\x00\x00\x00\x00\x00a.", "BYTEARRAY8"),
    "NEXT_BUFFER": (b"\x97.", "NEXT_BUFFER"),
    "LONG in text": (b"L9999999999999999L\n.", "LONG"),
    "an escape code in a name": (b"cos\x1b[31m\nsystem\n.", r"os\\x1b\[31m"),
}

# Pickles that are truncated or inconsistent.
MALFORMED: dict[str, bytes] = {
    "empty": b"",
    "only a protocol": b"\x80\x02",
    "STOP on nothing": b"\x80\x02.",
    "no STOP": b"\x80\x02}",
    "a mark is left": b"\x80\x02(.",
    "REDUCE of nothing": b"\x80\x02R.",
    "SETITEMS without mark": b"\x80\x02u.",
    "BINGET of nothing": b"\x80\x02h\x05.",
    "BINPUT of nothing": b"\x80\x02q\x05.",
    "STACK_GLOBAL of a dictionary": b"\x80\x02}\x93.",
    "BINPERSID of a dictionary": b"\x80\x02}Q.",
    "two values": b"\x80\x02}}.",
    "APPENDS to a number": b"\x80\x02Ke.",
    "an unknown opcode": b"\xff\xff",
    "text of 4 GB": b"\x80\x02X\xff\xff\xff\xffa.",
    "text of 2^64 bytes": b"\x80\x04\x8d" + b"\xff" * 8 + b".",
    "a frame of 2^63 bytes": b"\x80\x04\x95" + b"\xff" * 7 + b"\x7f" + b"}.",
    "LONG1 of 255 bytes": b"\x80\x02\x8a\xff" + b"\x7f" * 20,
    "LONG4 of minus one byte": b"\x80\x02\x8b\xff\xff\xff\xff.",
}

# Views of a storage with four elements.
VIEWS: dict[str, tuple[int, tuple[int, ...], tuple[int, ...], str]] = {
    "longer than the storage": (0, (5,), (1,), "has 4 elements"),
    "beyond by the offset": (1, (4,), (1,), "reaches for number 4"),
    "beyond by the stride": (0, (2, 2), (3, 1), "reaches for number 4"),
    "a far offset": (10**9, (1,), (1,), "reaches for number 1000000000"),
    "a terabyte out of one element": (0, (10**6, 10**6), (0, 0), "has 4 elements"),
    "a negative offset": (-1, (1,), (1,), "negative"),
    "a negative size": (0, (-2,), (1,), "negative"),
    "a negative stride": (3, (2,), (-1,), "negative"),
    "an absurd size": (0, (2**200,), (0,), "absurd"),
    "sizes without strides": (0, (2,), (1, 1), "do not match"),
    "too many dimensions": (0, (1,) * 17, (1,) * 17, "17 dimensions"),
    "an absurd empty tensor": (0, (0, 2**40), (1, 1), "absurd"),
    "strides that overflow 64 bits": (0, (2, 2), (2**61, 2**61), "reaches for number"),
}


def _of_storage(key: str, count: int = 4) -> Tensor:
    return Tensor("FloatStorage", key, count, 0, (4,), (1,))


def _nested(depth: int) -> bytes:
    return b"\x80\x02" + (b"}" + text("a")) * depth + b"}" + b"s" * depth + b"."


def _many_ways() -> bytes:
    """Returns eight nested dictionaries, each with ten references to the previous: 10^7 paths in
    two kilobytes.
    """
    code = b"\x80\x02}" + text("0") + b"}q\x00s"
    for level in range(1, 9):
        inside = b"".join(text(str(i)) + b"h" + bytes([level - 1]) for i in range(10))
        code += text(str(level)) + b"}q" + bytes([level]) + b"(" + inside + b"us"
    return code + b"."


def corpus(folder: Path) -> dict[str, tuple[Path, str]]:
    """Writes every file and returns name -> (file, part of the error message)."""
    files = TorchFiles(folder)
    made: dict[str, tuple[Path, str]] = {}

    def add(name: str, expected: str, write: Callable[[str], Path]) -> None:
        made[name] = (write(f"{len(made):03d}.pth"), expected)

    for name, (code, expected) in CALLS.items():
        pickled = b"\x80\x04" + code
        add(name, f"refused.*{expected}", lambda f, p=pickled: files.write_raw(p, name=f))
    for name, pickled in MALFORMED.items():
        add(name, "refused: ", lambda f, p=pickled: files.write_raw(p, name=f))
    for name, (offset, shape, strides, expected) in VIEWS.items():
        tensor = Tensor("FloatStorage", "0", 4, offset, shape, strides)
        pickled = files.state_dict({"a": tensor})
        add(name, expected, lambda f, p=pickled: files.write_raw(p, {"0": bytes(16)}, f))
    add(
        "a dictionary in itself",
        "nested more than",
        lambda f: files.write_raw(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.", name=f),
    )
    add(
        "dictionaries 500 deep", "nested more than", lambda f: files.write_raw(_nested(500), name=f)
    )
    add(
        "ten million ways through",
        "more than 200000 entries",
        lambda f: files.write_raw(_many_ways(), name=f),
    )
    long = files.dictionary({"k" * 10_000: files.dictionary({"a": b"K\x01"})[2:-1]})
    add(
        "a name of 10,000 characters",
        "a name of more than",
        lambda f: files.write_raw(long, name=f),
    )
    one = files.state_dict({"a": _of_storage("0")})
    add(
        "a storage cut short",
        "has 12 bytes in storage '0', and its pickle says 16",
        lambda f: files.write_raw(one, {"0": bytes(12)}, f),
    )
    add(
        "a storage that is not there",
        "lacks the record 'archive/data/0'",
        lambda f: files.write_raw(one, name=f),
    )
    for name, key in (
        ("a key that climbs", "../../0"),
        ("an absolute key", "/etc/passwd"),
        ("a key with a NUL", "0\x00"),
    ):
        pickled = files.state_dict({"a": _of_storage(key)})
        add(name, "lacks the record", lambda f, p=pickled: files.write_raw(p, {"0": bytes(16)}, f))
    absurd = files.state_dict({"a": _of_storage("0", 2**61)})
    add(
        "a storage of 2^63 bytes",
        "and its pickle says",
        lambda f: files.write_raw(absurd, {"0": bytes(16)}, f),
    )
    add(
        "compressed records",
        "compressed or encrypted",
        lambda f: files.write_raw(one, {"0": bytes(16)}, f, compression=zipfile.ZIP_DEFLATED),
    )
    add(
        "a compression bomb",
        "far more than arrays need",
        lambda f: files.write_raw(bytes(2**25), name=f, compression=zipfile.ZIP_DEFLATED),
    )
    add(
        "big-endian",
        "little-endian",
        lambda f: files.write_raw(one, {"0": bytes(16)}, f, extra={"byteorder": b"big"}),
    )
    add(
        "two pickles",
        "2 NAME/data.pkl records",
        lambda f: _zip(folder / f, {"a/data.pkl": one, "b/data.pkl": one}),
    )
    add(
        "a zip in a zip",
        "0 NAME/data.pkl records",
        lambda f: _zip(
            folder / f,
            {"inner.pth": files.write_raw(one, {"0": bytes(16)}, f).read_bytes()},
        ),
    )
    add("one name twice", "two records of one name", lambda f: _twice(folder / f, one))
    add("overlapping records", "other records inside", lambda f: _overlapping(files, f))
    add("a record beyond the file", "truncated|damaged", lambda f: _moved(files, f, 2**31 - 1))
    add(
        "a record where none begins",
        "no record starts where|other records inside",
        lambda f: _moved(files, f, 3),
    )
    add(
        "a record behind the directory",
        "after the zip's directory|no record starts",
        lambda f: _in_the_comment(files, f),
    )
    add("encrypted records", "compressed or encrypted", lambda f: _encrypted(files, f))
    add(
        "torch before 1.6",
        "torch before 1.6",
        lambda f: _raw(folder / f, b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
    )
    add(
        "a pickle of Python's own",
        "torch before 1.6",
        lambda f: _raw(folder / f, pickle.dumps({"a": np.zeros(3)})),
    )
    add("an empty file", "is empty", lambda f: _raw(folder / f, b""))
    add("text", "not a torch file", lambda f: _raw(folder / f, b"not a checkpoint"))
    return made


def _zip(path: Path, records: dict[str, bytes]) -> Path:
    path.unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    return path


def _twice(path: Path, pickled: bytes) -> Path:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("archive/data.pkl", pickled)
    return path


def _raw(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _directory_entry(content: bytes, record: bytes) -> int:
    """Returns the start offset of a record's directory entry."""
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"PK\x05\x06"))
    while content[at + 46 : at + 46 + len(record)] != record:
        at = content.rindex(b"PK\x01\x02", 0, at)
    return at


def _overlapping(files: TorchFiles, name: str) -> Path:
    path = files.write({"a": np.zeros(4, np.float32), "b": np.zeros(4, np.float32)}, name)
    with zipfile.ZipFile(path) as archive:
        first = archive.getinfo("archive/data/0").header_offset
    return _patched(path, b"archive/data/1", 42, struct.pack("<I", first))


def _moved(files: TorchFiles, name: str, offset: int) -> Path:
    path = files.write({"a": np.zeros(4, np.float32)}, name)
    return _patched(path, b"archive/data/0", 42, struct.pack("<I", offset))


def _in_the_comment(files: TorchFiles, name: str) -> Path:
    """Makes the directory point into the trailing zip comment, which contains a local header."""
    path = files.write({"a": np.zeros(4, np.float32)}, name)
    with zipfile.ZipFile(path, "a") as archive:
        record = archive.getinfo("archive/data/0")
        with path.open("rb") as file:
            file.seek(record.header_offset)
            header = file.read(30 + len(record.filename) + len(record.extra) + 16)
        archive.comment = header
    offset = path.stat().st_size - len(header)
    return _patched(path, b"archive/data/0", 42, struct.pack("<I", offset))


def _encrypted(files: TorchFiles, name: str) -> Path:
    path = files.write({"a": np.zeros(4, np.float32)}, name)
    return _patched(path, b"archive/data/0", 8, struct.pack("<H", 1))


def _patched(path: Path, record: bytes, field: int, value: bytes) -> Path:
    """Changes one field of a record's directory entry."""
    content = path.read_bytes()
    at = _directory_entry(content, record) + field
    path.write_bytes(content[:at] + value + content[at + len(value) :])
    return path
