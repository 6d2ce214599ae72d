"""The values in the pickle of a torch file: tensors and storages by reference, and closed tables.

Nothing is imported or called: names are looked up in a table, and `result_of` gives the value that
stands for a call.
"""

import math
from collections import OrderedDict
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

_ORDERED_DICT = "collections.OrderedDict"
_REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2"
_REBUILD_PARAMETERS = (
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
)
# Rebuilds a tensor that has attributes: (rebuild, type, its arguments, attributes).
_REBUILD_FROM_TYPE = "torch._tensor._rebuild_from_type_v2"
# Calls that make other values than weights; `OTHER` stands for their results.
# `_rebuild_tensor_v3` makes tensors of dtypes that no weight has.
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


class Other:
    """A value that is neither plain nor a tensor of weights, and that nothing uses."""


OTHER = Other()


class ScriptObject(dict[str, Any]):
    """The attributes of an object in a TorchScript archive."""


@dataclass(frozen=True)
class Global:
    """A name that the pickle asks to import; it is never imported."""

    name: str


def refuse(reason: str) -> NoReturn:
    raise RefusedPickleError(reason)


def is_script_class(name: str) -> bool:
    """Returns whether a name is that of a TorchScript class, which exists only in the archive."""
    return name.startswith("__torch__.")


def check_global(argument: str) -> Global:
    """Returns the import's name, "MODULE NAME", if it is in the closed table or a script class."""
    name = argument.replace(" ", ".", 1)
    if name not in _ALLOWED and not is_script_class(name):
        refuse(f"it asks to import {quoted(name)}, and only tensor rebuilds are allowed")
    return Global(name)


def result_of(function: str, arguments: tuple[Any, ...]) -> Any:
    """Returns the value that stands for a call; nothing is called."""
    if function == _ORDERED_DICT and not arguments:
        return OrderedDict()
    if function == _REBUILD_TENSOR:
        return _tensor(arguments)
    if function in _REBUILD_PARAMETERS and arguments:
        if isinstance(arguments[0], TensorRef | Other):
            return arguments[0]
    elif function == _REBUILD_FROM_TYPE and len(arguments) == 4:
        rebuild, _, inner, _ = arguments
        known = isinstance(rebuild, Global) and isinstance(inner, tuple)
        if known and rebuild.name != _REBUILD_FROM_TYPE:  # torch does not nest them
            return result_of(rebuild.name, inner)
    elif function in _OTHER_CALLS:
        return OTHER
    refuse(f"its pickle calls {quoted(function)} with arguments that torch never writes")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**62


def storage_ref(reference: Any) -> StorageRef | Other:
    """Decodes a persistent id: ("storage", type, record key, device, element count)."""
    if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
        refuse("its pickle refers to something that is not a storage")
    _, kind, key, _, count = reference
    if isinstance(kind, Global) and kind.name in _OTHER_STORAGES:
        return OTHER
    if not isinstance(kind, Global) or kind.name not in STORAGE_DTYPES:
        refuse("its pickle has a storage without a known element type")
    if not isinstance(key, str) or not _is_count(count):
        refuse("its pickle has a storage whose key or size makes no sense")
    return StorageRef(key, STORAGE_DTYPES[kind.name], count)


def _tensor(arguments: tuple[Any, ...]) -> TensorRef | Other:
    """Decodes the arguments for `_rebuild_tensor_v2`: storage, offset, size, stride, and flags."""
    if arguments and arguments[0] is OTHER:
        return OTHER
    if len(arguments) < 4 or not isinstance(arguments[0], StorageRef):
        refuse("its pickle has a tensor without a storage")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(shape, tuple) or not isinstance(strides, tuple) or len(shape) != len(strides):
        refuse("its pickle has a tensor whose sizes and strides do not match")
    if len(shape) > _MAX_DIMENSIONS:
        refuse(f"its pickle has a tensor of {len(shape)} dimensions, more than {_MAX_DIMENSIONS}")
    if not all(_is_count(number) for number in (offset, *shape, *strides)):
        refuse(
            "its pickle has a tensor with a negative, absurd or non-integer size, stride or offset"
        )
    negative = _is_negative(arguments[6]) if len(arguments) > 6 else False
    if 0 in shape:
        if math.prod(max(size, 1) for size in shape) > _MAX_EMPTY:
            refuse("its pickle has an empty tensor of absurd sizes")
        return TensorRef(storage, 0, shape, (0,) * len(shape))
    # Strides for axes with size 1 are arbitrary; zero cannot overflow.
    strides = tuple(stride if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if last >= storage.count:
        refuse(
            f"its storage {quoted(storage.key)} has {storage.count} elements, "
            f"and a tensor of {math.prod(shape)} elements reaches for number {last}"
        )
    if math.prod(shape) > max(storage.count, _MAX_EXPANDED):
        refuse(
            f"its storage {quoted(storage.key)} has {storage.count} elements, which a tensor "
            f"repeats to {math.prod(shape)}"
        )
    return TensorRef(storage, offset, shape, strides, negative)


def _is_negative(marks: Any) -> bool:
    """Reads the marks of lazy operations: {"neg": True} is a sign to apply on reading."""
    if marks is None:
        return False
    if not isinstance(marks, dict) or not all(value in (True, False) for value in marks.values()):
        refuse("its pickle has a tensor with marks that torch never writes")
    unknown = [name for name, value in marks.items() if value and name != "neg"]
    if unknown:
        refuse(f"its pickle has a tensor with the mark {quoted(str(unknown[0]))}")
    return bool(marks.get("neg"))
