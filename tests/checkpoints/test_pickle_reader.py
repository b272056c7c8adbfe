"""Hostile pickles: nothing that they name runs, and the refusal says which name it was."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hummingbird.checkpoints.pickle_reader import (
    DEFAULT_LIMITS,
    CheckpointError,
    Limits,
    PickledDict,
    StandIn,
    read_pickle,
)
from hummingbird.checkpoints.tensor_file import open_tensor_file
from tests.checkpoints import hostile

REPOSITORY = Path(__file__).parents[2]
LIVE = sorted(hostile.live_attacks("true"))
INERT = sorted(hostile.inert_attacks("true"))
BOMBS = sorted(hostile.bombs())
MAX_CPU_SECONDS = 20.0  # an unbounded reader takes hours

# Reads files with an ear on the interpreter's own events, and prints what it heard: first with our reader,
# then, to show that it hears, the last two with Python's.
LISTENER = """
import contextlib, json, pathlib, pickle, sys
from hummingbird.checkpoints.tensor_file import CheckpointError, open_tensor_file

heard, listening = [], False
QUIET = ("object.__getattr__", "object.__setattr__", "sys._getframe")

def listen(event, arguments):
    reads = event == "open" and arguments[1] in ("r", "rb", None) and not (arguments[2] or 0) & 3
    if listening and event not in QUIET and not reads:
        heard.append(event)

sys.addaudithook(listen)
good, *paths = map(pathlib.Path, sys.argv[1:])
open_tensor_file(good)
outcomes = []
for path in paths:
    listening = True
    try:
        outcomes.append(f"opened {open_tensor_file(path)}")
    except CheckpointError as error:
        outcomes.append(str(error))
    listening = False
ours, heard = heard, []
imported = "some_library" in sys.modules
listening = True
for path in paths[-2:]:
    with contextlib.suppress(Exception):
        pickle.loads(path.read_bytes())
listening = False
print(json.dumps({"ours": ours, "imported": imported, "outcomes": outcomes, "pickle": heard}))
"""


def read(data: bytes, limits: Limits = DEFAULT_LIMITS):
    return read_pickle(io.BytesIO(data), limits=limits)


def run_python(code: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{cwd}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture
def library(tmp_path) -> Path:
    """Folder with an importable package of the name that the attacks use; importing it leaves a file."""
    folder = tmp_path / "library"
    package = folder / "some_library"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(folder / 'imported')!r}, 'w').close()\n")
    (package / "tools.py").write_text("import os\nrun = os.system\n")
    return folder


def test_the_attacks_are_real(tmp_path):
    """Each of the live ones runs its command in Python's own unpickler, or refusing it proves nothing."""
    attacks = hostile.live_attacks("true")
    for index, title in enumerate(LIVE):
        (tmp_path / f"{index}.pkl").write_bytes(
            hostile.live_attacks(f"touch {tmp_path / str(index)}")[title][0]
        )
    code = (
        "import contextlib, pathlib, pickle, sys\n"
        "for path in sys.argv[1:]:\n"
        "    with contextlib.suppress(Exception):\n"
        "        pickle.loads(pathlib.Path(path).read_bytes())\n"
    )
    run_python(code, *(tmp_path / f"{index}.pkl" for index in range(len(attacks))), cwd=tmp_path)
    harmless = [title for index, title in enumerate(LIVE) if not (tmp_path / str(index)).exists()]
    assert not harmless, f"these do not run in pickle.loads: {harmless}"


