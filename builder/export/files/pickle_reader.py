"""Interpret a pickle as data (`read_pickle`): no name in it is imported, no call in it is made."""

import pickletools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from centernet_trt.errors import ModelError

__all__ = ["MARK", "Global", "Opaque", "PersistentId", "Pickle", "read_pickle"]

# The largest public detection checkpoints have about 100 000 values, optimiser state included.
_LARGEST_STACK = 10_000_000


class _Mark:
    """Type of the stack marker."""


MARK = _Mark()


@dataclass(frozen=True)
class Global:
    """A name in the file, such as `torch._utils._rebuild_tensor_v2`. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class Opaque:
    """Stands for the result of a call of an unknown name; its state, items and attributes are dropped."""

    made_by: object


@dataclass(frozen=True, eq=False)
class PersistentId:
    """A reference to data outside the pickle."""

    value: object


@dataclass
class Pickle:
    """Contents of a pickle.

    Attributes:
        value: dicts, lists, tuples, sets (as lists), numbers, strings, bytes, None, and what `rebuild` returned;
            dictionary keys that are not strings or numbers are dropped.
        called: names that the file asks to call and `rebuild` does not know. None was called.
        references: all references to data outside the pickle.
    """

    value: Any
    called: set[Global]
    references: list[PersistentId]


Rebuild = Callable[[Global, tuple[Any, ...]], Any]


def read_pickle(stream: BinaryIO, rebuild: Rebuild, where: str) -> Pickle:
    """Interpret one pickle.

    Args:
        stream: at the start of a pickle; afterwards at its end.
        rebuild: makes a value from (name, arguments); returns NotImplemented for names that it does not know.
        where: names the file in errors.

    Raises:
        ModelError: truncated, damaged, or not a pickle.
    """
    machine = _Machine(rebuild)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return Pickle(machine.pop(), machine.called, machine.references)
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, MemoryError, RecursionError) as error:
        # All of these come from bytes that are not a pickle, or from a damaged one.
        raise ModelError(
            f"{where} is truncated or damaged: {type(error).__name__} at byte {stream.tell()} of its pickle: {error}",
            "copy or download the file again",
        ) from error
    raise ModelError(f"{where} is truncated: its pickle does not end", "copy or download the file again")


@dataclass
class _Machine:
    rebuild: Rebuild
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    called: set[Global] = field(default_factory=set)
    references: list[PersistentId] = field(default_factory=list)

    def step(self, name: str, argument: Any) -> None:
        """Execute one opcode."""
        if name in _PUSHES_ARGUMENT:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name]())
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise ValueError(f"opcode {name}")

    def _push(self, value: Any) -> None:
        if len(self.stack) >= _LARGEST_STACK:
            raise ValueError(f"more than {_LARGEST_STACK} values on the stack")
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the top of the stack."""
        value = self.stack.pop()
        if value is MARK:
            raise ValueError("expected a value, got a marker")
        return value

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while (item := self.stack.pop()) is not MARK:
            items.append(item)
        return items[::-1]

    def _tuple(self, count: int) -> None:
        items = [self.pop() for _ in range(count)]
        self._push(tuple(items[::-1]))

    def _memoise(self, argument: int | None) -> None:
        self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push(Global(module, name))

    def _stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise TypeError("a global whose name is not a string")
        self._push(Global(module, name))

    def _call(self, function: object, arguments: object) -> None:
        """REDUCE, NEWOBJ and similar opcodes: nothing is called."""
        made: Any = NotImplemented
        if isinstance(function, Global):
            if isinstance(arguments, tuple):
                made = self.rebuild(function, arguments)
            if made is NotImplemented:
                self.called.add(function)
        self._push(Opaque(function) if made is NotImplemented else made)

    def _refer(self, value: object) -> None:
        self.references.append(PersistentId(value))
        self._push(self.references[-1])

    def _reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        self._call(function, arguments)

    def _new_object_with_keywords(self) -> None:
        _, arguments, function = self.pop(), self.pop(), self.pop()
        self._call(function, arguments)

    def _object(self) -> None:
        function, *arguments = self._to_mark()
        self._call(function, tuple(arguments))

    def _instance(self, argument: str) -> None:
        arguments = self._to_mark()
        module, _, name = argument.partition(" ")
        self._call(Global(module, name), tuple(arguments))

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, dict):
            # Other keys would be hashed by value, which recurses as deeply as the file nests them.
            target.update(
                (key, value)
                for key, value in zip(items[::2], items[1::2], strict=True)
                if isinstance(key, (str, int, float))
            )

    def _dictionary(self) -> None:
        items = self._to_mark()
        self._push({})
        self._set_items(items)


# Opcodes that push their argument.
_PUSHES_ARGUMENT = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: MARK,
}
_IGNORED = ("PROTO", "FRAME")
_ACTIONS: Mapping[str, Callable[[_Machine, Any], Any]] = {
    "POP": lambda m, _: m.stack.pop(),
    "POP_MARK": lambda m, _: m._to_mark(),
    "DUP": lambda m, _: m._push(m.stack[-1]),
    "PUT": lambda m, a: m._memoise(int(a)),
    "BINPUT": lambda m, a: m._memoise(a),
    "LONG_BINPUT": lambda m, a: m._memoise(a),
    "MEMOIZE": lambda m, _: m._memoise(None),
    "GET": lambda m, a: m._push(m.memo[int(a)]),
    "BINGET": lambda m, a: m._push(m.memo[a]),
    "LONG_BINGET": lambda m, a: m._push(m.memo[a]),
    "TUPLE": lambda m, _: m._push(tuple(m._to_mark())),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "LIST": lambda m, _: m._push(m._to_mark()),
    "FROZENSET": lambda m, _: m._push(m._to_mark()),
    "DICT": lambda m, _: m._dictionary(),
    "APPEND": lambda m, _: m._extend([m.pop()]),
    "APPENDS": lambda m, _: m._extend(m._to_mark()),
    "ADDITEMS": lambda m, _: m._extend(m._to_mark()),
    "SETITEM": lambda m, _: m._set_items([m.pop(), m.pop()][::-1]),
    "SETITEMS": lambda m, _: m._set_items(m._to_mark()),
    "GLOBAL": lambda m, a: m._global(a),
    "STACK_GLOBAL": lambda m, _: m._stack_global(),
    "REDUCE": lambda m, _: m._reduce(),
    "NEWOBJ": lambda m, _: m._reduce(),
    "NEWOBJ_EX": lambda m, _: m._new_object_with_keywords(),
    "OBJ": lambda m, _: m._object(),
    "INST": lambda m, a: m._instance(a),
    "BUILD": lambda m, _: m.pop(),  # state of the object below: dropped
    "PERSID": lambda m, a: m._refer(a),
    "BINPERSID": lambda m, _: m._refer(m.pop()),
}
