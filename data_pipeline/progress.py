"""How a run shows where it is: a bar on a terminal, else a line every ten seconds; and a file of its pace."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

__all__ = ["PACE_FILE", "Pace", "Progress", "read_pace"]

PACE_FILE = "pace.jsonl"
"""In ``OUTPUT/work``: how many tasks ended when. Only the report reads it; no result depends on it."""

_LINE_EVERY_S = 10.0
_REASONS_SHOWN = 3

_PACE_EVERY = 1.0, 0.01
"""Seconds between two lines of the pace; in a long phase the share of its time so far. So a week is under a
thousand lines."""

_MAX_PACE_LINES, _MAX_PACE_CHARS = 200_000, 500


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Tasks that ended in one stretch of time.

    Attributes:
        phase, unit: of the run, and what its tasks are, in the plural.
        ended_at: seconds since 1970.
        seconds: length of the stretch.
        done: tasks that ended in it.
    """

    phase: str
    unit: str
    ended_at: float
    seconds: float
    done: int


class Progress:
    """Progress of one phase, on stderr.

    Args:
        phase: its name.
        total: of its tasks, those done in earlier runs included.
        done: tasks done in earlier runs.
        unit: what a task is, in the plural.
        work: folder with the file that the pace is appended to; None keeps none.
    """

    def __init__(self, phase: str, total: int, done: int, unit: str, work: Path | None = None) -> None:
        self._phase, self._total, self._unit = phase, total, unit
        self._first = self._done = self._noted = done
        self._counts: Counter[str] = Counter()
        self._started_at = self._said_at = self._noted_at = time.monotonic()
        self._pace = None if work is None else work / PACE_FILE
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=phase, unit=f" {unit}", file=sys.stderr)

    def add(self, outcome: str) -> None:
        """One more task is done; ``outcome`` is ``kept`` or the reason why not."""
        self._done += 1
        self._counts[outcome] += 1
        now = time.monotonic()
        least_s, share = _PACE_EVERY
        if now - self._noted_at > max(least_s, share * (now - self._started_at)):
            self._note_pace(now)
        if self._bar is not None:
            self._bar.set_postfix_str(self._outcomes(), refresh=False)
            self._bar.update()
        elif now - self._said_at > _LINE_EVERY_S:
            self._say()

    def close(self) -> None:
        """The phase is over."""
        if self._done > self._noted:
            self._note_pace(time.monotonic())
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._first:
            self._say()

    def _note_pace(self, now: float) -> None:
        if self._pace is not None:
            line = {
                "phase": self._phase,
                "unit": self._unit,
                "ended_at": round(time.time(), 3),
                "seconds": max(round(now - self._noted_at, 3), 0.001),
                "done": self._done - self._noted,
            }
            with self._pace.open("a", encoding="ascii") as file:
                file.write(json.dumps(line) + "\n")
        self._noted, self._noted_at = self._done, now

    def _say(self) -> None:
        now = time.monotonic()
        self._said_at = now
        rate = (self._done - self._first) / max(now - self._started_at, 1e-9)
        left_s = (self._total - self._done) / max(rate, 1e-9)
        sys.stderr.write(
            f"{self._phase}: {self._done} of {self._total} {self._unit}, {rate:.2f} {self._unit}/s, "
            f"{left_s:.0f} s left; {self._outcomes()}\n"
        )
        sys.stderr.flush()

    def _outcomes(self) -> str:
        kept = self._counts["kept"]
        others = [(name, count) for name, count in self._counts.most_common() if name != "kept"]
        shown = ", ".join(f"{name} {count}" for name, count in others[:_REASONS_SHOWN])
        rest = sum(count for _, count in others[_REASONS_SHOWN:])
        return f"kept {kept}" + (f", {shown}" if shown else "") + (f", other {rest}" if rest else "")


def read_pace(path: Path) -> Iterator[Pace]:
    """The stretches that a run noted, those of earlier runs on the same output first.

    Lines that a killed run left half-written are passed over; of a file that has grown beyond all measure the
    first lines are read.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with path.open("rb") as file:
        for _ in range(_MAX_PACE_LINES):
            line = file.readline(_MAX_PACE_CHARS)
            if not line:
                return
            pace = _parse(line)
            if pace is not None:
                yield pace


def _parse(line: bytes) -> Pace | None:
    try:
        pace = Pace(**json.loads(line))
        numbers = pace.ended_at, pace.seconds, pace.done
        is_sound = isinstance(pace.phase, str) and isinstance(pace.unit, str)
        is_sound = is_sound and all(0 <= value < 1e11 for value in numbers)
        return pace if is_sound and pace.seconds >= 0.001 else None
    except (ValueError, TypeError):
        return None
