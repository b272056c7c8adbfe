"""Writes docs/commands.md and docs/settings.md from the code: nothing there is typed by hand.

python docs/generate.py            writes both
python docs/generate.py --check    changes nothing; status 1 where they are not what the code says
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import itertools
import os
import re
import sys
import textwrap
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_WIDTH = 100  # columns of the help
_HEAD = "<!-- Written by `python docs/generate.py`; do not edit. -->"


# ------------------------------------------------------------------------------------------- commands


def commands() -> str:
    """What each command says to --help."""
    import app
    from data_pipeline.__main__ import main as curate
    from hummingbird.cli import build_parser

    parts = ["# Commands", _HEAD, "What `--help` says."]
    with _columns(_WIDTH):
        parser = build_parser()
        parts += [_section("hummingbird", parser.format_help())]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parts += [
                    _section(f"hummingbird {verb}", child.format_help())
                    for verb, child in action.choices.items()
                ]
        for verb in ("", "run", "report"):
            words = ["python", "-m", "data_pipeline", *([verb] if verb == "report" else [])]
            if verb != "run":  # its flags are the settings: docs/settings.md
                parts.append(_section(" ".join(words), _help_of(curate, words[3:])))
        parts.append(_section("python app.py", app.build_parser().format_help()))
    return "\n\n".join(parts) + "\n"


def _section(name: str, text: str) -> str:
    return f"## {name}\n\n```text\n{text.rstrip()}\n```"


def _help_of(entry: Any, words: list[str]) -> str:
    """What an entry point prints for --help."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), contextlib.suppress(SystemExit):
        entry([*words, "--help"])
    return told.getvalue()


@contextlib.contextmanager
def _columns(count: int) -> Iterator[None]:
    """argparse takes the width of its help from the environment."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


# ------------------------------------------------------------------------------------------- settings


def settings() -> str:
    """A table for each class of settings that a command reads."""
    from data_pipeline.pipeline import PipelineConfig
    from train import nano

    roots: list[tuple[str, type]] = [("python -m data_pipeline run CONFIG.yaml", PipelineConfig)]
    for path in sorted((ROOT / "train").glob("*.py")):
        found = re.search(r"read_settings\(([A-Z]\w+),", path.read_text(encoding="utf-8"))
        if found is not None:
            cls = getattr(importlib.import_module(f"train.{path.stem}"), found[1])
            roots.append((f"python train/{path.name} CONFIG.yaml", cls))
    roots += [(f"python train/nano.py {part} CONFIG.yaml", cls) for part, (cls, _) in nano.PARTS.items()]
    parts = [
        "# Settings",
        _HEAD,
        "Each command reads one class from a YAML file; every setting is a flag as well "
        "(`--loop.max-steps 100`), and an unknown name is an error. A section that is a class of its own has "
        "a table of its own, once.",
    ]
    parts += [f"- `{command}` reads [{cls.__name__}](#{cls.__name__.lower()})" for command, cls in roots]
    parts[3:] = ["\n".join(parts[3:])]
    for cls in _reachable([cls for _, cls in roots]):
        parts.append(_table(cls))
    return "\n\n".join(parts) + "\n"


def _reachable(roots: list[type]) -> list[type]:
    """The classes of settings within settings, each once, parents first."""
    seen: dict[type, None] = {}
    waiting = list(roots)
    while waiting:
        cls = waiting.pop(0)
        if cls in seen:
            continue
        seen[cls] = None
        hints = typing.get_type_hints(cls)
        inside = [found for field in dataclasses.fields(cls) for found in _classes(hints[field.name])]
        waiting[:0] = inside
    return list(seen)


def _classes(hint: Any) -> list[type]:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    return [found for part in typing.get_args(hint) for found in _classes(part)]


def _table(cls: type) -> str:
    documented = _field_docs(cls)
    first = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].replace("\n", " ")
    rows = [f"## {cls.__name__}", "", first, "", "| setting | type | default | |", "|---|---|---|---|"]
    sources = _sources(cls)
    for field in dataclasses.fields(cls):
        kind, default = sources.get(field.name, ("", None))
        rows.append(
            f"| `{field.name}` | {_code(kind)} | {'required' if default is None else _code(default)} | "
            f"{_cell(documented.get(field.name, ''))} |"
        )
    return "\n".join(rows)


def _body(cls: type) -> ast.ClassDef:
    node = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    assert isinstance(node, ast.ClassDef)
    return node


def _sources(cls: type) -> dict[str, tuple[str, str | None]]:
    """Field -> its type and default as they are written."""
    found: dict[str, tuple[str, str | None]] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        for node in _body(base).body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                default = None if node.value is None else ast.unparse(node.value)
                found[node.target.id] = (ast.unparse(_plain(node.annotation)), default)
    return found


def _plain(annotation: ast.expr) -> ast.expr:
    """``X`` of ``Annotated[X, ...]``: the bounds are for the checker."""
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Annotated":
        assert isinstance(annotation.slice, ast.Tuple)
        return annotation.slice.elts[0]
    return annotation


def _field_docs(cls: type) -> dict[str, str]:
    """Field -> what the class says of it: text below the field, or a line under ``Attributes:``."""
    found: dict[str, str] = {}
    for base in reversed([base for base in cls.__mro__ if dataclasses.is_dataclass(base)]):
        text = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")[2]
        text = re.split(r"\n(?=\S)", text)[0]
        for entry in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {6,}.*)*)", text, flags=re.MULTILINE):
            for name in entry[0].split(", "):
                found[name] = " ".join(entry[1].split())
        body = _body(base).body
        for node, after in itertools.pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                found[node.target.id] = " ".join(inspect.cleandoc(after.value.value).split())
    return found


def _cell(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|") if text else ""


# ----------------------------------------------------------------------------------------------- main


def pages() -> dict[Path, str]:
    """Path -> what should stand there."""
    return {ROOT / "docs" / "commands.md": commands(), ROOT / "docs" / "settings.md": settings()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only compare")
    args = parser.parse_args(argv)
    stale = []
    for path, text in pages().items():
        if path.is_file() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path)
        if not args.check:
            path.write_text(text, encoding="utf-8")
    for path in stale:
        sys.stderr.write(
            f"{path.relative_to(ROOT)}: {'not what the code says' if args.check else 'written'}\n"
        )
    return 1 if args.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
