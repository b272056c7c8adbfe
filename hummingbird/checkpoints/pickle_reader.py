"""Reads the pickle inside a torch checkpoint without running anything that it names.

A pickle is a program for a small stack machine, and some of its instructions import and call whatever the
file asks for. This machine only writes down what was asked: a name becomes a ``Global``, a call of an unknown
name becomes a ``StandIn``, a tensor becomes a ``TensorReference`` to bytes elsewhere in the file. Only a few
constructors of plain containers and tensors act, and those are functions of this module.

Values from the file are never hashed, compared or printed, since nested tuples make all three take forever:
only text serves as a key, and every loop is paid from one budget.

Reference: the instruction set is that of ``pickletools`` in the standard library, protocols 0 to 5.
"""

from __future__ import annotations

import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

from hummingbird.checkpoints.pickle_globals import is_dangerous_part, modern_name, reason_to_refuse

_MAX_SHOWN = 80
_MAX_DIMENSIONS = 64  # torch's own limit


class CheckpointError(ValueError):
    """A checkpoint that cannot be read safely; the message is one line that says why."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How much of a checkpoint is read before it is taken for an attack.

    Args:
        pickle_bytes: Length of the pickle, without the tensors' data.
        operations: Instructions of the pickle plus the items that they copy, which also bounds its memory.
        integer_bits: Size of one integer.
        nesting: Depth of dicts and modules.
        num_tensors: Tensors, and also places looked at while searching for them.
        num_members: Files in the zip archive.
        directory_bytes: Length of the zip archive's directory.
        header_bytes: Length of the header of a safetensors file.
        expansion: Bytes of all tensors over the bytes of the file; above 1 where tensors share memory.
        name_length: Length of a tensor's name, and of the name of a class or function.
    """

    pickle_bytes: int = 64 * 2**20
    operations: int = 2_000_000
    integer_bits: int = 128
    nesting: int = 64
    num_tensors: int = 100_000
    num_members: int = 100_000
    directory_bytes: int = 16 * 2**20
    header_bytes: int = 16 * 2**20
    expansion: int = 4
    name_length: int = 1024


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """The name of a class or function, which stays a name."""

    name: str


@dataclass(eq=False, slots=True)
class StandIn:
    """What an unknown class or function would have made.

    Args:
        origin: Name of that class or function.
        state: The attributes that the pickle gives to it.
    """

    origin: str
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class PickledDict:
    """A dict: text keys in ``entries``; of the others, which no state dict has, only the number is kept."""

    entries: dict[str, Any] = field(default_factory=dict)
    num_others: int = 0


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class StorageReference:
    """Bytes of the file that tensors share.

    Args:
        key: Name of the storage in the file.
        dtype: Type of its elements.
        offset: Where it begins in the bytes of that name (above 0 in views of old files).
        nbytes: Its length.
    """

    key: str
    dtype: torch.dtype
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TensorReference:
    """A tensor whose bytes were checked to lie inside its storage; ``offset`` and ``stride`` in elements."""

    storage: StorageReference
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Pickled:
    """The result of reading a pickle.

    Args:
        root: What it describes, made of plain values and the classes above.
        ignored: Names of the globals that were stood in for.
        storages: The storages that it names, by key.
    """

    root: Any
    ignored: frozenset[str]
    storages: dict[str, StorageReference]


def shown(text: str) -> str:
    """Return ``text`` from a file as it may stand in a message: quoted, on one line, shortened."""
    return ascii(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


def kind_of(value: object) -> str:
    """Describe a value of a pickle by its type alone."""
    if isinstance(value, StandIn):
        return f"made by {shown(value.origin)}"
    if isinstance(value, Global):
        return f"the global {shown(value.name)}"
    names = {PickledDict: "dict", TensorReference: "tensor", StorageReference: "storage"}
    return names.get(type(value), type(value).__name__)


def read_pickle(data: BinaryIO, *, limits: Limits) -> Pickled:
    """Read one pickle from ``data``, which is left behind its last byte.

    Args:
        data: Holds the pickle in memory (its length is what bounds single values).
        limits: What is taken for an attack.

    Raises:
        CheckpointError: Where it names what it should not, is broken, or is beyond the limits.
    """
    machine = _Machine(limits)
    position = data.tell()
    try:
        for opcode, argument, at in pickletools.genops(data):
            position = at or 0
            machine.step(opcode.name, argument)
    except CheckpointError as error:
        raise CheckpointError(f"{error} (byte {position} of the pickle)") from None
    except (ValueError, Warning) as error:  # of pickletools; warnings where they are made errors
        raise CheckpointError(f"broken pickle after byte {position}: {shown(str(error))}") from None
    return machine.result()


_STORAGE_DTYPES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
_STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda", "torch.storage")
    for name, dtype in [*_STORAGE_DTYPES.items(), ("Untyped", torch.uint8), ("_Untyped", torch.uint8)]
}
_DTYPES = {
    str(dtype): dtype
    for dtype in (
        *_STORAGE_DTYPES.values(),
        *(torch.uint16, torch.uint32, torch.uint64),
        *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz),
    )
}
_REBUILDERS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_TENSOR_CLASSES = ("torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter")


