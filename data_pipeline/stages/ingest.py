"""Ingest: find the videos of a folder, or of a list of them, with their captions.

Every row of a list and every video file of a folder becomes one ``Source``. What cannot be used carries its
``error``: a dead row is normal and never ends a run. Rows stream; a list of ten million is never held.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline.clip import Source
from hummingbird.config import config_dataclass

__all__ = [
    "LIST_SUFFIXES", "MAX_SIDECAR_BYTES", "SIDECAR_SUFFIXES", "VIDEO_SUFFIXES", "IngestConfig", "IngestError",
    "Listed", "RowError", "printable", "read_list", "sidecar_text", "without_repeats",
]  # fmt: skip

LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".mpg", ".mpeg", ".vob", ".flv",
    ".f4v", ".wmv", ".asf", ".ogv", ".ogg", ".3gp", ".3g2", ".gif", ".mxf", ".ivf", ".nut", ".y4m", ".rm",
    ".rmvb", ".dv", ".h264", ".h265", ".hevc", ".av1", ".obu", ".mjpeg", ".wtv",
)  # fmt: skip
_PATH_COLUMNS = ("path", "file", "video", "filename", "file_name")
_CAPTION_COLUMNS = ("caption", "text", "name")
_ID_COLUMNS = ("id", "videoid", "video_id", "clip_id")
SIDECAR_SUFFIXES = (".txt", ".json")

_MAX_LINE_CHARS = 1_000_000
MAX_SIDECAR_BYTES = 1_000_000
_MAX_ID_CHARS = 500


class IngestError(ValueError):
    """An input that cannot be used at all; the message is one line that says why."""


class RowError(Exception):
    """One row that cannot be used; the message becomes the source's ``error``."""


@dataclass(frozen=True, kw_only=True)
class _Row:
    """One row of a list: its values by column, or why it has none."""

    number: int
    values: Mapping[str, Any]
    error: str | None = None


@config_dataclass
class IngestConfig:
    """Where videos come from.

    The input is a folder, read recursively, or a list of files: ``.csv``, ``.tsv``, ``.jsonl``, ``.parquet``
    with a column ``path`` (or ``file``, ``video``, ``filename``) and, if it likes, ``caption`` (or ``text``,
    ``name``) and ``id`` (or ``videoid``). A list with ``videoid`` and no column of paths is WebVid's: its
    files lie at ``ROOT/page_dir/videoid.mp4`` or ``ROOT/videoid.mp4``; ``contentUrl`` is never fetched.

    Attributes:
        root: folder, or URL (see ``storage``), that the paths of a list start from and may not leave; None is
            the list's own folder.
        suffixes: names that count as videos in a folder.
        any_suffix: take every file of a folder for a video, except captions (``.txt``, ``.json``).
        sidecar_captions: where there is no other caption take it from ``NAME.txt``, or from ``caption`` or
            ``text`` in ``NAME.json``, beside the video.
    """

    root: str | Path | None = None
    suffixes: tuple[str, ...] = VIDEO_SUFFIXES
    any_suffix: bool = False
    sidecar_captions: bool = True

    def sources(self, path: Path) -> Iterator[Source]:
        """Every source of an input: a folder's in the order of names, a list's in the order of rows.

        Args:
            path: folder or list.

        Raises:
            IngestError: the input does not exist, is of no known kind, or has no column of paths.
        """
        if path.is_dir():
            root, found = path, _from_folder(path, self)
        elif path.is_file():
            root = Path(self.root or path.parent)
            if not root.is_dir():
                raise IngestError(f"{root}: no such folder; set ingest.root to where the files of {path} lie")
            found = _from_list(path, root)
        else:
            raise IngestError(f"{path}: no such file or folder; give a folder of videos or a list of them")
        root = root.resolve()
        for source in without_repeats(found):
            yield _with_caption(source, root) if self.sidecar_captions else source


