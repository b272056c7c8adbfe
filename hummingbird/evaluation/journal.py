"""What a long measurement has done so far, one record a line: a run that was killed goes on from it.

The first line holds the settings. A journal of other settings, or of an older format, is begun anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hummingbird.video_io import atomic_path

__all__ = ["Journal"]

_MAX_BYTES = 1 << 30


class Journal:
    """Records on disk; each is there as soon as ``append`` has returned.

    Args:
        path: of the file; None keeps records in memory only.
        settings: all that the records depend on, as JSON.

    Attributes:
        records: what was recorded up to now, in order of ``append``.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]) -> None:
        self.path = path
        self.records: list[dict[str, Any]] = []
        if path is None:
            return
        settings = json.loads(json.dumps(settings))
        found = _read(path)
        if found and found[0] == settings:
            self.records = found[1:]
        # Also where records were found: a line that was cut off by a kill must not be written on.
        with atomic_path(path) as partial:
            partial.write_text(_lines([settings, *self.records]), encoding="utf-8")

    def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Adds records."""
        new = list(records)
        self.records += new
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_lines(new))

    def remove(self) -> None:
        """Removes the file: what it was for is done."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _lines(records: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def _read(path: Path) -> list[dict[str, Any]]:
    """Whole lines from the beginning, up to the first that is none."""
    if not path.is_file() or path.stat().st_size > _MAX_BYTES:
        return []
    values = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            break
        if not isinstance(value, dict):
            break
        values.append(value)
    return values
