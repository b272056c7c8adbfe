"""Decisions per card, what they change and when, and proof that nothing needs CUDA: on a simulated HIP.

No AMD hardware was there. torch's own answers (``torch.version.hip``, ``gcnArchName``) come from outside; the
code that decides, and the model that then runs, are the real ones.
"""

from __future__ import annotations

import ast
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from hummingbird import backends, cli, runtime
from hummingbird.backends import BENCHMARK_VARIABLE, FIND_MODE_VARIABLE, BackendSettings
from hummingbird.compilation import CACHE_VARIABLE, cache_folder
from hummingbird.video_io import read_video
from hummingbird.warmup import warm_up

ROOT = Path(__file__).resolve().parent.parent
PROMPT = "a red circle moving right on a black background"


def card(name: str) -> Any:
    """What ``torch.cuda.get_device_properties`` says of an AMD (gfx...) or NVIDIA (sm_90) card."""
    if name.startswith("sm_"):
        return SimpleNamespace(name=name, major=int(name[3:-1]), minor=int(name[-1]))
    return SimpleNamespace(name=name, major=9, minor=4, gcnArchName=f"{name}:sramecc+:xnack-")


@pytest.fixture
def torch_flags() -> Iterator[None]:
    """Put back what ``apply`` changes in this process."""
    before = torch.backends.cudnn.benchmark, os.environ.get(FIND_MODE_VARIABLE)
    yield
    torch.backends.cudnn.benchmark = before[0]
    os.environ.pop(FIND_MODE_VARIABLE, None)
    if before[1] is not None:
        os.environ[FIND_MODE_VARIABLE] = before[1]


# --- decisions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "family", "vae_dtype", "opted_in", "fp8"),
    [
        ("gfx908", "instinct", "bfloat16", True, None),
        ("gfx90a", "instinct", "bfloat16", True, None),
        ("gfx942", "instinct", "bfloat16", True, "float8_e4m3fnuz"),
        ("gfx950", "instinct", "bfloat16", True, "float8_e4m3fn"),
        ("gfx1100", "rdna", "bfloat16", False, None),
        ("gfx1151", "rdna", "bfloat16", False, None),
        ("gfx1201", "rdna", "bfloat16", False, "float8_e4m3fn"),
        ("gfx1030", "rdna", "float32", False, None),
        ("gfx906", "other", "float32", False, None),
        ("gfx1999", "other", "float32", False, None),
    ],
)
def test_decisions_of_amd_cards(
    architecture: str, family: str, vae_dtype: str, opted_in: bool, fp8: str | None
) -> None:
    usual = backends.decide(card(architecture), "7.2.0", {})
    assert (usual.backend, usual.architecture, usual.family) == ("rocm", architecture, family)
    assert (usual.vae_dtype, usual.fp8_dtype) == (vae_dtype, fp8)
    assert usual.cudnn_benchmark is False
    assert usual.miopen_find_mode == "FAST"
    wanted = backends.decide(card(architecture), "7.2.0", {BENCHMARK_VARIABLE: "1"})
    assert wanted.cudnn_benchmark is opted_in
    assert wanted.miopen_find_mode == (None if opted_in else "FAST")
    if fp8 is not None:
        assert getattr(torch, fp8).itemsize == 1


def test_decisions_of_nvidia_cards_leave_torch_alone() -> None:
    hopper = backends.decide(card("sm_90"), None, {})
    assert hopper == BackendSettings(
        backend="cuda", architecture="sm_90", vae_dtype="float16", fp8_dtype="float8_e4m3fn"
    )
    assert backends.decide(card("sm_80"), None, {}).fp8_dtype is None
    assert backends.decide(card("sm_90"), None, {BENCHMARK_VARIABLE: "1"}).cudnn_benchmark is True


def test_without_a_gpu_nothing_is_decided() -> None:
    assert backends.detect(torch.device("cpu"), {BENCHMARK_VARIABLE: "1"}) == BackendSettings(
        backend="cpu", keep_freed_memory=True
    )
    assert backends.kernel_caches("cpu", {}) == backends.kernel_caches("cuda", {}) == {}


# --- effect -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "after"), [({}, "FAST"), ({FIND_MODE_VARIABLE: "3"}, "3")])
def test_find_mode_is_set_only_where_it_is_unset(
    torch_flags: None, before: dict[str, str], after: str
) -> None:
    torch.backends.cudnn.benchmark = True
    environ = dict(before)
    backends.apply(backends.decide(card("gfx1100"), "7.2.0", environ), environ)
    assert environ == {FIND_MODE_VARIABLE: after}
    assert torch.backends.cudnn.benchmark is False