def without_repeats(sources: Iterable[Source]) -> Iterator[Source]:
    """Make identifiers unique: a later source with the same one gets a new one and an error."""
    seen: set[int] = set()
    for number, source in enumerate(sources, start=1):
        if not _note(source.source_id, seen):
            given = source.source_id
            error = f"repeats the identifier {given!r} of an earlier one; give each its own"
            source = replace(source, source_id=f"{given} (repeat {number})", path=None, error=error)
            while not _note(source.source_id, seen):
                source = replace(source, source_id=source.source_id + "+")
        yield source


def _note(source_id: str, seen: set[int]) -> bool:
    """Add an identifier as 8 bytes, not as text, so that ten million fit; False where it was there."""
    digest = int.from_bytes(hashlib.blake2b(source_id.encode(), digest_size=8).digest(), "big")
    known = digest in seen
    seen.add(digest)
    return not known


def printable(text: str) -> str:
    """Text that UTF-8 can hold: file names need not be UTF-8, and JSON can escape half a character."""
    return text.encode("utf-8", "backslashreplace").decode()


def _from_folder(root: Path, settings: IngestConfig) -> Iterator[Source]:
    """Files below ``root`` in the order of their names; hidden ones and links to folders are not entered."""
    resolved = root.resolve()
    try:
        levels, folders = [_names(root)], [root]
    except OSError as error:
        raise IngestError(f"{root}: cannot be listed ({error.strerror})") from error
    while levels:
        name = next(levels[-1], None)
        if name is None:
            levels.pop()
            folders.pop()
            continue
        path = folders[-1] / name
        source_id = printable(path.relative_to(root).as_posix())
        try:
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                levels.append(_names(path))
                folders.append(path)
            elif path.suffix.lower() in settings.suffixes or (
                settings.any_suffix and path.suffix.lower() not in SIDECAR_SUFFIXES
            ):
                yield Source(source_id=source_id, path=_checked(path, resolved))
        except OSError as error:
            yield Source(source_id=source_id, path=None, error=f"cannot be read ({error.strerror})")
        except RowError as error:
            yield Source(source_id=source_id, path=None, error=str(error))


def _names(folder: Path) -> Iterator[str]:
    return iter(sorted(name for name in os.listdir(folder) if not name.startswith(".")))


def _checked(path: Path, root: Path) -> Path:
    """``path`` without links.

    Raises:
        RowError: it is no file, or lies outside of ``root`` once links and ``..`` are followed.
    """
    try:
        resolved = path.resolve()
        is_file, exists = resolved.is_file(), resolved.exists()
    # What no file can be called: a NUL in it, too long, links that go in circles.
    except (OSError, RuntimeError, ValueError) as error:
        raise RowError(f"is not a usable path ({printable(' '.join(str(error).split()))[:200]})") from error
    if not resolved.is_relative_to(root):
        raise RowError(f"lies outside of {root}; move it inside, or set ingest.root")
    if not is_file:
        raise RowError("is not a regular file" if exists else "no such file")
    return resolved


def _with_caption(source: Source, root: Path) -> Source:
    """Add the caption that lies beside the video, where the source has none."""
    if source.path is None or source.caption is not None:
        return source
    for suffix in SIDECAR_SUFFIXES:
        sidecar = source.path.with_suffix(suffix)
        try:
            if not sidecar.exists():
                continue
            data = _checked(sidecar, root).read_bytes()[: MAX_SIDECAR_BYTES + 1]
            if len(data) > MAX_SIDECAR_BYTES:
                raise RowError(f"larger than {MAX_SIDECAR_BYTES} bytes")
            caption = sidecar_text(data, suffix)
        except (OSError, RowError) as error:
            return replace(source, path=None, error=f"caption {sidecar.name}: {error}; mend or remove it")
        if caption is not None:
            return replace(source, caption=caption)
    return source


def sidecar_text(data: bytes, suffix: str) -> str | None:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"not UTF-8 (byte {error.start})") from error
    if suffix == ".txt":
        return _text(text)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON ({error})") from error
    if not isinstance(values, dict):
        raise RowError(f"holds {type(values).__name__}, expected an object with 'caption' or 'text'")
    return _first(values, _CAPTION_COLUMNS[:2])


