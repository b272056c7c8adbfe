"""What holds the house together: import directions, silent imports, commands that exist, requirements."""

from __future__ import annotations

import ast
import logging
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import ErrorCollector

ROOT = Path(__file__).resolve().parent.parent
OURS = ("hummingbird", "data_pipeline", "train", "app", "tests", "benchmarks")
ALLOWED = {
    "hummingbird": {"hummingbird"},
    "data_pipeline": {
        "data_pipeline",
        "hummingbird.config",
        "hummingbird.manifest",
        "hummingbird.page",
        "hummingbird.video_io",
    },
    "train": {"train", "hummingbird"},
    "app": {"hummingbird"},
}


def sources(package: str) -> list[Path]:
    single = ROOT / f"{package}.py"
    return [single] if single.is_file() else sorted((ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, path: Path) -> set[str]:
    """Full names of everything a module imports; ``from a import b`` counts as ``a.b``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = path.relative_to(ROOT).parent.parts
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_run_one_way(package: str) -> None:
    files = sources(package)
    assert files
    for path in files:
        for name in imported(ast.parse(path.read_text()), path):
            if name.split(".")[0] in OURS:
                fits = any(name == allowed or name.startswith(allowed + ".") for allowed in ALLOWED[package])
                assert fits, f"{path.relative_to(ROOT)} imports {name}; allowed: {sorted(ALLOWED[package])}"


def test_the_direction_test_sees_a_wrong_import() -> None:
    tree = ast.parse("def f():\n    from train import loop\n    from .models import unet\n")
    assert imported(tree, ROOT / "hummingbird" / "x.py") == {"train.loop", "hummingbird.models.unet"}


_SILENT = """
import importlib, logging, os, sys
import av, cv2, scenedetect, torch, yaml, tyro, pydantic, numpy, PIL.Image, PIL.ImageDraw
import diffusers, transformers, accelerate, peft
import diffusers.utils, diffusers.pipelines.pipeline_utils, diffusers.models.attention_dispatch
from diffusers import AutoencoderKL, DDIMScheduler, LCMScheduler, DiffusionPipeline
from transformers import CLIPTextModel, PreTrainedTokenizerFast
before = dict(os.environ), logging.getLogger().handlers[:], torch.get_default_dtype(), torch.initial_seed()
threads = torch.get_num_threads()
events = []
def watch(event, args):
    if event == "open" and isinstance(args[1], str) and any(c in args[1] for c in "wax+"):
        events.append((event, str(args[0])))
    elif event in ("os.mkdir", "os.rename", "os.remove", "socket.connect", "subprocess.Popen"):
        events.append((event, str(args[0])))
sys.addaudithook(watch)
for name in sys.argv[1:]:
    importlib.import_module(name)
after = dict(os.environ), logging.getLogger().handlers[:], torch.get_default_dtype(), torch.initial_seed()
for old, new in zip(before, after):
    assert old == new, f"environment, logging or torch's defaults were changed: {old} -> {new}"
assert threads == torch.get_num_threads(), "torch's threads were changed"
assert not events, events
"""


def test_importing_has_no_side_effects(tmp_path: Path) -> None:
    names = [module_name(path) for package in ALLOWED for path in sources(package)]
    names = [name for name in names if not name.endswith("__main__")]
    assert len(names) > 10
    done = subprocess.run(
        [sys.executable, "-B", "-c", _SILENT, *names],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == ""


def shell_lines(path: Path) -> list[str]:
    """Commands in the shell code blocks of a Markdown file, continuation lines joined, comments dropped."""
    blocks = re.findall(r"```(?:bash|sh|shell|console)\n(.*?)```", path.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [
        line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.strip().startswith("#")
    ]


def check_command(line: str) -> str | None:
    """Check one documented command against what exists; returns its kind, None for others' programs."""
    words = shlex.split(line, comments=True)
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        for target in (word for word in words[1:] if "=" not in word):
            assert target in targets, f"{line!r}: no such make target"
        return "make"
    if Path(words[0]).name == "hummingbird":
        from hummingbird.cli import build_parser

        if not {"--help", "--version"} & set(words):
            build_parser().parse_args(words[1:])
        return "hummingbird"
    if Path(words[0]).name.startswith("python"):
        if words[1] == "app.py":
            import app

            app.build_parser().parse_args(words[2:])
        elif words[1] == "-m":
            name = words[2].split(".")
            if name[0] in OURS:
                assert (ROOT.joinpath(*name).with_suffix(".py")).is_file() or ROOT.joinpath(
                    *name, "__main__.py"
                ).is_file()
        elif words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), f"{line!r}: no such script"
        for word in words[2:]:
            if word.startswith("configs/"):
                assert (ROOT / word).exists(), f"{line!r}: no such file {word}"
        return "python"
    if words[0] in ("bash", "sh") and len(words) > 1 and not words[1].startswith("-"):
        assert (ROOT / words[1]).is_file(), f"{line!r}: no such script"
    return None


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_every_documented_command_exists(path: Path) -> None:
    kinds = {check_command(line) for line in shell_lines(path)}
    if path == ROOT / "README.md":
        assert {"make", "hummingbird", "python"} <= kinds


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{path.name} links to {target}"


def test_inline_commands_exist() -> None:
    """`hummingbird verb` in running text names a verb that exists."""
    from hummingbird.cli import build_parser

    usage = build_parser().format_help()
    verbs = re.findall(r"^    ([a-z]+) ", usage, flags=re.MULTILINE)
    for path in documents():
        for verb in re.findall(r"`hummingbird ([a-z]+)", path.read_text()):
            assert verb in verbs, f"{path.name}: no command `hummingbird {verb}`"


def test_requirements_are_ranges_and_pyproject_reads_them() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["dynamic"]["dependencies"] == {"file": ["requirements.txt"]}
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    for line in lines:
        assert re.fullmatch(r"[\w-]+>=[\d.]+(,<[\d.]+)?", line), f"requirements.txt: {line!r} is not a range"
    extras = project["project"]["optional-dependencies"]
    assert set(extras) == {"ray", "onnx", "ocr", "storage", "train", "quantize", "dev"}


@pytest.mark.logs_error("^diffusers.anything: boom$")
def test_an_announced_error_in_the_log_is_seen_and_passes() -> None:
    handler = ErrorCollector()
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    logging.getLogger("diffusers.anything").error("boom")
    logger.removeHandler(handler)
    assert handler.messages == ["diffusers.anything: boom"]
