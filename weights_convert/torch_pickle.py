"""Reads the pickle inside a torch file as data, with a closed list of opcodes that import nothing.

Python's unpickler runs any program that a file contains, and restricting it by hooks has failed
before. Here `pickletools.genops` decodes the opcodes without building objects, and each opcode is
interpreted separately. A name that the pickle asks to import is looked up in a closed table and
never imported.
"""

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from weights_convert.messages import quoted
from weights_convert.torch_refs import (
    OTHER,
    Global,
    Other,
    RefusedPickleError,
    ScriptObject,
    StorageRef,
    check_global,
    is_script_class,
    refuse,
    result_of,
    storage_ref,
)

MAX_OPCODES = 1_000_000
"""A state dict needs about 40 opcodes per array; ten thousand arrays stay well below this."""

_MAX_KEY = 2**32


class _Mark:
    """The marker that the opcode MARK pushes."""


def load_refs(pickled: bytes) -> Any:
    """Interprets a pickle and returns its value, in which every tensor is a `TensorRef`.

    Args:
        pickled: the bytes of `data.pkl`. That of a TorchScript archive holds objects of compiled
            classes, whose attributes are read as a dictionary; their code is not read.

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
                refuse(f"its pickle has more than {MAX_OPCODES} opcodes")
            machine.step(opcode.name, argument)
    except RefusedPickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RefusedPickleError(f"its pickle is damaged ({quoted(str(error))})") from error
    if len(machine.stack) != 1 or isinstance(machine.stack[0], Global | StorageRef | _Mark):
        refuse("its pickle is damaged (it does not end with one value)")
    return machine.stack[0]


class _Machine:
    """The stack and the memo, with one method per group of accepted opcodes."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def step(self, opcode: str, argument: Any) -> None:
        """Runs one opcode of the pickle; unknown ones are refused."""
        if opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode]())
        elif opcode in _LITERALS:
            self.stack.append(argument)
        elif opcode in _ACTIONS:
            _ACTIONS[opcode](self, argument)
        elif opcode == "INST":
            check_global(argument)
            refuse("its pickle uses the opcode INST, which builds objects")
        elif opcode not in _IGNORED:
            refuse(f"its pickle uses the opcode {opcode}, which no tensor file needs")

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if isinstance(self.stack[index], _Mark):
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        refuse("its pickle is damaged (a list without a beginning)")

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count or any(isinstance(item, _Mark) for item in self.stack[-count:]):
            refuse("its pickle is damaged (a value is missing)")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def push_stack_global(self, _: Any) -> None:
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            refuse("its pickle imports something that has no name")
        self.stack.append(check_global(f"{module} {name}"))

    def push_storage(self, _: Any) -> None:
        self.stack.append(storage_ref(self.pop(1)[0]))

    def reduce(self, _: Any) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, Global) or not isinstance(arguments, tuple):
            refuse("its pickle calls something that is not a tensor rebuild")
        self.stack.append(result_of(function.name, arguments))

    def push_script_object(self, _: Any) -> None:
        """Stands an empty dictionary for an object of a TorchScript class, `BUILD` fills it."""
        kind, arguments = self.pop(2)
        if not isinstance(kind, Global) or not is_script_class(kind.name) or arguments != ():
            refuse("its pickle builds an object that is not a module of TorchScript")
        self.stack.append(ScriptObject())

    def add_to_set(self, _: Any) -> None:
        self.pop_to_mark()
        if not self.stack or self.stack[-1] is not OTHER:
            refuse("its pickle is damaged (items without a set)")

    def push_frozen_set(self, _: Any) -> None:
        self.pop_to_mark()
        self.stack.append(OTHER)

    def build(self, _: Any) -> None:
        """Fills a TorchScript object; else ignores `_metadata`, the only attribute torch writes."""
        state = self.pop(1)[0]
        target = self.stack[-1] if self.stack else None
        if isinstance(target, ScriptObject) and isinstance(state, dict) and not target:
            target.update(state)
            return
        if (
            not isinstance(target, OrderedDict)
            or not isinstance(state, dict)
            or set(state) - {"_metadata"}
        ):
            refuse("its pickle sets attributes other than the _metadata of a state dict")

    def set_items(self, items: list[Any]) -> None:
        """Adds keys and values, which alternate in `items`, to the dictionary on the stack."""
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, dict) or len(items) % 2:
            refuse("its pickle is damaged (entries without a dictionary)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Only flat keys: hashing nested tuples with shared parts takes exponential time.
            # Only small numbers: numbers that differ by 2^61 - 1 have equal hashes.
            if key is None or isinstance(key, bool | float | tuple | bytes | Other | Global):
                continue  # no weight has such a name
            if type(key) is not str and not (type(key) is int and 0 <= key < _MAX_KEY):
                refuse("its pickle has a dictionary key that is neither text nor a small number")
            target[key] = value

    def extend(self, items: list[Any]) -> None:
        target = self.stack[-1] if self.stack else None
        if not isinstance(target, list):
            refuse("its pickle is damaged (items without a list)")
        target.extend(items)

    def remember(self, key: int | None) -> None:
        if not self.stack or isinstance(self.stack[-1], _Mark):
            refuse("its pickle is damaged (it remembers a value that is missing)")
        self.memo[len(self.memo) if key is None else key] = self.stack[-1]


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
    "GLOBAL": lambda machine, name: machine.stack.append(check_global(name)),
    "STACK_GLOBAL": _Machine.push_stack_global,
    "BINPERSID": _Machine.push_storage,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.push_script_object,
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
