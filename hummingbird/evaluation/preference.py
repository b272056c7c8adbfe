"""Which of two models do people prefer? Blind pairs, answers from a page, a sign test.

``make_page`` writes one HTML file with all pairs and, beside it, ``key.json``: which side is whose. The page
itself does not hold that, so nobody who looks at it, or into it, can know. Answers are downloaded from the
page as JSON; ``judge_answers`` joins them with the key.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from hummingbird.evaluation.moving_shapes import wilson_interval
from hummingbird.evaluation.preference_page import render_page, render_result
from hummingbird.evaluation.report import environment, write_json, write_text
from hummingbird.evaluation.samples import list_videos
from hummingbird.evaluation.sign_test import sign_test
from hummingbird.video_io import VideoError, atomic_path, read_video, write_video

__all__ = ["CHOICES", "judge_answers", "make_page", "read_answers"]

_FORMAT = 1
CHOICES = ("left", "right", "tie")
_MAX_PAIRS = 500
_MAX_PAGE_BYTES = 200_000_000
_MAX_FRAMES, _MAX_SIDE = 256, 512
_MAX_ANSWERS_BYTES = 4_000_000

Key = dict[str, Any]


def make_page(
    a: tuple[str, Path],
    b: tuple[str, Path],
    prompts: Sequence[str],
    to: Path,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda text: None,
) -> Path:
    """Writes ``compare.html`` and ``key.json``.

    Both sides are encoded alike: a file's size, format or rate of frames tells nothing.

    Args:
        a, b: name and folder of videos; in order of their names, they belong to the prompts.
        prompts: one for each pair.
        to: folder of the page; its ``pairs`` has the videos, for the page of the result.
        seed: draws the order of the pairs and, for each, which side is whose.
        progress: is told how far it is.

    Returns:
        The page.

    Raises:
        ValueError: fewer videos than prompts, the same name twice, or too much for one page.
        hummingbird.video_io.VideoError: a video that cannot be read: a pair with half of it would be no pair.
    """
    if a[0] == b[0]:
        raise ValueError(f"compare: got {a[0]!r} twice, expected two different models or folders")
    if not 1 <= len(prompts) <= _MAX_PAIRS:
        raise ValueError(f"prompts: got {len(prompts)}, expected 1 to {_MAX_PAIRS}; use --num-prompts")
    listed = []
    for name, folder in (a, b):
        paths = list_videos(folder)
        if len(paths) < len(prompts):
            raise ValueError(
                f"{name}: got {len(paths)} videos for {len(prompts)} prompts, expected one each in the order "
                "of their names; use --num-prompts"
            )
        listed.append(paths[: len(prompts)])
    rng = np.random.default_rng(seed)
    order = [int(index) for index in rng.permutation(len(prompts))]
    a_is_left = [bool(flag) for flag in rng.integers(2, size=len(prompts))]
    pairs, key, size_bytes = [], [], 0
    with tempfile.TemporaryDirectory() as scratch:
        for number, index in enumerate(order):
            sides = [_encoded(paths[index], Path(scratch) / "video.mp4") for paths in listed]
            if not a_is_left[number]:
                sides.reverse()
            size_bytes += sum(len(side) for side in sides)
            if size_bytes > _MAX_PAGE_BYTES:
                raise ValueError(
                    f"compare: {number + 1} pairs are over {_MAX_PAGE_BYTES} bytes; use fewer with "
                    "--num-prompts"
                )
            for name, side in zip(("left", "right"), sides, strict=True):
                _write_bytes(_pair_path(to, number, name), side)
            pairs.append((prompts[index], sides[0], sides[1]))
            key.append({"prompt": index, "left": "a" if a_is_left[number] else "b"})
            progress(f"pairs {number + 1}/{len(order)}")
    page_id = _page_id(a[0], b[0], pairs, seed)
    write_json(
        to / "key.json",
        {
            "format": _FORMAT,
            "page": page_id,
            "a": a[0],
            "b": b[0],
            "seed": seed,
            "prompts": list(prompts),
            "pairs": key,
        },
    )
    path = to / "compare.html"
    write_text(path, render_page(page_id, pairs))
    return path


def _pair_path(folder: Path, number: int, side: str) -> Path:
    return folder / "pairs" / f"{number:03d}-{side}.mp4"


def _write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as partial:
        partial.write_bytes(content)


def _page_id(a: str, b: str, pairs: Sequence[tuple[str, bytes, bytes]], seed: int) -> str:
    digest = hashlib.sha256(json.dumps([a, b, seed]).encode())
    for prompt, left, right in pairs:
        for part in (prompt.encode(), left, right):
            digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:16]


def _encoded(path: Path, scratch: Path) -> bytes:
    """A video as both sides are shown: H.264, at most 512 pixels high or wide, no metadata of its own."""
    clip = read_video(path, max_frames=_MAX_FRAMES)
    if not 0 < clip.fps <= 1000:
        raise VideoError(f"{path}: got a rate of {clip.fps:g} frames per second, expected one above 0")
    frames = clip.frames
    height, width = frames.shape[1:3]
    scale = _MAX_SIDE / max(height, width)
    if scale < 1:
        size = (max(2, round(width * scale)), max(2, round(height * scale)))
        frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
    write_video(frames, scratch, clip.fps)
    return scratch.read_bytes()


# --- answers -----------------------------------------------------------------------------------------------


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"compare: no file {path}")
    if path.stat().st_size > _MAX_ANSWERS_BYTES:
        raise ValueError(f"{path}: over {_MAX_ANSWERS_BYTES} bytes, expected answers of a page")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from error


def read_answers(path: Path, key: Mapping[str, Any]) -> dict[int, str]:
    """Reads what the page's button saved.

    Args:
        path: the file.
        key: of the page that was answered.

    Returns:
        Number of the pair -> one of ``CHOICES``; pairs without an answer are not in it.

    Raises:
        ValueError: it is something else, or of another page.
    """
    value = _read_json(path)
    if (
        not isinstance(value, dict)
        or value.get("format") != _FORMAT
        or not isinstance(value.get("answers"), dict)
    ):
        raise ValueError(f"{path}: expected answers saved by a page of `hummingbird compare`")
    if value.get("page") != key["page"]:
        raise ValueError(
            f"{path}: answers are of page {value.get('page')!r}, but key.json is of {key['page']!r}; give "
            "the folder of the page that was answered"
        )
    answers = {}
    for name, choice in value["answers"].items():
        known = name.isascii() and name.isdigit() and int(name) < len(key["pairs"])
        if not known or choice not in CHOICES:
            expected = f"a pair below {len(key['pairs'])} and one of {', '.join(CHOICES)}"
            raise ValueError(f"{path}: got {name!r}: {choice!r}, expected {expected}")
        answers[int(name)] = choice
    return answers


def judge_answers(answers: Sequence[Path], folder: Path) -> dict[str, Any]:
    """Joins answers with the key and writes ``report.json`` and ``report.html``.

    Of several people who saw the same page, each prompt counts once, for the side that more of them
    preferred: votes on one pair of videos are not independent.

    Args:
        answers: files saved by the page, one of each person.
        folder: of the page, with ``key.json``.

    Returns:
        ``{"a", "b", "num_prompts", "num_raters", "unanswered", "test": {"wins_a", "wins_b", "ties",
        "p_value"}, "share_a", "interval_95", "raters", "prompts"}``. ``share_a`` is of the decided prompts.

    Raises:
        ValueError, FileNotFoundError: files that are missing, broken, or of another page.
    """
    key = _read_key(folder / "key.json")
    if not answers:
        raise ValueError("results: got no files of answers")
    raters = [read_answers(path, key) for path in answers]
    winners = [
        [_winner(key, number, given.get(number)) for given in raters] for number in range(len(key["pairs"]))
    ]
    prompts = []
    for number, votes in enumerate(winners):
        counts = Counter(votes)
        lead = counts["a"] - counts["b"]
        winner = None if counts[None] == len(votes) else "a" if lead > 0 else "b" if lead < 0 else "tie"
        prompts.append(
            {
                "pair": number,
                "prompt": key["prompts"][key["pairs"][number]["prompt"]],
                "winner": winner,
                "votes": {name: counts[name] for name in ("a", "b", "tie")},
            }
        )
    total = Counter(row["winner"] for row in prompts)
    test = sign_test(total["a"], total["b"], total["tie"])
    decided = total["a"] + total["b"]
    result = {
        "suite": "compare",
        "page": key["page"],
        "a": key["a"],
        "b": key["b"],
        "num_prompts": len(prompts),
        "num_raters": len(raters),
        "unanswered": total[None],
        "test": {"name": "two-sided sign test, ties left out", **asdict(test)},
        "share_a": round(total["a"] / decided, 6) if decided else None,
        "interval_95": wilson_interval(total["a"], decided) if decided else None,
        "raters": [
            {
                "file": path.name,
                **{name: sum(votes[number] == name for votes in winners) for name in ("a", "b", "tie")},
            }
            for number, path in enumerate(answers)
        ],
        "prompts": sorted(prompts, key=lambda row: key["pairs"][row["pair"]]["prompt"]),
        "environment": environment(torch.device("cpu"), "float32"),
    }
    videos = {}
    for number, pair in enumerate(key["pairs"]):
        sides = [_pair_path(folder, number, side) for side in ("left", "right")]
        videos[number] = (sides[0], sides[1]) if pair["left"] == "a" else (sides[1], sides[0])
    write_text(folder / "report.html", render_result(result, videos))
    write_json(folder / "report.json", result)
    return result


def _read_key(path: Path) -> Key:
    key = _read_json(path)
    try:
        count = len(key["prompts"])
        is_key = key["format"] == _FORMAT and all(isinstance(key[name], str) for name in ("page", "a", "b"))
        is_key = is_key and sorted(pair["prompt"] for pair in key["pairs"]) == list(range(count))
        is_key = is_key and all(pair["left"] in ("a", "b") for pair in key["pairs"])
        is_key = is_key and all(isinstance(prompt, str) for prompt in key["prompts"])
    except (TypeError, KeyError):
        is_key = False
    if not is_key:
        raise ValueError(f"{path}: expected the key that `hummingbird compare` wrote beside its page")
    return key


def _winner(key: Key, pair: int, choice: str | None) -> str | None:
    if choice is None or choice == "tie":
        return choice
    left = key["pairs"][pair]["left"]
    return left if choice == "left" else "b" if left == "a" else "a"