def test_a_search_that_is_asked_for_leaves_the_find_mode_to_miopen(torch_flags: None) -> None:
    environ = {BENCHMARK_VARIABLE: "1"}
    backends.apply(backends.decide(card("gfx942"), "7.2.0", environ), environ)
    assert environ == {BENCHMARK_VARIABLE: "1"}
    assert torch.backends.cudnn.benchmark is True
    backends.apply(backends.decide(card("sm_90"), None, {}), environ)
    assert torch.backends.cudnn.benchmark is True  # not ours to change on CUDA
    assert FIND_MODE_VARIABLE not in environ


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator can be told")
@pytest.mark.parametrize("variable", [None, "MALLOC_TRIM_THRESHOLD_"])
def test_memory_given_back_is_kept_unless_the_user_tuned_the_allocator(variable: str | None) -> None:
    """Page faults of a 32 MB tensor that is made again and again: none where its memory was kept."""
    code = (
        "import resource, torch; from hummingbird import backends\n"
        "backends.apply(backends.detect(torch.device('cpu')))\n"
        "for _ in range(40):\n"  # the first ones leave gaps that are too small
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    torch.ones(2**23)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    environ = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    if variable:
        environ[variable] = "65536"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, check=True)
    faults = int(done.stdout)
    assert (faults < 100) if variable is None else (faults > 5_000)


