"""What the documents say is so: links, commands, Python, names in the code, generated pages, figures."""

from __future__ import annotations

import argparse
import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import io
import json
import os
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


def script(path: str) -> ModuleType:
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """A document without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


# ---------------------------------------------------------------------------------------------- links


def anchors(path: Path) -> set[str]:
    """Anchors that a forge makes of a document's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.*)$", prose(path), flags=re.MULTILINE):
        text = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        number = sum(
            other == slug or re.fullmatch(rf"{re.escape(slug)}-\d+", other) is not None for other in found
        )
        found.add(f"{slug}-{number}" if number else slug)
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_links_lead_to_files_and_headings(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in target:
            assert target.startswith("https://"), target
            continue
        name, _, anchor = target.partition("#")
        place = (path.parent / name).resolve() if name else path
        assert place.is_relative_to(ROOT), f"{target} leaves the repository"
        assert place.exists(), f"{path.name} links to {target}"
        if anchor:
            assert anchor in anchors(place), f"{path.name} links to {target}, which has no such heading"


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for path in sorted((ROOT / "docs").glob("*.md")):
        assert path.name == "README.md" or f"]({path.name})" in index, f"docs/README.md lacks {path.name}"


def test_the_picture_at_the_top_is_a_small_gif_that_moves() -> None:
    import PIL.Image

    first = re.search(r"!\[[^\]]+\]\(([^)]+)\)", (ROOT / "README.md").read_text())
    assert first is not None
    path = ROOT / first[1]
    assert path.stat().st_size < 2**20
    with PIL.Image.open(path) as picture:
        assert picture.format == "GIF"
        assert getattr(picture, "n_frames", 1) == 16


def test_the_extras_are_named() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (line,) = re.findall(r"^Extras: .*$", (ROOT / "docs" / "install.md").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", line.split(". ")[0])) == set(extras)


# ------------------------------------------------------------------------------------------ generated


def test_commands_and_settings_are_what_the_code_says(capsys: pytest.CaptureFixture[str]) -> None:
    if sys.version_info[:2] != (3, 11):
        pytest.skip("argparse lays its help out differently from Python to Python; the pages are of 3.11")
    assert script("docs/generate.py").main(["--check"]) == 0, capsys.readouterr().err


def test_every_table_of_figures_is_what_the_results_say(capsys: pytest.CaptureFixture[str]) -> None:
    figures = script("benchmarks/figures.py")
    assert figures.main(["--check"]) == 0, capsys.readouterr().err
    assert "<!-- figures: headline -->" in (ROOT / "README.md").read_text()
    changed = (ROOT / "README.md").read_text().replace("**79.3%**", "**99.3%**", 1)
    assert figures.filled(changed) != changed
    with pytest.raises(ValueError, match="no table 'none'"):
        figures.filled("<!-- figures: none --><!-- /figures -->")


def test_every_figure_has_its_command_hardware_and_date() -> None:
    lines = script("benchmarks/figures.py").headline().splitlines()[2:]
    assert len(lines) >= 9
    for line in lines:
        *_, command, hardware, date = [cell.strip() for cell in line.strip("|").split("|")]
        assert command.startswith("`")
        assert hardware
        assert re.fullmatch(r"\d{4}\u2011\d{2}(\u2011\d{2})?", date)


# ----------------------------------------------------------------------------------- names in the code


def symbols(path: Path) -> set[str]:
    """Functions, classes and methods of a file, methods as ``Class.method``."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {
                f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)
            }
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_file_and_function_that_a_document_names_exists(path: Path) -> None:
    text = path.read_text()
    for file, name in re.findall(r"`([\w/]+\.py)::([\w.]+)`", text):
        places = [ROOT / file] if (ROOT / file).is_file() else sorted((ROOT / "tests").rglob(file))
        assert places, f"{path.name}: no file {file}"
        assert any(name in symbols(place) for place in places), f"{path.name}: no {name} in {file}"
    for file in re.findall(
        r"`((?:hummingbird|data_pipeline|train|tests|benchmarks|configs)/[\w/.-]+)`", text
    ):
        if not (path.name == "conformance.md" and file.startswith("tests/")):  # diffusers' own tests
            assert (ROOT / file).exists(), f"{path.name}: no {file}"


def test_the_tour_names_each_method_of_the_class_that_it_is_about() -> None:
    text = (ROOT / "docs" / "tour.md").read_text()
    known = symbols(ROOT / "hummingbird/pipelines/pipeline_hummingbird.py") | symbols(
        ROOT / "hummingbird/models/unet.py"
    )
    named = set(re.findall(r"`((?:HummingbirdPipeline|UNetSpatioTemporalModel)\.\w+)`", text))
    assert len(named) >= 6
    assert named <= known
    assert len(re.findall(r"\.py::", text)) > 60


# --------------------------------------------------------------------------------------------- Python

RUN = {"README.md", "docs/models.md"}
"""Documents whose Python is run as it stands; in the others names and arguments of calls are checked."""


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_python_in_documents_fits_the_code(path: Path) -> None:
    for block in blocks(path, "python"):
        _check_calls(ast.parse(block), path.name)


def _check_calls(tree: ast.Module, where: str) -> None:
    """Imports what a block imports and binds the arguments of each call whose callee is known."""
    known: dict[str, Any] = {}
    made: dict[str, Any] = {}
    num_checked = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                known[(alias.asname or alias.name).split(".")[0]] = importlib.import_module(
                    alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module or "")
            for alias in node.names:
                assert hasattr(module, alias.name), f"{where}: {node.module} has no {alias.name}"
                known[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            made[node.targets[0].id] = _class_of(node.value, known)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            callee = _callee(node.func, known, made)
            if callee is not None and not any(isinstance(word, ast.Starred) for word in node.args):
                positional = [None] * len(node.args)
                named = {word.arg: None for word in node.keywords if word.arg}
                try:
                    inspect.signature(callee).bind(*positional, **named)
                except TypeError as error:
                    pytest.fail(f"{where}: {ast.unparse(node)}: {error}")
                num_checked += 1
    assert num_checked, f"{where}: nothing to check in a block"


def _class_of(value: ast.expr, known: dict[str, Any]) -> Any:
    """The class whose ``from_...`` made a value, through ``.to(...)``."""
    while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "to":
        value = value.func.value
    if (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Attribute)
        and value.func.attr.startswith("from_")
    ):
        return _resolve(value.func.value, known)
    return None


def _resolve(node: ast.expr, known: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        owner = _resolve(node.value, known)
        if owner is not None:
            assert hasattr(owner, node.attr), f"{owner} has no {node.attr}"
            return getattr(owner, node.attr)
    return None


def _callee(node: ast.expr, known: dict[str, Any], made: dict[str, Any]) -> Callable[..., Any] | None:
    if isinstance(node, ast.Name) and made.get(node.id) is not None:
        return functools.partial(made[node.id].__call__, None)
    found = _resolve(node, known)
    if not callable(found):
        return None
    with contextlib.suppress(ValueError, TypeError):
        inspect.signature(found)
        return found
    return None  # of C code


def test_a_wrong_argument_in_a_block_would_be_seen() -> None:
    wrong = "from hummingbird.video_io import write_video\nwrite_video(1, 'x.mp4', rate=8)\n"
    with pytest.raises(pytest.fail.Exception, match="rate"):
        _check_calls(ast.parse(wrong), "x")
    wrong = (
        "from hummingbird import HummingbirdPipeline as H\npipe = H.from_pretrained('')\npipe('', frames=3)\n"
    )
    with pytest.raises(pytest.fail.Exception, match="frames"):
        _check_calls(ast.parse(wrong), "x")


@pytest.mark.parametrize("name", sorted(RUN))
def test_python_in_documents_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hummingbird import HummingbirdPipeline

    monkeypatch.chdir(tmp_path)
    own = HummingbirdPipeline.default_call.fget
    few = property(lambda pipe: {**own(pipe), "num_inference_steps": 1})
    monkeypatch.setattr(HummingbirdPipeline, "default_call", few)
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), {})
    if name == "README.md":
        assert (tmp_path / "circle.mp4").stat().st_size > 1000


# ------------------------------------------------------------------------------------------- commands


def commands(path: Path) -> list[str]:
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


FOREIGN = {"pip", "docker", "git", "curl", "openssl", "chmod"}
"""Programs of others: named, not checked."""


def check(line: str) -> str:
    """Parses a documented command with the parser that would read it; returns what did."""
    words = shlex.split(re.sub(r"^([A-Z_]+=(\$\([^)]*\)|\S*)\s+)+", "", line), comments=True)
    program, arguments = Path(words[0]).name, words[1:]
    if program in FOREIGN:
        return "foreign"
    if program == "make":
        targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert {word for word in arguments if "=" not in word} <= set(targets), line
        return "make"
    if program == "bash":
        assert (ROOT / arguments[0]).is_file(), line
        return "bash"
    if program == "hummingbird":
        from hummingbird.cli import build_parser

        if arguments not in (["--help"], ["--version"]):
            build_parser().parse_args(arguments)
        return "hummingbird"
    if program == "accelerate":
        return _check_accelerate(arguments, line)
    assert program.startswith("python"), f"{line!r}: of no known kind; say in test_docs.py how it is checked"
    return _check_python(arguments, line)


def _check_accelerate(arguments: list[str], line: str) -> str:
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch", line
    launch = launch_command_parser().parse_args(arguments[1:])
    if launch.config_file:
        assert (ROOT / launch.config_file).is_file(), line
    return _check_python([launch.training_script, *launch.training_script_args], line)


def _check_python(words: list[str], line: str) -> str:
    if words[0] == "-m" and words[1] in ("venv", "pytest"):
        assert words[1] == "venv" or _check_pytest(words[2:]), line
        return words[1]
    if words[:2] == ["-m", "data_pipeline"]:
        from data_pipeline.__main__ import build_parser
        from data_pipeline.pipeline import PipelineConfig
        from hummingbird.config import load_config

        options, overrides = build_parser().parse_known_args(words[2:])
        if options.verb == "run":
            load_config(PipelineConfig, ROOT / options.config, overrides)
        else:
            assert not overrides, line
        return "data_pipeline"
    file, rest = words[0], words[1:]
    assert (ROOT / file).is_file(), f"{line!r}: no such script"
    if file == "app.py":
        import app

        app.build_parser().parse_args(rest)
    elif file.startswith("train/") and "read_settings(" in (ROOT / file).read_text():
        _check_settings(file, rest)
    else:
        # Scripts with a parser inside of main: every flag must be one that the file declares.
        declared = set(re.findall(r'"(--[a-z][\w-]*)"', (ROOT / file).read_text()))
        # (Those with a dot are settings that it hands on.)
        given = {word.split("=")[0] for word in rest if word.startswith("--") and "." not in word}
        assert given <= declared | {"--help"}, line
    return file.split("/")[0]


def _check_settings(file: str, rest: list[str]) -> None:
    from hummingbird.config import load_config
    from train import nano

    if file == "train/nano.py":
        cls, _ = nano.PARTS[rest[0]]
        rest = rest[1:]
    else:
        found = re.search(r"read_settings\((\w+),", (ROOT / file).read_text())
        assert found is not None, f"{file}: reads no settings; say in test_docs.py how its words are checked"
        cls = getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), found[1])
    load_config(cls, ROOT / rest[0], rest[1:])


def _check_pytest(words: list[str]) -> bool:
    parser = argparse.ArgumentParser()
    parser.add_argument("-m")
    parser.add_argument("paths", nargs="*")
    options = parser.parse_args(words)
    return all((ROOT / path).exists() for path in options.paths)


@pytest.mark.parametrize("path", DOCUMENTS, ids=NAMES)
def test_every_documented_command_is_understood(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for line in commands(path):
        try:
            check(line)
        except SystemExit:
            pytest.fail(f"{path.name}: {line}\n{capsys.readouterr().err}")


@pytest.mark.parametrize(
    "line",
    [
        "hummingbird generate x --frame 3",
        "python -m data_pipeline run configs/data/default.yaml --motion.max-jitterr 8",
        "python train/stage1.py configs/debug/stage1.yaml --loop.max-stepz 3",
        "accelerate launch --config_file none.yaml train/stage1.py configs/debug/stage1.yaml",
        "python benchmarks/nano_speed.py --no-such-flag",
        "make nothing",
        "ffmpeg -i x.mp4",
        "python -m pytest tests/none.py",
    ],
)
def test_a_wrong_command_would_be_seen(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((AssertionError, SystemExit)):
        check(line)
    capsys.readouterr()


CHEAP: dict[str, Callable[[Path], None]] = {
    ".venv/bin/hummingbird doctor": lambda folder: None,
    "python -m data_pipeline run configs/data/default.yaml --input videos --output curated --dry-run": (
        lambda folder: (folder / "videos").mkdir()
    ),
    "python benchmarks/data_scale.py --rate 0.29 --core-hour 0.05 --days 1 7 30": lambda folder: None,
    "hummingbird evaluate --suite vbench --prompts VBench_full_info.json --num-prompts 6 --samples 1 "
    "--steps 1 --to outputs/rehearsal": lambda folder: _write_suite(folder),
}
"""Commands that are run as they stand, and what they need first."""


def _write_suite(folder: Path) -> None:
    rows = [{"prompt_en": f"a circle, number {index}", "dimension": ["scene"]} for index in range(2)]
    (folder / "VBench_full_info.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("line", list(CHEAP), ids=lambda line: " ".join(line.split()[:3]))
def test_cheap_commands_run(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert any(line in commands(path) for path in DOCUMENTS), "not in any document any more"
    CHEAP[line](tmp_path)
    os.symlink(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    words = shlex.split(line)
    with _captured() as told:
        if Path(words[0]).name == "hummingbird":
            from hummingbird.cli import main

            assert main(words[1:]) == 0
        elif words[1] == "-m":
            from data_pipeline.__main__ import main as curate

            assert curate(words[3:]) == 0
        else:
            monkeypatch.setattr(sys, "argv", words[1:])
            script(words[1]).main()
    assert told.getvalue().strip()


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        yield told
