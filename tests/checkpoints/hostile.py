"""Makes hostile checkpoint files: pickles that run code or exhaust a reader, and the containers around them.

Pickles are assembled by hand, instruction by instruction, so that nothing runs while they are made.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

# Pickle assembly: each function returns instructions that leave one value on the stack.


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return pickle.dumps(value, protocol=2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def computed_name(module: bytes, attribute: bytes) -> bytes:
    """STACK_GLOBAL, whose two names are made by other instructions."""
    return module + attribute + b"\x93"


def pair_up(*values: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(values) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    """REDUCE."""
    return function + pair_up(*arguments) + b"R"


def instance(kind: bytes, *arguments: bytes) -> bytes:
    """NEWOBJ."""
    return kind + pair_up(*arguments) + b"\x81"


def list_of(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def dict_of(values: Mapping[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in values.items()) + b"u"


def with_state(target: bytes, state: bytes) -> bytes:
    """BUILD."""
    return target + state + b"b"


def whole(value: bytes, protocol: int = 2) -> bytes:
    """A complete pickle."""
    return b"\x80" + bytes([protocol]) + value + b"."


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    return pair_up(text("storage"), name("torch", kind), text(key), text("cpu"), number(numel)) + b"Q"


def tensor(
    source: bytes | None = None,
    *,
    offset: int = 0,
    shape: tuple[int, ...] = (4,),
    stride: tuple[int, ...] = (1,),
) -> bytes:
    sizes = (pair_up(*map(number, values)) for values in (shape, stride))
    arguments = (storage() if source is None else source, number(offset), *sizes, b"\x89", dict_of({}))
    return call(name("torch._utils", "_rebuild_tensor_v2"), *arguments)


def module(**state: bytes) -> bytes:
    """An object with the attributes of a network of one parameter, and those given."""
    network = {"_parameters": dict_of({"weight": tensor()}), "_buffers": dict_of({}), "_modules": dict_of({})}
    return with_state(instance(name("some_library.networks", "Network")), dict_of({**network, **state}))


# Files


def save_zip(
    path: Path,
    pickled: bytes,
    storages: Mapping[str, bytes] | None = None,
    *,
    byte_order: bytes = b"little",
    compression: int = zipfile.ZIP_STORED,
) -> Path:
    """Write the archive that torch would write around ``pickled``."""
    members = {"data.pkl": pickled, "byteorder": byte_order, "version": b"3\n"}
    members |= {f"data/{key}": data for key, data in (storages or {"0": floats(4)}).items()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for member, data in members.items():
            archive.writestr(f"archive/{member}", data)
    return path


def save_legacy(path: Path, pickled: bytes, storages: Mapping[str, bytes] | None = None) -> Path:
    """Write the stream that torch wrote before 1.6 around ``pickled`` (storages of four-byte elements)."""
    if storages is None:
        storages = {"0": floats(4)} if text("storage") in pickled else {}
    system = {"protocol_version": LEGACY_PROTOCOL, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(value, protocol=2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, system)]
    parts += [pickled, pickle.dumps(list(storages), protocol=2)]
    parts += [struct.pack("<q", len(data) // 4) + data for data in storages.values()]
    path.write_bytes(b"".join(parts))
    return path


def save_bare(path: Path, pickled: bytes) -> Path:
    path.write_bytes(pickled)
    return path


def floats(count: int) -> bytes:
    return torch.arange(count, dtype=torch.float32).numpy().tobytes()


# Attacks. Every one of the first kind runs ``command`` in Python's own pickle.loads.


def live_attacks(command: str) -> dict[str, tuple[bytes, str]]:
    """Return pickles that run a shell command when unpickled.

    Args:
        command: The command.

    Returns:
        By what they do: the pickle, and the global that a refusal should name.
    """
    system, code = name("os", "system"), text(f"__import__('os').system({command!r})")
    get = name("builtins", "getattr")
    importer = name("importlib", "import_module")
    object_globals = call(
        get, call(get, name("argparse", "Namespace"), text("__init__")), text("__globals__")
    )
    own_builtins = call(call(get, object_globals, text("get")), text("__builtins__"))
    namespace = instance(name("types", "SimpleNamespace"))
    weights = {"weight": call(system, text(command))}
    return {
        "reduce os.system": (whole(call(system, text(command))), "os.system"),
        "reduce posix.system": (
            whole(call(name("posix", "system"), text(command))),
            "'posix.system' (os.system)",
        ),
        "Python 2 name": (whole(call(name("__builtin__", "eval"), code)), "builtins.eval"),
        "eval": (whole(call(name("builtins", "eval"), code)), "builtins.eval"),
        "exec": (whole(call(name("builtins", "exec"), code)), "builtins.exec"),
        "subprocess": (
            whole(call(name("subprocess", "call"), list_of(text("sh"), text("-c"), text(command)))),
            "subprocess.call",
        ),
        "in a state dict": (whole(dict_of(weights)), "os.system"),
        "nested reduce": (
            whole(call(name("collections", "OrderedDict"), list_of(list_of(text("w"), weights["weight"])))),
            "os.system",
        ),
        "argument of a reduce": (
            whole(call(name("builtins", "eval"), call(name("builtins", "str"), code))),
            "builtins.eval",
        ),
        "module attribute": (whole(call(name("posixpath", "os.system"), text(command)), 4), "posixpath.os"),
        "computed name": (
            whole(
                call(computed_name(call(name("builtins", "str"), text("os")), text("system")), text(command))
            ),
            "builtins.str",
        ),
        "getattr of a module": (
            whole(call(call(get, call(importer, text("os")), text("system")), text(command))),
            "importlib.import_module",
        ),
        "attrgetter": (
            whole(
                call(
                    call(call(name("operator", "attrgetter"), text("system")), name("posixpath", "os")),
                    text(command),
                )
            ),
            "operator.attrgetter",
        ),
        "getattr chain": (
            whole(call(call(call(get, own_builtins, text("get")), text("eval")), code)),
            "builtins.getattr",
        ),
        "partial": (
            whole(call(call(name("functools", "partial"), system, text(command)))),
            "os.system",
        ),
        "setstate": (
            whole(with_state(with_state(namespace, dict_of({"__setstate__": system})), text(command))),
            "os.system",
        ),
        "defaultdict factory": (
            whole(
                call(
                    call(
                        get,
                        call(
                            name("collections", "defaultdict"),
                            call(name("functools", "partial"), system, text(command)),
                        ),
                        text("__missing__"),
                    ),
                    text("key"),
                )
            ),
            "os.system",
        ),
        "INST": (whole(b"(" + text(command) + b"ios\nsystem\n"), "os.system"),
        "OBJ": (whole(b"(" + system + text(command) + b"o"), "os.system"),
        "discarded": (whole(call(system, text(command)) + b"0" + dict_of({})), "os.system"),
        "protocol 0": (f"cos\nsystem\n(S{command!r}\ntR.".encode(), "os.system"),
        "runpy": (
            whole(call(name("builtins", "exec"), call(name("textwrap", "dedent"), code))),
            "builtins.exec",
        ),
        "timeit": (
            whole(call(name("timeit", "timeit"), code, text("pass"), name("time", "time"), number(1))),
            "timeit",
        ),
    }


def inert_attacks(command: str) -> dict[str, tuple[bytes, str]]:
    """Return pickles that need torch, a registry or a library to do harm, and what a refusal should say."""
    system = call(name("os", "system"), text(command))
    weights = dict_of({"weight": tensor()})
    unknown = call(name("some_library.tools", "run"), text(command))
    get = name("builtins", "getattr")
    return {
        "beside the state dict": (whole(dict_of({"state_dict": weights, "callbacks": system})), "os.system"),
        "in a network's attribute": (whole(module(hook=system)), "os.system"),
        "as a key": (whole(b"}" + system + tensor() + b"s"), "os.system"),
        "in a set": (whole(call(name("builtins", "set"), list_of(system))), "os.system"),
        "as a storage type": (
            whole(pair_up(text("storage"), name("os", "system"), text("0"), text("cpu"), number(4)) + b"Q"),
            "os.system",
        ),
        "as a storage": (whole(dict_of({"weight": tensor(system)})), "os.system"),
        "unknown function in a state dict": (whole(dict_of({"weight": unknown})), "some_library.tools.run"),
        "unknown function as state dict": (whole(unknown), "some_library.tools.run"),
        "unknown function inside the nesting": (
            whole(dict_of({"state_dict": dict_of({"a": tensor(), "b": unknown})})),
            "some_library.tools.run",
        ),
        "unknown function in a list": (whole(list_of(tensor(), unknown)), "some_library.tools.run"),
        "unknown function, discarded": (whole(unknown + b"0" + weights), "some_library.tools.run"),
        "unknown class among the parameters": (
            whole(module(_parameters=dict_of({"weight": unknown}))),
            "some_library.tools.run",
        ),
        "torch.load": (whole(call(name("torch", "load"), text("other.ckpt"))), "torch.load"),
        "name by way of torch": (
            whole(call(computed_name(text("torch.serialization"), text("os.system")), text(command)), 4),
            "torch.serialization.os.system",
        ),
        "torch.hub": (whole(call(name("torch.hub", "load"), text("a/b"), text("c"))), "torch.hub.load"),
        "cpp_extension": (
            whole(call(name("torch.utils.cpp_extension", "load"), text("x"))),
            "torch.utils.cpp_extension.load",
        ),
        "numpy": (whole(call(name("numpy.testing._private.utils", "runstring"), text("x"))), "numpy.testing"),
        "pickle in a pickle": (whole(call(name("_pickle", "loads"), text(command))), "_pickle.loads"),
        "NEWOBJ_EX": (
            whole(name("subprocess", "Popen") + pair_up() + dict_of({"args": text(command)}) + b"\x92", 4),
            "subprocess.Popen",
        ),
        "getattr to a class": (whole(call(get, module(), text("__class__"))), "builtins.getattr"),
        "getattr to subclasses": (whole(call(get, unknown, text("__subclasses__"))), "builtins.getattr"),
        "getattr of text": (whole(call(get, text("x"), text("format"))), "builtins.getattr"),
        "getattr by a number": (whole(call(get, module(), number(3))), "builtins.getattr"),
        "state of a class": (
            whole(with_state(name("torch.nn.modules.linear", "Linear"), dict_of({"forward": text("x")}))),
            "torch.nn.modules.linear.Linear",
        ),
        "slots of a class": (
            whole(
                with_state(
                    name("torch.nn.modules.linear", "Linear"), pair_up(b"N", dict_of({"forward": text("x")}))
                )
            ),
            "torch.nn.modules.linear.Linear",
        ),
        "call of text": (whole(call(text("system"), text(command))), "refused to call str"),
        "encode by another codec": (
            whole(call(name("_codecs", "encode"), text(command), text("rot13"))),
            "_codecs.encode",
        ),
        "tensor type by a function": (
            whole(call(name("torch._tensor", "_rebuild_from_type_v2"), unknown, unknown, pair_up(), b"N")),
            "some_library.tools.run",
        ),
        "EXT1": (whole(b"\x82\x01"), "EXT1"),
        "EXT2": (whole(b"\x83\x01\x00"), "EXT2"),
        "EXT4": (whole(b"\x84\x01\x00\x00\x00"), "EXT4"),
        "PERSID": (whole(b"Pstorage\n"), "PERSID"),
        "persistent text": (whole(text("storage") + b"Q"), "persistent id"),
        "persistent tuple": (whole(pair_up(text("file"), text("/etc/passwd")) + b"Q"), "persistent id"),
        "NEXT_BUFFER": (whole(b"\x97", 5), "NEXT_BUFFER"),
        "name with a path": (whole(name("../evil", "run")), "evil"),
        "nameless": (whole(computed_name(number(1), number(2)), 4), "refused global"),
        "_modules is a number": (whole(module(_modules=number(3))), "_modules"),
        "_modules is a list": (whole(module(_modules=list_of(tensor()))), "_modules"),
        "_modules holds a tensor": (whole(module(_modules=dict_of({"a": tensor()}))), "_modules"),
        "_modules holds a class": (whole(module(_modules=dict_of({"a": name("os_like", "x")}))), "_modules"),
        "_parameters hold text": (whole(module(_parameters=dict_of({"a": text("x")}))), "_parameters"),
        "transient names are text": (whole(module(_non_persistent_buffers_set=text("x"))), "a set of names"),
    }


def bombs() -> dict[str, tuple[bytes, str]]:
    """Return small pickles that make a careless reader recurse, loop or allocate without end."""
    deep = 100_000
    get = b"h\x00"
    doubling = b"".join(b"0}(" + text("a") + b"h\x00" + text("b") + b"h\x00" + b"uq\x00" for _ in range(60))
    pairs = b"".join(b"0h\x00h\x00\x86q\x00" for _ in range(60))
    numbers = b"](" + b"K\x00" * 300_000 + b"eq\x00"
    cycle = with_state(
        instance(name("lib", "Net")) + b"q\x00",
        dict_of(
            {"_parameters": dict_of({}), "_buffers": dict_of({}), "_modules": dict_of({"a": get})},
        ),
    )
    return {
        "nested lists": (whole(b"]" * deep + b"a" * (deep - 1)), "expected|nest|deep"),
        "nested tuples": (whole(b")" + b"\x85" * deep), "deeper"),
        "nested tuples as a key": (whole(b"}" + b")" + b"\x85" * deep + tensor() + b"s"), "not text"),
        "nested dicts": (whole((b"}" + text("a")) * deep + b"N" + b"s" * deep), "deeper"),
        "nested objects": (
            whole(name("lib", "Net") + b"q\x00" + b")\x81" + (b"h\x00)\x81" * deep) + b"b" * deep),
            "lib.Net",
        ),
        "nested calls": (
            whole(name("copyreg", "__newobj__") + b"q\x00" + b"(" + b"h\x00" * deep + b"tR"),
            "copyreg.__newobj__",
        ),
        "list in itself": (whole(b"]q\x00h\x00a"), "deeper"),
        "dict in itself": (whole(b"}q\x00" + text("a") + b"h\x00s"), "deeper"),
        "network in itself": (whole(cycle), "deeper"),
        "transient names of many buffers": (
            whole(
                module(
                    _buffers=dict_of({str(index): b"N" for index in range(50_000)}),
                    _non_persistent_buffers_set=list_of(*[text("x")] * 49_000),
                    _modules=dict_of({str(index): b"N" for index in range(2_000)}),
                )
            ),
            "places",
        ),
        "doubling dicts": (whole(tensor() + b"q\x00" + doubling), "places"),
        "doubling tuples as a key": (
            whole(b")q\x00" + pairs + b"0}h\x00" + tensor() + b"s"),
            "not text",
        ),
        "a copy of a list, many times": (
            whole(numbers + b"0" + call(name("builtins", "list"), get) * 1000),
            "operations",
        ),
        "the state of an object, many times": (
            whole(
                dict_of({str(index): b"N" for index in range(100_000)})
                + b"q\x00"
                + instance(name("lib", "Net"))
                + b"h\x00b" * 10_000
            ),
            "operations",
        ),
        "bytes of a text, many times": (
            whole(
                text("x" * 1_000_000) + b"q\x00" + call(name("_codecs", "encode"), get, text("latin1")) * 1000
            ),
            "operations",
        ),
        "a long name, many times": (
            whole(text("x" * 1_000_000) + b"q\x00" + computed_name(get, get) * 1000, 4),
            "refused global",
        ),
        "a long key before short ones": (
            whole(dict_of({"x" * 1_000_000: dict_of({str(index): tensor() for index in range(1000)})})),
            "letters",
        ),
        "instructions without end": (whole(b"N0" * 2_000_000 + b"N"), "operations"),
        "a number of a megabyte": (whole(b"\x8b" + struct.pack("<i", 2**20) + b"\x7f" * 2**20), "bits"),
        "a number cut off": (whole(b"\x8b" + struct.pack("<i", 2**31 - 1) + b"\x7f"), "broken"),
        "a number of negative length": (whole(b"\x8b" + struct.pack("<i", -1)), "broken"),
        "a number in digits": (whole(b"L" + b"9" * 1_000_000 + b"L\n"), "broken"),
        "text of exabytes": (whole(b"\x8d" + struct.pack("<Q", 2**62) + b"x", 4), "broken"),
        "bytes of exabytes": (whole(b"\x8e" + struct.pack("<Q", 2**62) + b"x", 4), "broken"),
        "buffer of exabytes": (whole(b"\x96" + struct.pack("<Q", 2**62) + b"x", 5), "broken"),
        "frame of exabytes": (whole(b"\x95" + struct.pack("<Q", 2**62) + b"N", 4), "expected"),
        "memo of billions": (whole(b"Nr" + struct.pack("<I", 2**32 - 1)), "memo index"),
        "colliding numbers as keys": (
            whole(
                b"}("
                + b"".join(number(index * (2**61 - 1)) + b"N" for index in range(100_000))
                + text("w")
                + tensor()
                + b"u"
            ),
            "not text",
        ),
        "empty stack": (whole(b"0"), "empty stack"),
        "only a mark": (whole(b"("), "broken"),
        "mark as a value": (whole(b"(\x85"), "mark"),
        "no mark": (whole(b"Nt"), "empty stack"),
        "key without a value": (whole(b"}(" + text("a") + b"u"), "key without"),
        "a key twice": (whole(b"}(" + (text("a") + tensor()) * 2 + b"u"), "twice"),
        "two values": (whole(b"NN"), "2 values"),
        "nothing": (whole(b""), "0 values"),
        "unknown instruction": (whole(b"\xff"), "broken"),
        "forgotten memo": (whole(b"h\x07"), "number 7"),
    }


def wrong_tensors() -> dict[str, tuple[bytes, str]]:
    """Return state dicts whose tensors do not fit into their storage of 4 floats."""
    names_clash = {"a.b": tensor(), "a": dict_of({"b": tensor()})}
    flags = (
        storage(),
        number(0),
        pair_up(number(4)),
        pair_up(number(1)),
        b"\x89",
        dict_of({}),
        dict_of({"conj": b"\x88"}),
    )
    tensors = {
        "beyond the storage": (tensor(shape=(5,)), "storage"),
        "offset beyond the storage": (tensor(offset=1), "storage"),
        "negative offset": (tensor(offset=-1), "belong together"),
        "negative shape": (tensor(shape=(-4,)), "belong together"),
        "negative stride": (tensor(offset=3, stride=(-1,)), "belong together"),
        "stride beyond the storage": (tensor(shape=(2, 2), stride=(4, 1)), "storage"),
        "more sizes than strides": (tensor(shape=(2, 2)), "belong together"),
        "65 axes": (tensor(shape=(1,) * 65, stride=(1,) * 65), "64"),
        "sizes that are text": (
            call(
                name("torch._utils", "_rebuild_tensor_v2"),
                storage(),
                text("0"),
                text("4"),
                text("1"),
                b"\x89",
                b"N",
            ),
            "shape",
        ),
        "one element, a terabyte of them": (tensor(shape=(2**38,), stride=(0,)), "would take"),
        "more elements than an address has bits": (
            tensor(shape=(2**62, 2**62), stride=(0, 0)),
            "torch cannot",
        ),
        "empty, of impossible shape": (tensor(shape=(0, 2**62, 2**62), stride=(1, 1, 1)), "torch cannot"),
        "storage larger than its bytes": (tensor(storage(numel=5)), "its pickle says"),
        "storage smaller than its bytes": (tensor(storage(numel=3), shape=(3,)), "its pickle says"),
        "storage of negative size": (tensor(storage(numel=-4)), "size"),
        "storage that is not there": (tensor(storage(key="7")), "data/7"),
        "storage outside of the archive": (tensor(storage(key="../data.pkl")), "data.pkl"),
        "storage of an unknown type": (tensor(storage(kind="QInt8Storage")), "QInt8Storage"),
        "storage of two sizes": (list_of(tensor(), tensor(storage(numel=2), shape=(2,))), "two sizes"),
        "tensor of a tensor": (tensor(tensor()), "expected a storage"),
        "parameter of text": (
            call(name("torch._utils", "_rebuild_parameter"), text("x"), b"\x89", dict_of({})),
            "expected a tensor",
        ),
        "conjugate view": (call(name("torch._utils", "_rebuild_tensor_v2"), *flags), "conjugate"),
        "too few arguments": (call(name("torch._utils", "_rebuild_tensor_v2"), storage()), "arguments"),
    }
    made = {title: (whole(dict_of({"weight": value})), says) for title, (value, says) in tensors.items()}
    return {
        **made,
        "names that meet": (whole(dict_of(names_clash)), "two tensors"),
        "one storage, thousands of tensors": (
            whole(tensor() + b"q\x000" + list_of(*[b"h\x00"] * 20_000)),
            "would take",
        ),
        "a number as a name": (whole(b"}" + number(1) + tensor() + b"s"), "not text"),
        "no tensors": (whole(dict_of({})), "no tensors"),
        "a lone tensor": (whole(tensor()), "expected a dict"),
    }


# Hostile containers


def hostile_archives(folder: Path) -> dict[str, tuple[Path, str]]:
    """Write archives that are wrong as archives, and return them with what a refusal should say."""
    good = whole(dict_of({"weight": tensor()}))
    plain = save_zip(folder / "plain.ckpt", good).read_bytes()
    directory = plain.rindex(b"PK\x05\x06")

    def patched(title: str, data: bytes) -> Path:
        path = folder / f"{title}.ckpt"
        path.write_bytes(data)
        return path

    def with_members(title: str, members: list[tuple[str, bytes]]) -> Path:
        path = folder / f"{title}.ckpt"
        with zipfile.ZipFile(path, "w") as archive:
            for member, data in members:
                info = zipfile.ZipInfo(member)
                archive.writestr(info, data)
        return path

    def directory_of(size: int) -> bytes:
        end = bytearray(plain[directory:])
        end[12:16] = struct.pack("<I", size)
        return plain[:directory] + bytes(end)

    offset_of_first = plain.index(b"PK\x01\x02") + 42
    shifted = bytearray(plain)
    shifted[offset_of_first : offset_of_first + 4] = struct.pack("<I", len(plain) + 1000)
    overlapping = bytearray(plain)
    second = plain.index(b"PK\x01\x02", offset_of_first)
    overlapping[second + 42 : second + 46] = struct.pack("<I", 1)
    encrypted = bytearray(plain)
    encrypted[offset_of_first - 42 + 8] |= 1
    return {
        "compressed pickle": (
            save_zip(folder / "deflated.ckpt", good, compression=zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        "compressed storage": (
            save_zip(folder / "bomb.ckpt", good, {"0": bytes(2**24)}, compression=zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        "encrypted": (patched("encrypted", bytes(encrypted)), "encrypted"),
        "no directory": (patched("headless", plain[:directory]), "broken zip"),
        "directory of gigabytes": (patched("huge", directory_of(2**31)), "zip"),
        "directory longer than the file": (patched("longer", directory_of(len(plain))), "zip"),
        "member outside": (patched("outside", bytes(shifted)), "outside|zip|overlap"),
        "members that overlap": (patched("overlapping", bytes(overlapping)), "overlap"),
        "cut off": (patched("cut", plain[: len(plain) // 2]), "zip"),
        "member twice": (
            with_members("twice", [("a/data.pkl", good), ("a/data/0", floats(4)), ("a/data.pkl", good)]),
            "two files",
        ),
        "two folders": (with_members("folders", [("a/data.pkl", good), ("b/data/0", floats(4))]), "folders"),
        "no pickle": (with_members("empty", [("a/data/0", floats(4))]), "data.pkl"),
        "no members": (with_members("bare", []), "neither|zip"),
        "TorchScript": (
            with_members(
                "script", [("a/data.pkl", good), ("a/constants.pkl", good), ("a/data/0", floats(4))]
            ),
            "TorchScript",
        ),
        "no such byte order": (
            with_members(
                "order", [("a/data.pkl", good), ("a/data/0", floats(4)), ("a/byteorder", b"middle")]
            ),
            "byte order",
        ),
    }