def _text(value: object) -> str | None:
    """A value of a list as text; None where there is nothing.

    Raises:
        RowError: it is neither text nor a whole number, or not UTF-8.
    """
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowError(f"got {type(value).__name__} where text is expected")
    text = str(value).strip()
    if text != printable(text):
        raise RowError(f"not UTF-8: {printable(text)[:80]!r}")
    return text or None


def _first(values: Mapping[str, Any], columns: Iterable[str]) -> str | None:
    """The first of some columns that holds something."""
    for column in columns:
        text = _text(values.get(column))
        if text is not None:
            return text
    return None


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A row of a list, whose file nobody looked for yet; ``path`` is below the list's root, or a URL."""

    number: int
    source_id: str
    path: str | None = None
    caption: str | None = None
    error: str | None = None


def read_list(path: Path) -> Iterator[Listed]:
    """The rows of a list.

    Raises:
        IngestError: it cannot be read, or has no column of paths.
    """
    for row in _rows(path):
        named = f"row-{row.number:08d}"
        try:
            named = _name(row)
            where = _first(row.values, _PATH_COLUMNS) or _webvid_name(row.values)
            caption = _first(row.values, _CAPTION_COLUMNS)
            yield Listed(number=row.number, source_id=named, path=where, caption=caption)
        except RowError as error:
            yield Listed(number=row.number, source_id=named, error=str(error))


def _from_list(path: Path, root: Path) -> Iterator[Source]:
    root = root.resolve()
    for row in _rows(path):
        yield _source(row, root)