def test_nothing_runs(tmp_path, library):
    """All attacks in all containers, in a process that hears every import, system call and write."""
    canary, control = tmp_path / "canary", tmp_path / "control"
    attacks = {**hostile.live_attacks(f"touch {canary}"), **hostile.inert_attacks(f"touch {canary}")}
    paths = []
    for index, (pickled, _) in enumerate(attacks.values()):
        paths.append(hostile.save_zip(tmp_path / f"{index}.ckpt", pickled))
        paths.append(hostile.save_legacy(tmp_path / f"{index}.pt", pickled))
        paths.append(hostile.save_bare(tmp_path / f"{index}.bin", pickled))
    unknown = hostile.whole(hostile.call(hostile.name("some_library.tools", "run"), hostile.text("true")))
    controls = [
        hostile.save_bare(
            tmp_path / "command.bin", hostile.live_attacks(f"touch {control}")["reduce os.system"][0]
        ),
        hostile.save_bare(tmp_path / "import.bin", unknown),
    ]
    good = hostile.save_zip(
        tmp_path / "good.ckpt", hostile.whole(hostile.dict_of({"weight": hostile.tensor()}))
    )
    finished = run_python(LISTENER, good, *paths, *controls, cwd=library)
    assert finished.returncode == 0, finished.stderr
    report = json.loads(finished.stdout.splitlines()[-1])
    assert report["ours"] == []
    assert not report["imported"]
    assert not canary.exists()
    assert not [outcome for outcome in report["outcomes"] if outcome.startswith("opened")]
    for index, (title, (_, says)) in enumerate(attacks.items()):
        in_zip, in_stream, _ = report["outcomes"][3 * index : 3 * index + 3]
        assert says in in_zip, title
        assert says in in_stream, title
    assert {"os.system", "import", "pickle.find_class"} <= set(report["pickle"])
    assert control.exists()
    assert (library / "imported").exists()


@pytest.mark.parametrize("title", [*LIVE, *INERT])
def test_refusal_names_the_global(title, tmp_path):
    pickled, says = {**hostile.live_attacks("true"), **hostile.inert_attacks("true")}[title]
    path = hostile.save_zip(tmp_path / "evil.ckpt", pickled)
    with pytest.raises(CheckpointError) as raised:
        open_tensor_file(path)
    message = str(raised.value)
    assert says in message
    assert message.startswith(str(path))
    assert "\n" not in message


@pytest.mark.parametrize("title", BOMBS)
def test_bombs_are_refused_quickly(title, tmp_path):
    pickled, says = hostile.bombs()[title]
    path = hostile.save_zip(tmp_path / "bomb.ckpt", pickled)
    start = time.process_time()
    with pytest.raises(CheckpointError, match=says):
        open_tensor_file(path)
    assert time.process_time() - start < MAX_CPU_SECONDS


# Names by which published attacks on pickles run code, read or write files, or reach further names.
GADGETS = """
builtins.compile builtins.open builtins.__import__ builtins.globals builtins.setattr builtins.breakpoint
builtins.vars builtins.map os.popen os.execv os.remove nt.system posix.fork sys.setprofile sys.modules
subprocess.Popen subprocess.check_output commands.getoutput shutil.rmtree socket.create_connection
runpy.run_path runpy._run_code importlib.import_module imp.load_source zipimport.zipimporter
pkgutil.resolve_name pickle.loads _pickle.loads marshal.loads shelve.open ctypes.CDLL _ctypes.dlopen
types.FunctionType types.CodeType types.MethodType operator.methodcaller operator.attrgetter
functools.reduce inspect.getmodule pty.spawn code.interact codeop.compile_command bdb.Bdb pdb.run
cProfile.run profile.run trace.Trace timeit.main doctest.debug_script webbrowser.open pydoc.pipepager
pydoc.locate asyncio.create_subprocess_shell asyncio.unix_events.Popen multiprocessing.util.spawnv_passfds
urllib.request.urlopen http.client.HTTPSConnection ssl.SSLContext ftplib.FTP smtplib.SMTP
xmlrpc.client.ServerProxy tempfile.mkstemp fileinput.input linecache.getlines io.open _io.FileIO gzip.open
logging.config.dictConfig logging.FileHandler distutils.spawn.spawn lib2to3.pgen2.pgen.generate_grammar
ensurepip.bootstrap venv.create idlelib.run.Executive site.main tkinter.Tk pip.main
setuptools.sandbox.run_setup pkg_resources.run_script IPython.embed torch.load torch.jit.load torch.hub.load
torch.ops.load_library torch.package.PackageImporter torch.serialization.load torch.utils.cpp_extension.load
numpy.load numpy.f2py.compile numpy.testing._private.utils.runstring pandas.eval pandas.read_pickle
joblib.load dill.loads cloudpickle.loads yaml.unsafe_load requests.get sympy.eval torch.nn.modules.module.os
some_library.sys some_library.Class.__globals__ some_library.subprocess
"""