_PUSHES_ARGUMENT = frozenset(
    {
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE"),
        *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    }
)


class _Mark:
    """Begins a group of items on the stack."""


class _Machine:
    """The stack machine: one method for each kind of instruction."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._operations_left = limits.operations
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, StorageReference] = {}
        self._ignored: set[str] = set()
        self._instructions = self._instruction_table()
        self._constructors = self._constructor_table()
        self._known = {*self._constructors, *_DTYPES, *_STORAGES, *_TENSOR_CLASSES}

    def step(self, instruction: str, argument: Any) -> None:
        """Run one instruction."""
        self._spend(1)
        if instruction in _PUSHES_ARGUMENT:
            if isinstance(argument, int) and argument.bit_length() > self._limits.integer_bits:
                most = self._limits.integer_bits
                raise CheckpointError(f"an integer of {argument.bit_length()} bits, expected at most {most}")
            self._stack.append(argument)
            return
        if instruction not in self._instructions:
            raise CheckpointError(f"refused instruction {instruction}: no checkpoint needs it")
        self._instructions[instruction](argument)

    def result(self) -> Pickled:
        """Return what the stopped machine holds."""
        if len(self._stack) != 1 or self._stack[0] is _Mark:
            raise CheckpointError(f"broken pickle: {len(self._stack)} values at its end, expected one")
        return Pickled(root=self._stack[0], ignored=frozenset(self._ignored), storages=self._storages)

    def _instruction_table(self) -> dict[str, Callable[[Any], None]]:
        push = self._stack.append
        return {
            "PROTO": lambda _: None,
            "FRAME": lambda _: None,
            "STOP": lambda _: None,
            "NONE": lambda _: push(None),
            "NEWTRUE": lambda _: push(True),
            "NEWFALSE": lambda _: push(False),
            "MARK": lambda _: push(_Mark),
            "POP": lambda _: self._pop_any(),
            "POP_MARK": lambda _: self._pop_to_mark(),
            "DUP": lambda _: push(self._top()),
            "EMPTY_TUPLE": lambda _: push(()),
            "EMPTY_LIST": lambda _: push([]),
            "EMPTY_SET": lambda _: push([]),
            "EMPTY_DICT": lambda _: push(PickledDict()),
            "TUPLE1": lambda _: push(self._pop_many(1)),
            "TUPLE2": lambda _: push(self._pop_many(2)),
            "TUPLE3": lambda _: push(self._pop_many(3)),
            "TUPLE": lambda _: push(tuple(self._pop_to_mark())),
            "LIST": lambda _: push(self._pop_to_mark()),
            "FROZENSET": lambda _: push(self._pop_to_mark()),
            "DICT": lambda _: push(self._dict_of(self._pop_to_mark())),
            "APPEND": lambda _: self._extend([self._pop()]),
            "APPENDS": lambda _: self._extend(self._pop_to_mark()),
            "ADDITEMS": lambda _: self._extend(self._pop_to_mark()),
            "SETITEM": lambda _: self._set_items(list(self._pop_many(2))),
            "SETITEMS": lambda _: self._set_items(self._pop_to_mark()),
            "PUT": self._put,
            "BINPUT": self._put,
            "LONG_BINPUT": self._put,
            "MEMOIZE": lambda _: self._put(len(self._memo)),
            "GET": self._get,
            "BINGET": self._get,
            "LONG_BINGET": self._get,
            "GLOBAL": lambda name: push(self._global(*name.split(" ", 1))),
            "STACK_GLOBAL": lambda _: push(self._global(*self._pop_many(2))),
            "INST": lambda name: push(self._call(self._global(*name.split(" ", 1)), self._pop_to_mark())),
            "OBJ": lambda _: self._make_from_mark(),
            "NEWOBJ": lambda _: self._make(),
            "NEWOBJ_EX": lambda _: self._make_with_keywords(),
            "REDUCE": lambda _: self._make(),
            "BUILD": lambda _: self._build(self._pop()),
            "BINPERSID": lambda _: push(self._persistent(self._pop())),
        }

    # The stack

    def _spend(self, operations: int) -> None:
        self._operations_left -= operations
        if self._operations_left < 0:
            raise CheckpointError(
                f"more than {self._limits.operations} operations: raise the limit if you trust this file"
            )

    def _pop_any(self) -> Any:
        if not self._stack:
            raise CheckpointError("broken pickle: it takes a value from an empty stack")
        return self._stack.pop()

    def _pop(self) -> Any:
        value = self._pop_any()
        if value is _Mark:
            raise CheckpointError("broken pickle: a mark where a value should be")
        return value

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _pop_many(self, count: int) -> tuple[Any, ...]:
        return tuple(reversed([self._pop() for _ in range(count)]))

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (value := self._pop_any()) is not _Mark:
            items.append(value)
        items.reverse()
        return items

    def _put(self, index: int) -> None:
        if not 0 <= index <= self._limits.operations:
            raise CheckpointError(f"memo index {index}, expected 0 to {self._limits.operations}")
        self._memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise CheckpointError(f"broken pickle: nothing was remembered as number {index}")
        self._stack.append(self._memo[index])

    # Containers

    def _extend(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, StandIn):
            raise CheckpointError(f"broken pickle: items are added to {kind_of(target)}, expected a list")

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if isinstance(target, PickledDict):
            self._fill(target, items)
        elif not isinstance(target, StandIn):
            raise CheckpointError(f"broken pickle: items are set in {kind_of(target)}, expected a dict")

    def _dict_of(self, items: list[Any]) -> PickledDict:
        made = PickledDict()
        self._fill(made, items)
        return made

    def _fill(self, target: PickledDict, items: list[Any]) -> None:
        if len(items) % 2:
            raise CheckpointError("broken pickle: a key without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str):
                target.num_others += 1
            elif key in target.entries:
                raise CheckpointError(f"key {shown(key)} given twice")
            else:
                target.entries[key] = value

    # Names and calls

    def _global(self, module: Any, name: Any) -> Global:
        if not isinstance(module, str) or not isinstance(name, str):
            raise CheckpointError(
                f"refused global whose name is {kind_of(module)} and {kind_of(name)}, expected two texts"
            )
        if len(module) + len(name) > self._limits.name_length:
            raise CheckpointError(f"refused global {shown(name)}: a name of {len(name)} letters")
        module, name = modern_name(module, name)
        full_name = f"{module}.{name}"
        if full_name not in self._known:
            reason = reason_to_refuse(module, name)
            if reason is not None:
                also = f" (os.{name})" if module in ("posix", "nt") else ""
                raise CheckpointError(f"refused global {shown(full_name)}{also}: {reason}")
            self._ignored.add(full_name)
        return Global(full_name)

    def _make(self) -> None:
        """Run NEWOBJ and REDUCE, which differ only in how the class would have been called."""
        maker, arguments = self._pop_many(2)
        if not isinstance(arguments, tuple):
            raise CheckpointError(f"broken pickle: arguments are {kind_of(arguments)}, expected a tuple")
        self._stack.append(self._call(maker, list(arguments)))

    def _make_with_keywords(self) -> None:
        """Run NEWOBJ_EX; nothing that acts here takes keywords."""
        self._pop()
        self._make()

    def _make_from_mark(self) -> None:
        maker, *arguments = self._pop_to_mark() or [None]
        self._stack.append(self._call(maker, arguments))

    def _call(self, maker: Any, arguments: list[Any]) -> Any:
        if isinstance(maker, StandIn):
            return StandIn(maker.origin)
        if not isinstance(maker, Global):
            raise CheckpointError(f"refused to call {kind_of(maker)}, expected a class or function")
        if maker.name not in self._constructors:
            return StandIn(maker.name)
        construct, fewest, most = self._constructors[maker.name]
        if not fewest <= len(arguments) <= most:
            raise CheckpointError(
                f"{maker.name} is called with {len(arguments)} arguments, expected {fewest} to {most}"
            )
        return construct(*arguments)

    def _build(self, state: Any) -> None:
        """Give attributes to the object on top; those of dicts and tensors are dropped."""
        target = self._top()
        if isinstance(target, (PickledDict, TensorReference)):
            return
        if not isinstance(target, StandIn):
            raise CheckpointError(f"refused to set the state of {kind_of(target)}")
        for part in state if isinstance(state, tuple) else (state,):  # a tuple: attributes and slots
            if isinstance(part, PickledDict):
                self._spend(len(part.entries))
                target.state.update(part.entries)

    # What acts: plain containers and tensors

    def _constructor_table(self) -> dict[str, tuple[Callable[..., Any], int, int]]:
        """Return, by name, the function of ours that stands for it and how many arguments it takes."""
        many = self._limits.operations
        return {
            "_codecs.encode": (self._encoded, 2, 2),
            "builtins.dict": (self._dict_from, 0, 1),
            "builtins.frozenset": (self._list_from, 0, 1),
            "builtins.getattr": (self._attribute, 2, 3),
            "builtins.list": (self._list_from, 0, 1),
            "builtins.set": (self._list_from, 0, 1),
            "builtins.tuple": (self._tuple_from, 0, 1),
            "collections.Counter": (self._dict_from, 0, 1),
            "collections.OrderedDict": (self._dict_from, 0, 1),
            "collections.defaultdict": (lambda factory=None, items=(): self._dict_from(items), 0, 2),
            "copyreg.__newobj__": (self._instance, 1, many),
            "copyreg.__newobj_ex__": (self._instance, 3, 3),
            "copyreg._reconstructor": (self._instance, 3, 3),
            "torch.Size": (self._tuple_from, 0, 1),
            "torch.device": (lambda *_: StandIn("torch.device"), 1, 2),
            "torch._utils._rebuild_tensor": (self._tensor, 4, 4),
            "torch._utils._rebuild_tensor_v2": (self._tensor_v2, 6, 7),
            "torch._utils._rebuild_tensor_v3": (self._tensor_v3, 7, 8),
            "torch._utils._rebuild_parameter": (self._parameter, 3, 3),
            "torch._utils._rebuild_parameter_with_state": (self._parameter, 4, 4),
            "torch._tensor._rebuild_from_type_v2": (self._tensor_of_type, 4, 4),
        }

    def _list_from(self, items: Any = ()) -> list[Any]:
        if not isinstance(items, (list, tuple)):
            raise CheckpointError(f"broken pickle: a list is made of {kind_of(items)}")
        self._spend(len(items))
        return list(items)

    def _tuple_from(self, items: Any = ()) -> tuple[Any, ...]:
        return tuple(self._list_from(items))

    def _dict_from(self, items: Any = ()) -> PickledDict:
        if isinstance(items, PickledDict):
            self._spend(len(items.entries))
            return PickledDict(dict(items.entries), items.num_others)
        flat: list[Any] = []
        for pair in self._list_from(items):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise CheckpointError(f"broken pickle: a dict is made of {kind_of(pair)}, expected pairs")
            flat += pair
        return self._dict_of(flat)

    def _encoded(self, text: Any, encoding: Any) -> bytes:
        """Protocol 2 writes bytes as text in Latin-1."""
        if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
            raise CheckpointError("refused _codecs.encode of anything but text to latin1")
        self._spend(len(text))
        return text.encode("latin-1", errors="replace")

    def _attribute(self, target: Any, name: Any, *_: Any) -> StandIn:
        """Modules that keep a bound method as an attribute are pickled with a call of getattr."""
        if not isinstance(name, str):
            raise CheckpointError(f"refused global builtins.getattr of {kind_of(name)}, expected a name")
        if not isinstance(target, (StandIn, Global)) or is_dangerous_part(name):
            raise CheckpointError(f"refused global builtins.getattr of {shown(name)} from {kind_of(target)}")
        self._ignored.add("builtins.getattr")
        return StandIn("builtins.getattr")

    def _instance(self, maker: Any, *_: Any) -> StandIn:
        """Protocols 0 and 1 make objects by functions of copyreg."""
        if not isinstance(maker, Global):
            raise CheckpointError(f"broken pickle: an object of {kind_of(maker)}, expected a class")
        return StandIn(maker.name)

    def _persistent(self, identity: Any) -> Any:
        """Return the storage, or the class of a module, that torch wrote down as a persistent id."""
        if not isinstance(identity, tuple) or not identity or not isinstance(identity[0], str):
            raise CheckpointError(f"refused persistent id: {kind_of(identity)}, expected torch's tuple")
        if identity[0] == "module" and len(identity) == 4 and isinstance(identity[1], Global):
            return identity[1]
        if identity[0] != "storage" or len(identity) not in (5, 6):
            raise CheckpointError(f"refused persistent id {shown(identity[0])} of {len(identity)} parts")
        storage_type, key, _location, numel, *view = identity[1:]
        if not isinstance(storage_type, Global) or storage_type.name not in _STORAGES:
            raise CheckpointError(
                f"storage type is {kind_of(storage_type)}, expected one of torch's storages"
            )
        if not isinstance(key, str) or not _is_size(numel):
            raise CheckpointError("broken pickle: a storage without a name or size")
        dtype = _STORAGES[storage_type.name]
        nbytes = numel * dtype.itemsize
        root = StorageReference(key=key, dtype=dtype, offset=0, nbytes=nbytes)
        if self._storages.setdefault(key, root).nbytes != nbytes:
            raise CheckpointError(f"storage {shown(key)} is named with two sizes")
        return self._view(root, view[0]) if view and view[0] is not None else root

    def _view(self, root: StorageReference, view: Any) -> StorageReference:
        """Old files share memory by views of storages: (name, offset, number of elements)."""
        if not isinstance(view, tuple) or len(view) != 3 or not _is_size(view[1]) or not _is_size(view[2]):
            raise CheckpointError(f"broken pickle: the view of a storage is {kind_of(view)}")
        offset, nbytes = view[1] * root.dtype.itemsize, view[2] * root.dtype.itemsize
        if offset + nbytes > root.nbytes:
            raise CheckpointError(f"a view of storage {shown(root.key)} ends beyond its {root.nbytes} bytes")
        return StorageReference(key=root.key, dtype=root.dtype, offset=offset, nbytes=nbytes)

    def _tensor(
        self, storage: Any, offset: Any, shape: Any, stride: Any, dtype: torch.dtype | None = None
    ) -> TensorReference:
        if not isinstance(storage, StorageReference):
            raise CheckpointError(f"a tensor is made of {kind_of(storage)}, expected a storage")
        sizes = [shape, stride]
        if not all(isinstance(item, tuple) and len(item) <= _MAX_DIMENSIONS for item in sizes):
            raise CheckpointError(f"a tensor's shape is {kind_of(shape)}, expected at most 64 sizes")
        if len(shape) != len(stride) or not all(_is_size(value) for value in (offset, *shape, *stride)):
            raise CheckpointError("a tensor's shape, stride and offset do not belong together")
        dtype = dtype or storage.dtype
        numel = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if numel and (last + 1) * dtype.itemsize > storage.nbytes:
            raise CheckpointError(
                f"a tensor of {numel} elements ends {(last + 1) * dtype.itemsize} bytes into storage "
                f"{shown(storage.key)}, which has {storage.nbytes}"
            )
        return TensorReference(storage=storage, dtype=dtype, offset=offset, shape=shape, stride=stride)

    def _tensor_v2(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        _gradient: Any,
        _hooks: Any,
        flags: Any = None,
    ) -> TensorReference:
        _refuse_flags(flags)
        return self._tensor(storage, offset, shape, stride)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        stride: Any,
        _gradient: Any,
        _hooks: Any,
        dtype: Any,
        flags: Any = None,
    ) -> TensorReference:
        _refuse_flags(flags)
        if not isinstance(dtype, Global) or dtype.name not in _DTYPES:
            raise CheckpointError(f"a tensor's type is {kind_of(dtype)}, expected one of torch's dtypes")
        return self._tensor(storage, offset, shape, stride, _DTYPES[dtype.name])

    def _parameter(self, data: Any, *_: Any) -> TensorReference:
        if not isinstance(data, TensorReference):
            raise CheckpointError(f"a parameter is made of {kind_of(data)}, expected a tensor")
        return data

    def _tensor_of_type(self, rebuild: Any, kind: Any, arguments: Any, _state: Any) -> Any:
        """A tensor with Python attributes, or of a class derived from Tensor; the latter stays a stand-in."""
        if not isinstance(rebuild, Global) or rebuild.name not in _REBUILDERS:
            raise CheckpointError(
                f"a tensor is made by {kind_of(rebuild)}, expected a function of torch._utils"
            )
        if not isinstance(arguments, tuple) or not isinstance(kind, Global):
            raise CheckpointError(f"broken pickle: a tensor is made of {kind_of(arguments)}")
        made = self._call(rebuild, list(arguments))
        return made if kind.name in _TENSOR_CLASSES else StandIn(kind.name)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _refuse_flags(flags: Any) -> None:
    """Conjugate and negative views are stored as flags beside the numbers; no checkpoint of ours has them."""
    if isinstance(flags, PickledDict) and any(value is not False for value in flags.entries.values()):
        raise CheckpointError("a tensor is a conjugate or negative view: save it with .resolve_conj()")