def _rows(path: Path) -> Iterator[_Row]:
    readers = {".csv": _csv_rows, ".tsv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    suffix = path.suffix.lower()
    if suffix not in readers:
        raise IngestError(f"{path}: got suffix {suffix!r}, expected a folder or {', '.join(LIST_SUFFIXES)}")
    try:
        yield from readers[suffix](path)
    except OSError as error:
        raise IngestError(f"{path}: cannot be read ({error.strerror or error})") from error


def _name(row: _Row) -> str:
    """The identifier of a row's source."""
    if row.error is not None:
        raise RowError(row.error)
    named = _first(row.values, _ID_COLUMNS) or _first(row.values, _PATH_COLUMNS)
    if named is None:
        raise RowError("names no file: no path and no id")
    if len(named) > _MAX_ID_CHARS:
        raise RowError(f"got an identifier of {len(named)} characters, expected at most {_MAX_ID_CHARS}")
    return named


def _source(row: _Row, root: Path) -> Source:
    source_id = f"row-{row.number:08d}"
    try:
        source_id = _name(row)
        where = _first(row.values, _PATH_COLUMNS)
        path = _checked(root / where, root) if where is not None else _webvid_file(row.values, root)
        return Source(source_id=source_id, path=path, caption=_first(row.values, _CAPTION_COLUMNS))
    except RowError as error:
        return Source(source_id=source_id, path=None, error=f"row {row.number}: {error}")


def _webvid_name(values: Mapping[str, Any]) -> str:
    page, name = _text(values.get("page_dir")), f"{_first(values, _ID_COLUMNS)}.mp4"
    return f"{page}/{name}" if page else name


def _webvid_file(values: Mapping[str, Any], root: Path) -> Path:
    """WebVid's place of a downloaded file: in the folder of its page, or all in one folder."""
    name = f"{_first(values, _ID_COLUMNS)}.mp4"
    page = _text(values.get("page_dir"))
    places = [root / page / name, root / name] if page else [root / name]
    for place in places[:-1]:
        if place.is_file():
            return _checked(place, root)
    return _checked(places[-1], root)


def _check_columns(names: Iterable[str], path: Path) -> None:
    if not {*_PATH_COLUMNS, "videoid"} & set(names):
        raise IngestError(
            f"{path}: got columns {printable(', '.join(names))[:200] or '(none)'}, expected one of "
            f"{', '.join(_PATH_COLUMNS)} (or WebVid's videoid) in a UTF-8 header"
        )


def _lines(path: Path) -> Iterator[str]:
    """Lines with their ends; bytes that are not UTF-8 become lone surrogates, which ``_text`` refuses."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        while line := file.readline(_MAX_LINE_CHARS):
            yield line


class _RecordLines(Iterator[str]):
    """Lines for a CSV reader, which remembers those of the current record and can give them again."""

    def __init__(self, path: Path) -> None:
        self._lines = _lines(path)
        self._again: deque[str] = deque()
        self.taken: list[str] = []

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        return line

    def give_again_after_first(self) -> None:
        self._again.extendleft(reversed(self.taken[1:]))


def _csv_rows(path: Path) -> Iterator[_Row]:
    """Rows of a CSV or TSV file with a header; captions may hold line breaks inside quotes.

    A quote that is never closed would swallow the rows after it. So a record of several lines ends with its
    first where it has the wrong number of fields, or where each of its lines is a row with a video's name.
    """
    lines = _RecordLines(path)
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(lines, delimiter=delimiter)
    try:
        names = [name.strip().lower() for name in next(reader, [])]
    except csv.Error as error:
        raise IngestError(f"{path}: the header is not CSV ({error})") from error
    _check_columns(names, path)
    number = 0
    while True:
        lines.taken.clear()
        try:
            fields: list[str] | str = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = str(error)
        if len(lines.taken) > 1 and (
            isinstance(fields, str) or len(fields) != len(names) or _all_rows(lines.taken, names, delimiter)
        ):
            fields = _csv_line(lines.taken[0], delimiter)
            lines.give_again_after_first()
        if not fields:
            continue
        number += 1
        if isinstance(fields, str):
            yield _Row(number=number, values={}, error=f"not CSV ({fields})")
        elif len(fields) != len(names):
            yield _Row(number=number, values={}, error=f"got {len(fields)} fields, expected {len(names)}")
        else:
            yield _Row(number=number, values=dict(zip(names, fields, strict=True)))


def _csv_line(line: str, delimiter: str) -> list[str] | str:
    """The fields of one line, or what is wrong with it."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as error:
        return str(error)


def _all_rows(lines: list[str], names: list[str], delimiter: str) -> bool:
    """Whether each line is a row by itself: the right number of fields, and a video's name in its place."""
    for line in lines:
        fields = _csv_line(line, delimiter)
        if isinstance(fields, str) or len(fields) != len(names):
            return False
        values = dict(zip(names, fields, strict=True))
        where = next((values[name] for name in _PATH_COLUMNS if name in values), None)
        if where is None:
            if not values["videoid"].strip().isdigit():
                return False
        elif Path(where.strip()).suffix.lower() not in VIDEO_SUFFIXES:
            return False
    return True


def _jsonl_rows(path: Path) -> Iterator[_Row]:
    """One JSON object per line."""
    for number, line in enumerate((line for line in _lines(path) if line.strip()), start=1):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield _Row(number=number, values={}, error=f"not JSON ({' '.join(str(error).split())[:200]})")
            continue
        if isinstance(values, dict):
            yield _Row(number=number, values={name.strip().lower(): value for name, value in values.items()})
        else:
            yield _Row(
                number=number, values={}, error=f"got {type(values).__name__}, expected an object with a path"
            )


def _parquet_rows(path: Path) -> Iterator[_Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    known = {*_PATH_COLUMNS, *_CAPTION_COLUMNS, *_ID_COLUMNS, "page_dir"}
    number = 0
    try:
        with pq.ParquetFile(path) as file:
            columns = [name for name in file.schema_arrow.names if name.strip().lower() in known]
            _check_columns([name.strip().lower() for name in columns], path)
            for batch in file.iter_batches(batch_size=4096, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    lowered = {name.strip().lower(): value for name, value in values.items()}
                    yield _Row(number=number, values=lowered)
    except pa.ArrowException as error:
        raise IngestError(f"{path}: not readable as Parquet after row {number} ({error})") from error