@pytest.mark.parametrize("gadget", GADGETS.split())
def test_names_of_known_attacks_are_refused(gadget, tmp_path):
    """Also where unknown libraries are let through: in an attribute of a network, beside its weights."""
    module, _, attribute = gadget.rpartition(".")
    path = hostile.save_zip(
        tmp_path / "evil.ckpt", hostile.whole(hostile.module(hook=hostile.name(module, attribute)))
    )
    with pytest.raises(CheckpointError, match="refused global") as raised:
        open_tensor_file(path)
    assert attribute in str(raised.value)


def test_plain_values_as_pickle_reads_them():
    values = {
        "none": None,
        "flags": [True, False],
        "numbers": (0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, 2**62, 2**100, -(2**70)),
        "floats": [0.0, -1.5, 1e300, float("inf")],
        "texts": ["", "a", "x" * 300, "\u00e9\u4e2d\U0001f600"],
        "bytes": b"\x00\xff" * 200,
        "nested": {"a": {"b": [(), ((),), {}]}},
    }
    for protocol in range(6):
        read_back = plain(read(pickle.dumps(values, protocol=protocol)).root)
        assert read_back == values, protocol


def plain(value):
    """Turn the reader's dicts back into Python's."""
    if isinstance(value, PickledDict):
        return {key: plain(item) for key, item in value.entries.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(plain, value))
    return value


def test_stand_ins_only_remember():
    result = read(
        hostile.whole(
            hostile.with_state(
                hostile.instance(hostile.name("some_library", "Thing"), hostile.number(1)),
                hostile.pair_up(
                    hostile.dict_of({"a": hostile.number(1)}), hostile.dict_of({"slot": hostile.text("b")})
                ),
            )
        )
    )
    assert type(result.root) is StandIn
    assert result.root.origin == "some_library.Thing"
    assert result.root.state == {"a": 1, "slot": "b"}
    assert result.ignored == {"some_library.Thing"}


def test_reader_stops_behind_the_pickle():
    data = io.BytesIO(pickle.dumps(1, protocol=2) + pickle.dumps("two", protocol=2) + b"rest")
    assert read_pickle(data, limits=DEFAULT_LIMITS).root == 1
    assert read_pickle(data, limits=DEFAULT_LIMITS).root == "two"
    assert data.read() == b"rest"


def test_limits_are_the_callers(tmp_path):
    data = pickle.dumps(list(range(100)), protocol=2)
    with pytest.raises(CheckpointError, match="more than 50 operations"):
        read(data, Limits(operations=50))
    assert read(data, Limits(operations=200)).root == list(range(100))
    path = hostile.save_zip(tmp_path / "a.ckpt", hostile.whole(hostile.dict_of({"w": hostile.tensor()})))
    for limits in (Limits(pickle_bytes=10), Limits(directory_bytes=10), Limits(num_members=1)):
        with pytest.raises(CheckpointError, match="expected at most"):
            open_tensor_file(path, limits=limits)


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(seed):
    """Random sequences of valid instructions: each gives a value or one clear error."""
    source = random.Random(seed)
    pieces = [
        *(b"(", b"0", b"1", b"2", b"N", b"}", b"]", b")", b"t", b"l", b"d", b"\x85", b"\x86", b"\x87"),
        *(
            b"a",
            b"e",
            b"s",
            b"u",
            b"b",
            b"R",
            b"\x81",
            b"\x92",
            b"o",
            b"Q",
            b"\x8f",
            b"\x90",
            b"\x91",
            b"\x93",
        ),
        *(
            b"K\x01",
            b"q\x00",
            b"h\x00",
            b"q\x01",
            b"h\x01",
            b"\x94",
            hostile.text("a"),
            hostile.text("weight"),
        ),
        *(hostile.name("collections", "OrderedDict"), hostile.name("lib", "Net"), hostile.tensor()),
        *(hostile.name("torch._utils", "_rebuild_tensor_v2"), hostile.name("builtins", "getattr")),
        *(hostile.name("builtins", "list"), hostile.name("torch._tensor", "_rebuild_from_type_v2")),
    ]
    outcomes = [outcome(b"".join(source.choices(pieces, k=source.randrange(1, 25)))) for _ in range(3000)]
    assert outcomes.count("read") > 20
    assert not [message for message in outcomes if "\n" in message]


def outcome(program: bytes) -> str:
    try:
        read(hostile.whole(program, 4))
    except CheckpointError as error:
        return str(error)
    return "read"