def test_the_loaded_model_follows_the_decisions(
    tiny_model: Path, tmp_path: Path, torch_flags: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a Radeon: the autoencoder in bfloat16, the rest not; and the video of it is nearly the same."""
    monkeypatch.delenv(FIND_MODE_VARIABLE, raising=False)

    def video(*words: str) -> Any:
        out = tmp_path / "a.mp4"
        common = ["--model", str(tiny_model), "--device", "cpu", "--steps", "2", "--out", str(out)]
        assert cli.main(["generate", PROMPT, *common, *words]) == 0
        return read_video(out).frames.astype(float)

    plain = video()
    assert FIND_MODE_VARIABLE not in os.environ
    radeon = backends.decide(card("gfx1100"), "7.2.0", {})
    monkeypatch.setattr(backends, "detect", lambda device: radeon)
    pipe = runtime.load_pipeline(str(tiny_model), "cpu")
    assert pipe.vae.dtype == torch.bfloat16
    assert pipe.unet.dtype == pipe.text_encoder.dtype == torch.float32
    assert os.environ[FIND_MODE_VARIABLE] == "FAST"
    difference = abs(video() - plain)
    assert 0 < difference.mean() < 3  # of 255; bfloat16 keeps 8 bits
    # A type that the user names is that of every part.
    assert runtime.load_pipeline(str(tiny_model), "cpu", "float32").vae.dtype == torch.float32
    assert abs(video("--dtype", "float32") - plain).max() == 0


def test_no_picture_grows_by_a_transposed_convolution(tiny_model: Path) -> None:
    pipe = runtime.load_pipeline(str(tiny_model), "cpu")
    kinds = {type(part).__name__ for model in (pipe.unet, pipe.vae) for part in model.modules()}
    assert {"Upsample", "Upsample2D"} <= kinds
    for package in ("hummingbird", "data_pipeline", "train"):
        for path in (ROOT / package).rglob("*.py"):
            named = {
                node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)
            }
            assert not {name for name in named if "ConvTranspose" in name or "conv_transpose" in name}, path
    assert not [kind for kind in kinds if "Transpose" in kind]


# --- warm-up ------------------------------------------------------------------------------------------------


def test_warm_up_runs_the_size_that_was_asked_for_and_measures_the_caches(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MIOPEN_CUSTOM_CACHE_DIR", str(tmp_path / "kernels"))
    monkeypatch.setenv("MIOPEN_USER_DB_PATH", str(tmp_path / "searches"))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "old").write_bytes(b"x" * 10)
    radeon = backends.decide(card("gfx1100"), "7.2.0", {FIND_MODE_VARIABLE: "FAST"})
    monkeypatch.setattr(backends, "detect", lambda device: radeon)
    monkeypatch.setattr(backends, "apply", lambda settings: None)
    from hummingbird.pipelines import HummingbirdPipeline

    sizes = []
    decode = HummingbirdPipeline.decode_latents

    def watched(pipe: Any, latents: torch.Tensor, *args: Any) -> torch.Tensor:
        sizes.append(tuple(latents.shape[2:]))
        with (tmp_path / "kernels" / "new").open("ab") as file:
            file.write(b"x" * 5)
        return decode(pipe, latents, *args)

    monkeypatch.setattr(HummingbirdPipeline, "decode_latents", watched)
    status = cli.main(["warmup", "--model", str(tiny_model), "--device", "cpu", "--frames", "5",
                       "--height", "24", "--width", "16", "--json"])  # fmt: skip
    printed = capsys.readouterr()
    assert status == 0
    answer = json.loads(printed.out.splitlines()[-1])
    assert (answer["num_frames"], answer["height"], answer["width"]) == (5, 24, 16)
    assert sizes == [sizes[0]] * 2
    assert sizes[0][0] == 5
    assert len(answer["passes"]) == 2
    assert all(value > 0 for one in answer["passes"] for value in one.values())
    assert answer["cache_bytes"] == {str(tmp_path / "kernels"): 20, str(tmp_path / "searches"): 0}
    assert answer["added_bytes"] == 10
    assert "first pass" in printed.err


def test_warm_up_on_a_cpu_says_that_there_is_nothing_to_keep(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["warmup", "--model", str(tiny_model), "--device", "cpu"]) == 0
    assert "keeps no kernels on disk" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_networks_give_the_same_video_and_nothing_is_compiled_again(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    plain, fast = tmp_path / "plain.mp4", tmp_path / "fast.mp4"
    model = ["--model", str(tiny_model), "--device", "cpu"]
    call = ["generate", "a boat", "a lamp", *model, "--seed", "3"]
    assert cli.main([*call, "--out", str(plain)]) == 0
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    assert cli.main(["warmup", *model, "--compile", "blocks", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["cache_bytes"] == {str(tmp_path / "cache"): answer["added_bytes"]}
    assert answer["added_bytes"] > 0
    graphs = counters["stats"]["unique_graphs"]
    assert graphs > 0
    torch._dynamo.reset()
    counters.clear()
    assert cli.main([*call, "--compile", "blocks", "--out", str(fast)]) == 0
    # Two prompts and seeds need what one pass needed, and all of it is found in the cache.
    assert counters["stats"]["unique_graphs"] == graphs
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    for number in ("01", "02"):
        videos = [read_video(path.with_stem(f"{path.stem}-{number}")).frames for path in (plain, fast)]
        assert np.abs(videos[0].astype(int) - videos[1]).max() <= 4  # H.264 of nearly equal pixels


@pytest.mark.parametrize(
    ("mode", "message"), [("graphs", "only a GPU has"), ("all", "expected one of none, blocks, graphs")]
)
def test_compile_modes_that_cannot_be(tiny_model: Path, mode: str, message: str) -> None:
    pipe = runtime.load_pipeline(str(tiny_model), "cpu")
    with pytest.raises(ValueError, match=message):
        warm_up(pipe, compile_mode=mode)


def test_compiled_code_has_a_place_of_its_own() -> None:
    assert cache_folder({CACHE_VARIABLE: "/x"}) == Path("/x")
    assert cache_folder({"XDG_CACHE_HOME": "/c"}) == Path("/c/hummingbird/compiled")
    assert cache_folder({"HOME": "/h"}) == Path("/h/.cache/hummingbird/compiled")


# --- advice -------------------------------------------------------------------------------------------------


def advice(architecture: str, environ: dict[str, str] | None = None, **words: Any) -> str:
    values = environ or {}
    settings = backends.decide(card(architecture), "7.2.0", values)
    words = {"built_for": "rocm", "compiled_architectures": [architecture], **words}
    return "\n".join(backends.advise(settings, values, **words))


def test_advice_for_a_card() -> None:
    radeon, instinct = advice("gfx1100"), advice("gfx942")
    assert "hummingbird warmup" in radeon
    assert "hummingbird warmup" in instinct
    assert "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL=1" in radeon
    assert "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL" not in instinct
    assert f"{BENCHMARK_VARIABLE}=1" in instinct
    assert BENCHMARK_VARIABLE not in radeon
    assert f"{BENCHMARK_VARIABLE}=1 is not used on gfx1100" in advice("gfx1100", {BENCHMARK_VARIABLE: "1"})
    assert "MIOPEN_FIND_MODE=1 is kept" in advice("gfx1100", {FIND_MODE_VARIABLE: "1"})
    assert "is kept" not in advice("gfx1100", {FIND_MODE_VARIABLE: "FAST"})
    assert "no kernels for gfx1010" in advice("gfx1010", compiled_architectures=["gfx942", "gfx1100"])
    assert "no kernels" not in radeon


def test_advice_without_a_gpu(tmp_path: Path) -> None:
    def say(built_for: Any) -> str:
        return "\n".join(
            backends.advise(BackendSettings(backend="cpu"), {}, built_for=built_for, dev=tmp_path)
        )

    assert say("cpu") == say("cuda") == ""
    assert "--device /dev/kfd --device /dev/dri" in say("rocm")
    (tmp_path / "kfd").touch()
    assert "not a ROCm build" in say("cuda")
    assert say("rocm") == ""
    (tmp_path / "kfd").unlink()
    (tmp_path / "nvidiactl").touch()
    assert "NVIDIA GPU" in say("cuda")


def test_a_start_without_gpu_says_so_in_one_line_and_runs(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    out = tmp_path / "a.mp4"
    assert cli.main(["generate", PROMPT, "--model", str(tiny_model), "--steps", "1", "--out", str(out)]) == 0
    lines = [record.getMessage() for record in caplog.records if record.name == "hummingbird.runtime"]
    assert lines == ["note: no GPU that torch can use: running on the CPU; `hummingbird doctor` says why"]
    assert out.is_file()
    caplog.clear()
    runtime.load_pipeline(str(tiny_model), "cpu")
    monkeypatch.setattr(torch.version, "cuda", None)
    runtime.load_pipeline(str(tiny_model), "auto")
    assert not [record for record in caplog.records if record.name == "hummingbird.runtime"]


# --- audits -------------------------------------------------------------------------------------------------

CUDA_ONLY = (
    "apex",
    "bitsandbytes",
    "cuda",
    "cupy",
    "deepspeed",
    "flash_attn",
    "nvidia",
    "onnxruntime",
    "pycuda",
    "pynvml",
    "sageattention",
    "tensorrt",
    "torch_tensorrt",
    "transformer_engine",
    "triton",
    "xformers",
)
"""Packages for NVIDIA's cards alone, or (triton, onnxruntime) with builds for them that a user may have."""

HIP_HAS = {
    # torch/cuda in a ROCm build; torch's "HIP (ROCm) semantics" names the memory functions one by one.
    # Graphs are HIP's there, under CUDA's name.
    "CUDAGraph", "Event", "OutOfMemoryError", "Stream", "StreamContext", "amp", "current_device",
    "current_stream", "device", "device_count",
    "empty_cache", "get_arch_list", "get_device_name", "get_device_properties", "get_rng_state", "graph",
    "init", "is_available", "is_bf16_supported", "is_initialized", "manual_seed", "manual_seed_all",
    "max_memory_allocated", "max_memory_reserved", "mem_get_info", "memory_allocated", "memory_reserved",
    "memory_stats", "reset_peak_memory_stats", "set_device", "set_rng_state", "stream", "synchronize",
}  # fmt: skip
"""What may be asked of ``torch.cuda``. Not in it, on purpose: ``get_device_capability`` (numbers of another
meaning on AMD), ``nvtx``, ``cudart``, ``jiterator``, ``gds``, green contexts."""

_AUDIT = """
import json, sys, types
blocked, out, report = sys.argv[1].split(","), sys.argv[2], sys.argv[3]
import importlib.machinery, os
class Without(importlib.machinery.PathFinder):  # to imports and to those who only look: not installed
    @classmethod
    def find_spec(cls, name, *rest):
        return None if name.split(".")[0] in blocked else super().find_spec(name, *rest)
sys.meta_path[sys.meta_path.index(importlib.machinery.PathFinder)] = Without
import torch
torch.version.hip, torch.version.cuda = "7.2.0", None
asked = {}
class Watched(types.ModuleType):
    def __getattribute__(self, name):
        if not name.startswith("__"):
            asked.setdefault(sys._getframe(1).f_code.co_filename, set()).add(name)
        return super().__getattribute__(name)
torch.cuda.__class__ = Watched
from hummingbird import backends, cli
radeon = types.SimpleNamespace(name="Radeon", gcnArchName="gfx1100", major=11, minor=0)
import hummingbird.doctor, hummingbird.pipelines, hummingbird.runtime
at_import = os.environ.get("MIOPEN_FIND_MODE")
backends.detect = lambda device: backends.decide(radeon, torch.version.hip, os.environ)
status = cli.main(["generate", "PROMPT", "--steps", "2", "--device", "cpu", "--out", out])
loaded = sorted({name.split(".")[0] for name in sys.modules})
json.dump({"status": status, "loaded": loaded, "at_import": at_import,
           "after": os.environ["MIOPEN_FIND_MODE"],
           "asked": {file: sorted(names) for file, names in asked.items()}}, open(report, "w"))
"""


@pytest.mark.timeout(900)
def test_a_video_on_a_simulated_radeon_needs_nothing_of_cuda(tmp_path: Path) -> None:
    """The embedded model in a process whose torch says HIP, whose card says gfx1100, and where every package
    for NVIDIA alone is not installed. Only the device is not AMD's: the sums run on this CPU."""
    video, report = tmp_path / "a.mp4", tmp_path / "report.json"
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith(("MIOPEN", "HUMMING"))
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            _AUDIT.replace("PROMPT", PROMPT),
            ",".join(CUDA_ONLY),
            str(video),
            str(report),
        ],
        cwd=tmp_path,
        env={**environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(report.read_text())
    assert found["status"] == 0, done.stderr[-3000:]
    assert read_video(video).frames.shape == (16, 64, 64, 3)
    assert not set(CUDA_ONLY) & set(found["loaded"])
    assert (found["at_import"], found["after"]) == (None, "FAST")
    torch_itself = str(Path(torch.__file__).parent)
    asked = {
        name for file, names in found["asked"].items() if not file.startswith(torch_itself) for name in names
    }
    assert asked <= HIP_HAS, asked - HIP_HAS
    ours = {name for file, names in found["asked"].items() if file.startswith(str(ROOT)) for name in names}
    assert ours == set(), "--device cpu asks nothing of torch.cuda"
    assert "is_available" in {name for names in found["asked"].values() for name in names}


def cuda_calls(source: str) -> set[str]:
    """Names asked of ``torch.cuda``, whatever ``torch`` or ``torch.cuda`` are called in this file."""
    tree = ast.parse(source)
    torches, cudas, names = {"torch"}, set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "torch" and alias.asname:
                    torches.add(alias.asname)
                if alias.name == "torch.cuda" and alias.asname:
                    cudas.add(alias.asname)
        elif isinstance(node, ast.ImportFrom) and node.module == "torch":
            cudas |= {alias.asname or alias.name for alias in node.names if alias.name == "cuda"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch.cuda"):
            names |= {alias.name for alias in node.names}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        value = node.value
        through_torch = (
            isinstance(value, ast.Attribute)
            and value.attr == "cuda"
            and isinstance(value.value, ast.Name)
            and value.value.id in torches
        )
        if through_torch or (isinstance(value, ast.Name) and value.id in cudas):
            names.add(node.attr)
    return names


def test_the_scan_sees_every_way_to_ask() -> None:
    assert cuda_calls("import torch\ntorch.cuda.a()\nx = torch.cuda.b.c") == {"a", "b"}
    assert cuda_calls("import torch as t\nt.cuda.a()") == {"a"}
    assert cuda_calls("import torch.cuda as c\nc.a()") == {"a"}
    assert cuda_calls("from torch import cuda\ncuda.a()") == {"a"}
    assert cuda_calls("from torch.cuda.nvtx import a") == {"a"}
    assert cuda_calls("import torch\ntorch.device('cuda')\nmodel.cuda.a") == set()


def test_our_code_asks_torch_cuda_only_for_what_hip_has() -> None:
    used: dict[str, set[str]] = {}
    files = [ROOT / "app.py"]
    for package in ("hummingbird", "data_pipeline", "train"):
        files += sorted((ROOT / package).rglob("*.py"))
    for path in files:
        source = path.read_text(encoding="utf-8")
        for name in cuda_calls(source):
            used.setdefault(name, set()).add(str(path.relative_to(ROOT)))
        imports = {
            (alias.name if isinstance(node, ast.Import) else node.module or "").split(".")[0]
            for node in ast.walk(ast.parse(source))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for alias in node.names
        }
        # onnxruntime is an extra, imported by who asks for it, and has builds for AMD.
        assert not imports & (set(CUDA_ONLY) - {"onnxruntime"}), path
    assert "is_available" in used
    assert set(used) <= HIP_HAS, {name: used[name] for name in set(used) - HIP_HAS}


def test_doctor_shows_decisions_and_advice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    radeon = SimpleNamespace(**vars(card("gfx1100")), total_memory=24 * 2**30)
    monkeypatch.setattr(torch.version, "hip", "7.2.0")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["gfx942", "gfx1100"])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: radeon)
    for name in (BENCHMARK_VARIABLE, FIND_MODE_VARIABLE, "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"):
        monkeypatch.delenv(name, raising=False)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "backend rocm 7.2.0" in text
    assert "gfx1100" in text
    assert "autoencoder bfloat16, cudnn.benchmark off, MIOPEN_FIND_MODE FAST, fp8 none" in text
    assert ".cache/miopen" in text
    assert "advice " in text
    assert "hummingbird warmup" in text
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["backend"] == report["settings"]["backend"] == "rocm"
    assert report["gpus"][0]["settings"] == report["settings"]
    assert len(report["advice"]) == 2
