"""Append-only record of finished tasks: what makes a killed run go on where it was.

One line per task: a checksum, the task's key, and its result as JSON. A key names everything that the result
depends on, so results of other settings or of another version of a file lie unused beside the valid ones.
A line is written with one call; what a crash leaves half-written fails its checksum and is cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

__all__ = ["Journal", "digest", "read_values"]

_SYNC_EVERY_S = 2.0
"""A killed process loses nothing; a machine that loses power loses at most the tasks of so many seconds."""


def digest(*parts: Any) -> str:
    """16 hexadecimal digits that stand for JSON values."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class Journal:
    """Results by key, on disk; in memory are the keys and where their lines begin.

    Args:
        path: made with its folders if it is not there.

    Attributes:
        cut_bytes: size of what was damaged at the end and is cut off.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._reader = path.open("rb")
        self._offsets: dict[str, int] = {}
        size = os.fstat(self._file).st_size
        self._end = self._read()
        self.cut_bytes = size - self._end
        if self.cut_bytes:
            os.ftruncate(self._file, self._end)
        self._synced_at = time.monotonic()

    def _read(self) -> int:
        """Index the valid lines; returns where they end."""
        end = 0
        for line, content in _valid_lines(self._reader):
            self._offsets[content[: content.index(b" ")].decode("ascii")] = end
            end += len(line)
        return end

    def __contains__(self, key: str) -> bool:
        return key in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, key: str) -> Any:
        """The last result that was added under a key."""
        self._reader.seek(self._offsets[key])
        return json.loads(self._reader.readline().split(b" ", 2)[2])

    def add(self, key: str, value: Any) -> None:
        """Append a result.

        Raises:
            OSError: the disk is full or gone; what was written of the line is cut off at the next start.
        """
        text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
        content = f"{key} {text}\n".encode("ascii")
        line = _checksum(content) + b" " + content
        written = 0
        while written < len(line):
            written += os.write(self._file, line[written:])
        self._offsets[key] = self._end
        self._end += len(line)
        if time.monotonic() - self._synced_at > _SYNC_EVERY_S:
            self.sync()

    def sync(self) -> None:
        """Wait until everything that was added is on the disk."""
        os.fsync(self._file)
        self._synced_at = time.monotonic()

    def close(self) -> None:
        self.sync()
        os.close(self._file)
        self._reader.close()


def read_values(path: Path) -> Iterator[Any]:
    """Every result in a journal, also of tasks that were done again later; the file is left as it is.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    with path.open("rb") as reader:
        for _, content in _valid_lines(reader):
            yield json.loads(content.split(b" ", 1)[1])


def _valid_lines(reader: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Lines, and what follows their checksums, up to the first that is damaged."""
    for line in reader:
        checksum, _, content = line.partition(b" ")
        if not line.endswith(b"\n") or checksum != _checksum(content):
            return
        yield line, content


def _checksum(content: bytes) -> bytes:
    return f"{zlib.crc32(content):08x}".encode("ascii")
