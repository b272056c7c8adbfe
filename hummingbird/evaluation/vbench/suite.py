"""The official prompts: read from the package's JSON or from the repository's lists, and checked.

The files are somebody else's: sizes are bounded, and a prompt that could not be the name of a file in one
folder is refused.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hummingbird.evaluation.vbench.totals import DIMENSIONS

__all__ = [
    "FULL_INFO",
    "Suite",
    "SuitePrompt",
    "find_installed",
    "read_rewritten",
    "read_suite",
    "select",
    "video_name",
]

FULL_INFO = "VBench_full_info.json"
_LISTS = "prompts_per_dimension"

_LIST_OF = {
    "background_consistency": "scene",
    "motion_smoothness": "subject_consistency",
    "dynamic_degree": "subject_consistency",
    "aesthetic_quality": "overall_consistency",
    "imaging_quality": "overall_consistency",
}
"""Dimension -> list of prompts, where its name is another one (upstream's table of folders)."""

_MAX_BYTES = 16 * 2**20
_MAX_PROMPTS = 20_000
_MAX_NAME_BYTES = 255  # of common file systems


@dataclass(frozen=True)
class SuitePrompt:
    """A prompt of the suite.

    Attributes:
        text: as it stands in the file; videos are named by it.
        dimensions: which ones judge its videos.
    """

    text: str
    dimensions: tuple[str, ...]


@dataclass(frozen=True)
class Suite:
    """The prompts in the order of their file, each once.

    Attributes:
        source: file or folder.
        sha256: of its content.
        prompts: at least one.
        entries: what the file says of each prompt, for the scorers; None where the source is lists of text.
    """

    source: Path
    sha256: str
    prompts: tuple[SuitePrompt, ...]
    entries: tuple[Mapping[str, Any], ...] | None


def find_installed() -> Path | None:
    """The prompts of a ``vbench`` package beside us; it is not imported. None where there is none."""
    found = importlib.util.find_spec("vbench")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(next(iter(found.submodule_search_locations))) / FULL_INFO
    return path if path.is_file() else None


def read_suite(path: Path | None) -> Suite:
    """Read the suite.

    Args:
        path: ``VBench_full_info.json``, a folder that has it (``vbench/`` of the package, or a checkout), or
            a folder of lists, one prompt a line, named by dimension (``prompts/prompts_per_dimension``). None
            looks for an installed package.

    Raises:
        FileNotFoundError: there is no suite at that place.
        ValueError: the file is not one, or a prompt in it cannot name a video.
    """
    if path is None:
        path = find_installed()
        if path is None:
            raise FileNotFoundError(
                f"prompts: none given and no vbench package beside hummingbird; expected --prompts "
                f"{FULL_INFO} (https://github.com/Vchitect/VBench has it), its folder, or --vbench-python"
            )
    if path.is_file():
        return _read_full_info(path)
    for inside in (FULL_INFO, f"vbench/{FULL_INFO}"):
        if (path / inside).is_file():
            return _read_full_info(path / inside)
    for folder in (path / _LISTS, path / "prompts" / _LISTS, path):
        if any((folder / f"{name}.txt").is_file() for name in DIMENSIONS):
            return _read_lists(folder)
    raise FileNotFoundError(
        f"prompts: got {path}, expected {FULL_INFO}, or a folder with it or with {_LISTS}/"
    )


def _read_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(_MAX_BYTES + 1)
    if len(content) > _MAX_BYTES:
        raise ValueError(f"{path}: got over {_MAX_BYTES} bytes, expected a list of about a thousand prompts")
    return content


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: got bytes that are not UTF-8 at {error.start}, expected text") from error


def _json(path: Path, content: bytes) -> Any:
    try:
        return json.loads(_text(path, content))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(
            f"{path}: got no readable JSON ({error}), expected {FULL_INFO} or the like"
        ) from error


def _read_full_info(path: Path) -> Suite:
    content = _read_bytes(path)
    rows = _json(path, content)
    if not isinstance(rows, list):
        raise ValueError(f"{path}: got {type(rows).__name__}, expected a list of prompts as in {FULL_INFO}")
    if len(rows) > _MAX_PROMPTS:
        raise ValueError(f"{path}: got {len(rows)} rows, expected at most {_MAX_PROMPTS}")
    pairs: list[tuple[str, tuple[str, ...]]] = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or not isinstance(row.get("prompt_en"), str):
            raise ValueError(f"{path}: row {number} has no text under prompt_en")
        dimensions = row.get("dimension")
        if not isinstance(dimensions, list) or not all(isinstance(name, str) for name in dimensions):
            raise ValueError(f"{path}: row {number} has no list under dimension")
        pairs.append((row["prompt_en"], tuple(dimensions)))
    return _suite(path, hashlib.sha256(content).hexdigest(), pairs, tuple(rows))


def _read_lists(folder: Path) -> Suite:
    pairs = []
    digest = hashlib.sha256()
    for name in DIMENSIONS:
        path = folder / f"{_LIST_OF.get(name, name)}.txt"
        if not path.is_file():
            continue
        content = _read_bytes(path)
        digest.update(f"{name}\0".encode() + content)
        lines = [line.strip() for line in _text(path, content).splitlines()]
        pairs += [(line, (name,)) for line in lines if line]
        if len(pairs) > _MAX_PROMPTS:
            raise ValueError(f"{folder}: got over {_MAX_PROMPTS} prompts")
    return _suite(folder, digest.hexdigest(), pairs, None)


def _suite(
    source: Path,
    sha256: str,
    pairs: Iterable[tuple[str, tuple[str, ...]]],
    entries: tuple[Mapping[str, Any], ...] | None,
) -> Suite:
    """Prompts that stand twice become one, with the dimensions of both."""
    merged: dict[str, dict[str, None]] = {}
    for text, dimensions in pairs:
        unknown = [name for name in dimensions if name not in DIMENSIONS]
        if unknown:
            raise ValueError(f"{source}: prompt {text!r} has dimension {unknown[0]!r}, which VBench lacks")
        video_name(text, 0)
        merged.setdefault(text, {}).update(dict.fromkeys(dimensions))
    if not merged:
        raise ValueError(f"{source}: got no prompts")
    prompts = tuple(SuitePrompt(text, tuple(dimensions)) for text, dimensions in merged.items())
    return Suite(source=source, sha256=sha256, prompts=prompts, entries=entries)


def video_name(prompt: str, sample: int) -> str:
    """The protocol's name of a video: ``{prompt}-{sample}.mp4``.

    Raises:
        ValueError: the prompt cannot be part of a file's name.
    """
    name = f"{prompt}-{sample}.mp4"
    bad = [letter for letter in prompt if letter in "/\\\0" or unicodedata.category(letter) in ("Cc", "Cs")]
    if bad:
        raise ValueError(f"prompt {prompt[:80]!r}: got {bad[0]!r}, which cannot be in the name of a file")
    if not prompt.strip() or prompt != prompt.strip() or prompt.startswith("."):
        raise ValueError(f"prompt {prompt[:80]!r}: expected text without blanks at its ends or a leading dot")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise ValueError(f"prompt {prompt[:80]!r}: got a name of over {_MAX_NAME_BYTES} bytes")
    return name


def select(
    suite: Suite, dimensions: Sequence[str] | None, num_prompts: int | None
) -> tuple[SuitePrompt, ...]:
    """The prompts that the given dimensions judge, all or some spread evenly over them.

    Args:
        suite: as read.
        dimensions: None for all.
        num_prompts: None for all of them; fewer is a rehearsal and gives no comparable figure.

    Raises:
        ValueError: no such dimension, or no prompt for them.
    """
    wanted = set(DIMENSIONS if dimensions is None else dimensions)
    unknown = sorted(wanted - DIMENSIONS.keys())
    if unknown:
        raise ValueError(f"dimensions: got {unknown[0]!r}, expected some of {', '.join(DIMENSIONS)}")
    chosen = [prompt for prompt in suite.prompts if wanted & set(prompt.dimensions)]
    if not chosen:
        raise ValueError(f"dimensions: {suite.source} has no prompt for {', '.join(sorted(wanted))}")
    if num_prompts is not None and num_prompts < len(chosen):
        picked = np.linspace(0, len(chosen) - 1, num_prompts).round().astype(int)
        chosen = [chosen[index] for index in sorted(set(picked.tolist()))]
    return tuple(chosen)


def read_rewritten(path: Path, prompts: Sequence[SuitePrompt]) -> tuple[dict[str, str], str]:
    """Longer wordings to ask the model with; videos keep the names of the originals.

    Args:
        path: JSON object, original prompt -> wording.
        prompts: all of them must be in it.

    Returns:
        Original -> wording, and the hash of the file.

    Raises:
        ValueError: not such a file, or a prompt is missing.
    """
    content = _read_bytes(path)
    table = _json(path, content)
    if not isinstance(table, dict) or not all(
        isinstance(text, str) and text.strip() for text in table.values()
    ):
        raise ValueError(f"{path}: expected a JSON object, original prompt -> wording")
    missing = [prompt.text for prompt in prompts if prompt.text not in table]
    if missing:
        raise ValueError(
            f"{path}: {len(missing)} prompts have no wording, first {missing[0]!r}; expected all"
        )
    return {prompt.text: table[prompt.text] for prompt in prompts}, hashlib.sha256(content).hexdigest()
