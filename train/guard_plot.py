"""Draws what a guard saw and did: rewards at every sample, rolled-back ones included.

python train/guard_plot.py RUN_FOLDER [--to FILE.svg]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # `python train/guard_plot.py` sees only train/

from train.command import run_command
from train.guards import HELD_OUT, REWARD

_WIDTH, _PANEL, _LEFT, _RIGHT, _TOP = 720, 150, 90, 20, 40
_ROWS = ((REWARD, "trained reward", "#b3541e"), (HELD_OUT, "held-out reward", "#1f6f8b"))


def guard_svg(history: Sequence[dict[str, Any]], title: str) -> str:
    """A picture of the judged samples in the order in which they were made.

    Args:
        history: Of ``guard.json``.
        title: Above it.

    Returns:
        SVG: one panel each for the trained reward, the held-out one and the scale of the rewards' weights;
        bands mark samples that were judged bad.

    Raises:
        ValueError: There is no judged sample.
    """
    if not history:
        raise ValueError("history: got no judged samples; expected some, of a run with loop.guard.action set")
    count = len(history)
    step = (_WIDTH - _LEFT - _RIGHT) / max(count, 1)
    xs = [_LEFT + (index + 0.5) * step for index in range(count)]
    rows: list[tuple[str, str, list[float | None]]] = [
        (label, color, [entry["figures"].get(name) for entry in history]) for name, label, color in _ROWS
    ]
    rows.append(("scale of weights", "#555", [entry["reward_scale"] for entry in history]))
    height = _TOP + len(rows) * (_PANEL + 20) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="18" font-size="15">{escape(title)}</text>',
    ]
    bottom = _TOP + len(rows) * (_PANEL + 20)
    for x, entry in zip(xs, history, strict=True):
        verdict = entry.get("verdict")
        if verdict is not None:
            color = "#f6d5c3" if verdict == "warn" else "#ee9f84"
            parts.append(
                f'<rect x="{x - step / 2:.1f}" y="{_TOP}" width="{step:.1f}" height="{bottom - _TOP - 20}" '
                f'fill="{color}"><title>{escape(entry["reason"])}</title></rect>'
            )
            parts.append(f'<text x="{x:.1f}" y="{bottom + 12}" text-anchor="middle">{escape(verdict)}</text>')
        parts.append(f'<text x="{x:.1f}" y="{bottom - 4}" text-anchor="middle">{entry["step"]}</text>')
    for row, (label, color, values) in enumerate(rows):
        parts += _panel(label, color, values, xs, _TOP + row * (_PANEL + 20))
    parts.append(
        f'<text x="{_LEFT}" y="{bottom + 34}">step of each sample, in the order of time; after a rollback '
        "steps come again</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _panel(label: str, color: str, values: list[float | None], xs: list[float], top: float) -> list[str]:
    """One curve; values that are no numbers leave a gap."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    span = (high - low) or 1.0

    def y(value: float) -> float:
        return top + 12 + (_PANEL - 24) * (1.0 - (value - low) / span)

    points = [(x, y(value)) for x, value in zip(xs, values, strict=True) if value is not None]
    line = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
    return [
        f'<rect x="{_LEFT}" y="{top}" width="{_WIDTH - _LEFT - _RIGHT}" height="{_PANEL}" fill="none" '
        'stroke="#ccc"/>',
        f'<text x="{_LEFT}" y="{top - 5}" fill="{color}">{escape(label)}</text>',
        f'<text x="{_LEFT - 6}" y="{y(high) + 4:.1f}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{_LEFT - 6}" y="{y(low) + 4:.1f}" text-anchor="end">{low:.3g}</text>',
        f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>',
        *(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{color}"/>' for px, py in points),
    ]


def _main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="train/guard_plot.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN_FOLDER", help="of a training with loop.guard.action set"
    )
    parser.add_argument("--to", type=Path, default=None, help="the picture; RUN_FOLDER/guard.svg if left out")
    arguments = parser.parse_args(words)
    file = arguments.run / "guard.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: not there; expected the folder of a run with loop.guard.action set")
    picture = guard_svg(json.loads(file.read_text())["history"], arguments.run.name)
    (arguments.to or arguments.run / "guard.svg").write_text(picture)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; see ``run_command``."""
    return run_command(_main, argv)


if __name__ == "__main__":
    sys.exit(main())
