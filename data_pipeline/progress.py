"""How a run shows where it is: a bar on a terminal, otherwise a line every ten seconds."""

from __future__ import annotations

import sys
import time
from collections import Counter

from tqdm import tqdm

__all__ = ["Progress"]

_LINE_EVERY_S = 10.0
_REASONS_SHOWN = 3


class Progress:
    """Progress of one phase, on stderr.

    Args:
        phase: its name.
        total: of its tasks, those done in earlier runs included.
        done: tasks done in earlier runs.
        unit: what a task is, in the plural.
    """

    def __init__(self, phase: str, total: int, done: int, unit: str) -> None:
        self._phase, self._total, self._unit = phase, total, unit
        self._first = self._done = done
        self._counts: Counter[str] = Counter()
        self._started_at = self._said_at = time.monotonic()
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=phase, unit=f" {unit}", file=sys.stderr)

    def add(self, outcome: str) -> None:
        """One more task is done; ``outcome`` is ``kept`` or the reason why not."""
        self._done += 1
        self._counts[outcome] += 1
        if self._bar is not None:
            self._bar.set_postfix_str(self._outcomes(), refresh=False)
            self._bar.update()
        elif time.monotonic() - self._said_at > _LINE_EVERY_S:
            self._say()

    def close(self) -> None:
        """The phase is over."""
        if self._bar is not None:
            self._bar.close()
        elif self._done > self._first:
            self._say()

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
