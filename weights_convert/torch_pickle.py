"""Reads the pickle inside a torch file as data, with a closed list of opcodes that import nothing.

Python's unpickler runs any program that a file contains, and restricting it by hooks has failed
before. Here `pickletools.genops` decodes the opcodes without building objects, and each opcode is
interpreted separately. A name that the pickle asks to import is looked up in a closed table and
never imported.
"""

import math
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import ml_dtypes
import numpy as np

from weights_convert.messages import quoted

STORAGE_DTYPES: dict[str, np.dtype] = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
"""The accepted storage types and their numpy element dtypes."""

MAX_OPCODES = 1_000_000
"""A state dict needs about 40 opcodes per array; ten thousand arrays stay well below this."""

_ORDERED_DICT = "collections.OrderedDict"
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
_REBUILD_PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
# Rebuilds a tensor that has attributes: (rebuild, type, its arguments, attributes).
_REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
# Calls whose result is no weight, as a checkpoint may hold beside the weights. Nothing is called:
# the result is `OTHER`. `_rebuild_tensor_v3` makes tensors of dtypes that no weight has.
_OTHER_CALLS = {
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_tensor_v3",
    "builtins.set",
    "builtins.frozenset",
    "__builtin__.set",
    "__builtin__.frozenset",
    "_codecs.encode",
}
_OTHER_STORAGES = {
    "torch.ComplexFloatStorage",
    "torch.ComplexDoubleStorage",
    "torch.QInt8Storage",
    "torch.QUInt8Storage",
    "torch.QInt32Storage",
    "torch.UntypedStorage",
    "torch.storage.UntypedStorage",
}
_NAMES = {"torch.Tensor", "torch.nn.parameter.Parameter"} | {
    f"torch.{name}"
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
        *("complex64", "complex128"),
    )
}
_ALLOWED = {
    *(_ORDERED_DICT, _REBUILD_TENSOR, *_REBUILD_PARAMETERS, _REBUILD_FROM_TYPE),
    *(*STORAGE_DTYPES, *_OTHER_CALLS, *_OTHER_STORAGES, *_NAMES),
}
_MAX_DIMENSIONS = 16
_MAX_EMPTY = 2**31
# Elements of a tensor that repeats elements of its storage (stride 0), as `Tensor.expand` does.
_MAX_EXPANDED = 2**26
_MAX_KEY = 2**32


class RefusedPickleError(Exception):
    """The pickle contains something other than plain values and tensors; the text is a clause."""


@dataclass(frozen=True)
class StorageRef:
    """A storage: `count` elements in the record `key` of the archive."""

    key: str
    dtype: np.dtype
    count: int


@dataclass(frozen=True)
class TensorRef:
    """A view into a storage, in elements, verified to lie inside the storage.

    Attributes:
        storage: the storage.
        offset: index of the first element.
        shape, strides: of the view.
        negative: the elements are stored with the opposite sign.
    """

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negative: bool = False


class _Other:
    """A value that is neither plain nor a tensor of weights, and that nothing uses."""


OTHER = _Other()


@dataclass(frozen=True)
class _Global:
    """A name that the pickle asks to import; it is never imported."""

    name: str


class _Mark:
    """The marker that the opcode MARK pushes."""


def load_refs(pickled: bytes) -> Any:
    """Interprets a pickle and returns its value, in which every tensor is a `TensorRef`.

    Args:
        pickled: the bytes of `data.pkl`.

    Returns:
        Plain values: None, bool, int, float, str, bytes, list, tuple, dict, OrderedDict and
        `TensorRef`. Sets, sizes, devices, dtypes and tensors of dtypes that no weight has are
        `OTHER` or names; dictionary entries with other keys than text and numbers are left out.

    Raises:
        RefusedPickleError: any other global or opcode, or a malformed pickle. Nothing is executed.
    """
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
            if count >= MAX_OPCODES:
                _refuse(f"its pickle has more than {MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
    except RefusedPickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RefusedPickleError(f"its pickle is damaged ({quoted(str(error))})") from error
    if len(machine.stack) != 1 or isinstance(machine.stack[0], _Global | StorageRef | _Mark):
        _refuse("its pickle is damaged (it does not end with one value)")
    return machine.stack[0]


class _Machine:
    """The stack and the memo, with one method per group of accepted opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode == "INST":
            _check_global(argument)
            _refuse("its pickle uses the opcode INST, which builds objects")
        elif opcode not in _IGNORED:
            _refuse(f"its pickle uses the opcode {opcode}, which no tensor file needs")

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[index], _Mark):
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        _refuse("its pickle is damaged (a list without a beginning)")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count or any(isinstance(item, _Mark) for item in self.stack[-count:]):
            _refuse("its pickle is damaged (a value is missing)")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def push_stack_global(self, _: Any) -> None:
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            _refuse("its pickle imports something that has no name")
        self.stack.append(_check_global(f"{module} {name}"))

    def push_storage(self, _: Any) -> None:
        self.stack.append(_storage(self.pop(1)[0]))

    def reduce(self, _: Any) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            _refuse("its pickle calls something that is not a tensor rebuild")
        self.stack.append(_result(function.name, arguments))

    def add_to_set(self, _: Any) -> None:
        self.pop_to_mark()
        if not self.stack or self.stack[-1] is not OTHER:
            _refuse("its pickle is damaged (items without a set)")

    def push_frozen_set(self, _: Any) -> None:
        self.pop_to_mark()
        self.stack.append(OTHER)

    def build(self, _: Any) -> None:
        """Ignores `_metadata` (layer versions), the only attribute that torch writes."""
        state = self.pop(1)[0]
        target = self.stack[-1] if self.stack else None
        if (
            not isinstance(target, OrderedDict)
            or not isinstance(state, dict)
            or set(state) - {"_metadata"}
        ):
            _refuse("its pickle sets attributes other than the _metadata of a state dict")

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            _refuse("its pickle is damaged (entries without a dictionary)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only flat keys: hashing nested tuples with shared parts takes exponential time.
            # Only small numbers: numbers that differ by 2^61 - 1 have equal hashes.
            if key is None or isinstance(key, bool | float | tuple | bytes | _Other | _Global):
                continue  # no weight has such a name
            if type(key) is not str and not (type(key) is int and 0 <= key < _MAX_KEY):
                _refuse("its pickle has a dictionary key that is neither text nor a small number")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            _refuse("its pickle is damaged (items without a list)")
        target.extend(items)

    def remember(self, key: int | None) -> None:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            _refuse("its pickle is damaged (it remembers a value that is missing)")
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]


def _refuse(reason: str) -> NoReturn:
    raise RefusedPickleError(reason)


def _check_global(argument: str) -> _Global:
    """Returns the import's name, "MODULE NAME", if the closed table contains it."""
    name = argument.replace(" ", ".", 1)
    if name not in _ALLOWED:
        _refuse(f"it asks to import {quoted(name)}, and only tensor rebuilds are allowed")
    return _Global(name)


def _result(function: str, arguments: tuple[Any, ...]) -> Any:
    """Returns the value that stands for a call; nothing is called."""
    if function == _ORDERED_DICT and not arguments:
        return OrderedDict()
    if function == _REBUILD_TENSOR:
        return _tensor(arguments)
    if function in _REBUILD_PARAMETERS and arguments:
        if isinstance(arguments[0], TensorRef | _Other):
            return arguments[0]
    elif function == _REBUILD_FROM_TYPE and len(arguments) == 4:
        rebuild, _, inner, _ = arguments
        known = isinstance(rebuild, _Global) and isinstance(inner, tuple)
        if known and rebuild.name != _REBUILD_FROM_TYPE:  # torch does not nest them
            return _result(rebuild.name, inner)
    elif function in _OTHER_CALLS:
        return OTHER
    _refuse(f"its pickle calls {quoted(function)} with arguments that torch never writes")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def _storage(reference: Any) -> StorageRef | _Other:
    """Decodes a persistent id: ("storage", type, record key, device, element count)."""
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        _refuse("its pickle refers to something that is not a storage")
    _, kind, key, _, count = reference
    if isinstance(kind, _Global) and kind.name in _OTHER_STORAGES:
        return OTHER
    if not isinstance(kind, _Global) or kind.name not in STORAGE_DTYPES:
        _refuse("its pickle has a storage without a known element type")
    if not isinstance(key, str) or not _is_count(count):
        _refuse("its pickle has a storage whose key or size makes no sense")
    return StorageRef(key, STORAGE_DTYPES[kind.name], count)


def _tensor(arguments: tuple[Any, ...]) -> TensorRef | _Other:
    """Decodes the arguments for `_rebuild_tensor_v2`: storage, offset, size, stride, and flags."""
    if arguments and arguments[0] is OTHER:
        return OTHER
    if len(arguments) < 4 or not isinstance(arguments[0], StorageRef):
        _refuse("its pickle has a tensor without a storage")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        _refuse("its pickle has a tensor whose sizes and strides do not match")
    if len(shape) > _MAX_DIMENSIONS:
        _refuse(f"its pickle has a tensor of {len(shape)} dimensions, more than {_MAX_DIMENSIONS}")
    if not all(_is_count(number) for number in (offset, *shape, *strides)):
        _refuse(
            "its pickle has a tensor with a negative, absurd or non-integer size, stride or offset"
        )
    negative = _is_negative(arguments[6]) if len(arguments) > 6 else False
    if 0 in shape:
        if math.prod(max(size, 1) for size in shape) > _MAX_EMPTY:
            _refuse("its pickle has an empty tensor of absurd sizes")
        return TensorRef(storage, 0, shape, (0,) * len(shape))
    # Strides for axes with size 1 are arbitrary; zero cannot overflow.
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.count:
        _refuse(
            f"its storage {quoted(storage.key)} has {storage.count} elements, "
            f"and a tensor of {math.prod(shape)} elements reaches for number {last}"
        )
    if math.prod(shape) > max(storage.count, _MAX_EXPANDED):
        _refuse(
            f"its storage {quoted(storage.key)} has {storage.count} elements, which a tensor "
            f"repeats to {math.prod(shape)}"
        )
    return TensorRef(storage, offset, shape, strides, negative)


def _is_negative(marks: Any) -> bool:
    """Reads the marks of lazy operations: {"neg": True} is a sign to apply on reading."""
    if marks is None:
        return False
    if not isinstance(marks, dict) or not all(value in (True, False) for value in marks.values()):
        _refuse("its pickle has a tensor with marks that torch never writes")
    unknown = [name for name, value in marks.items() if value and name != "neg"]
    if unknown:
        _refuse(f"its pickle has a tensor with the mark {quoted(str(unknown[0]))}")
    return bool(marks.get("neg"))


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": lambda: OTHER,
    "MARK": _Mark,
}
_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE8",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
}
_IGNORED = {"PROTO", "FRAME", "STOP"}
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "GLOBAL": lambda machine, name: machine.stack.append(_check_global(name)),
    "STACK_GLOBAL": _Machine.push_stack_global,
    "BINPERSID": _Machine.push_storage,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "ADDITEMS": _Machine.add_to_set,
    "FROZENSET": _Machine.push_frozen_set,
    "SETITEM": lambda machine, _: machine.set_items(machine.pop(2)),
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "APPEND": lambda machine, _: machine.extend(machine.pop(1)),
    "APPENDS": lambda machine, _: machine.extend(machine.pop_to_mark()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.pop_to_mark())),
    "TUPLE1": lambda machine, _: machine.stack.append(tuple(machine.pop(1))),
    "TUPLE2": lambda machine, _: machine.stack.append(tuple(machine.pop(2))),
    "TUPLE3": lambda machine, _: machine.stack.append(tuple(machine.pop(3))),
    "BINGET": lambda machine, key: machine.stack.append(machine.memo[key]),
    "LONG_BINGET": lambda machine, key: machine.stack.append(machine.memo[key]),
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember,
}
