"""The clip manifest: one row for every clip that a curation ever saw.

It is where data_pipeline and train meet, on disk. ``manifest.parquet`` has ``COLUMNS``, then one column of
64-bit floats for each score. A clip that was never scored has null there: a missing score is never a number.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hummingbird.video_io import atomic_path

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

__all__ = [
    "COLUMNS",
    "MANIFEST_VERSION",
    "SCORES",
    "STATUSES",
    "ClipRecord",
    "ManifestError",
    "open_manifest",
    "read_manifest",
    "schema",
    "write_manifest",
]

MANIFEST_VERSION = 2
_ADDED_IN_2 = ("caption_source", "caption_note")
"""Columns that files of version 1 lack; their rows have the defaults of ``ClipRecord``."""
_VERSION_KEY = b"hummingbird.manifest_version"
_BATCH = 50_000
"""Rows in memory at a time, and in a row group."""

STATUSES = ("kept", "dropped", "error")

COLUMNS = {
    "clip_id": "string",
    "source": "string",
    "start_s": "double",
    "end_s": "double",
    "num_frames": "int64",
    "fps": "double",
    "width": "int32",
    "height": "int32",
    "caption": "string",
    "original_caption": "string",
    "caption_source": "string",
    "caption_note": "string",
    "status": "string",
    "reason": "string",
    "detail": "string",
    "shard": "string",
    "sha256": "string",
}
"""Name -> Arrow type of the columns that are not scores."""

SCORES = (
    "quality",
    "quality_technical",
    "quality_aesthetic",
    "motion_mean",
    "motion_top5",
    "motion_static",
    "motion_jitter",
    "motion_zoom",
    "motion_residual",
)
"""Scores that have a column in every manifest, filled or not."""


class ManifestError(ValueError):
    """A manifest that cannot be read or written; the message is one line that says why."""


@dataclass(frozen=True, kw_only=True)
class ClipRecord:
    """One row. A source that gave no clip has one row, too, with neither span nor size.

    Attributes:
        clip_id: unique in a manifest.
        source: the input file's path relative to the input folder, or its id there.
        start_s, end_s: span of the clip in seconds from the source's first frame.
        num_frames, fps, width, height: of that span in the source, as displayed. What was written is
            described in the sample's ``.json``.
        caption: text to train with.
        original_caption: text that came with the source.
        caption_source: where ``caption`` is from: ``original``, or the recaptioning backend that wrote it.
        caption_note: why a clip that was to be recaptioned has its original caption still: a short name that
            rows are counted by; empty otherwise.
        scores: finite numbers by name.
        status: ``kept``, ``dropped`` or ``error``.
        reason: why it was not kept: a short name that rows are counted by; empty for a kept clip.
        detail: measured value and threshold, or the error's message.
        shard: file with the sample, relative to the manifest's folder; kept clips only.
        sha256: of the sample's ``.mp4``; kept clips only.
    """

    clip_id: str
    source: str
    status: str
    start_s: float | None = None
    end_s: float | None = None
    num_frames: int | None = None
    fps: float | None = None
    width: int | None = None
    height: int | None = None
    caption: str | None = None
    original_caption: str | None = None
    caption_source: str = "original"
    caption_note: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""
    shard: str | None = None
    sha256: str | None = None


def schema(score_names: Iterable[str] = ()) -> pyarrow.Schema:
    """The Arrow schema of a manifest with ``SCORES`` and these further scores."""
    import pyarrow

    names = [*SCORES, *sorted(set(score_names) - set(SCORES))]
    clashes = sorted(set(names) & set(COLUMNS))
    if clashes:
        raise ManifestError(f"score {clashes[0]!r} has the name of a column; rename the score")
    fields = [(name, pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    scores = [(name, pyarrow.float64()) for name in names]
    return pyarrow.schema(fields + scores, metadata={_VERSION_KEY: str(MANIFEST_VERSION).encode()})


def write_manifest(
    records: Iterable[ClipRecord], path: str | os.PathLike[str], *, score_names: Sequence[str] = ()
) -> int:
    """Write a manifest in one step; equal records make an equal file.

    Args:
        records: rows in the order in which they are written.
        path: file to write.
        score_names: names of the scores beside ``SCORES`` that the records have.

    Returns:
        The number of rows.

    Raises:
        ManifestError: a record has an unknown status or a score that was not announced.
        OSError: the file cannot be written.
    """
    import pyarrow
    import pyarrow.parquet

    columns = schema(score_names)
    known = set(columns.names) - set(COLUMNS)
    count = 0
    iterator = iter(records)
    with (
        atomic_path(path) as partial,
        pyarrow.parquet.ParquetWriter(partial, columns, compression="zstd") as writer,
    ):
        while batch := list(islice(iterator, _BATCH)):
            rows = [_to_row(record, known) for record in batch]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=columns), row_group_size=_BATCH)
            count += len(batch)
    return count


def _to_row(record: ClipRecord, known: set[str]) -> dict[str, Any]:
    if record.status not in STATUSES:
        raise ManifestError(
            f"{record.clip_id}: got status {record.status!r}, expected one of {', '.join(STATUSES)}"
        )
    unknown = sorted(set(record.scores) - known)
    if unknown:
        raise ManifestError(
            f"{record.clip_id}: score {unknown[0]!r} was not announced; add it to score_names"
        )
    row = {name: _clean(getattr(record, name)) for name in COLUMNS}
    return row | dict(record.scores)


def _clean(value: Any) -> Any:
    """Names of files need not be UTF-8, the columns are."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def read_manifest(path: str | os.PathLike[str]) -> Iterator[ClipRecord]:
    """Read a manifest row by row, in the file's order and in constant memory.

    Raises:
        FileNotFoundError: there is no such file.
        ManifestError: it is no manifest, or of a version that this code does not know.
    """
    with open_manifest(path) as file:
        score_names = [name for name in file.schema_arrow.names if name not in COLUMNS]
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                scores = {name: row.pop(name) for name in score_names}
                yield ClipRecord(
                    **row, scores={name: value for name, value in scores.items() if value is not None}
                )


@contextmanager
def open_manifest(path: str | os.PathLike[str]) -> Iterator[pyarrow.parquet.ParquetFile]:
    """Give a manifest as a Parquet file, for those who read some columns of very many rows.

    Raises:
        FileNotFoundError: there is no such file.
        ManifestError: it is no manifest, or of a version that this code does not know; or what is read from
            it within the block turns out to be damaged.
    """
    import pyarrow
    import pyarrow.parquet

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; `python -m data_pipeline run` writes it")
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ManifestError(f"{path}: not a Parquet file ({' '.join(str(error).split())})") from error
    with file:
        _check(file.schema_arrow, path)
        try:
            yield file
        except (pyarrow.ArrowException, OSError) as error:
            text = " ".join(str(error).split())
            raise ManifestError(f"{path}: damaged ({text}); run the curation again") from error


def _check(found: pyarrow.Schema, path: Path) -> None:
    import pyarrow

    version = (found.metadata or {}).get(_VERSION_KEY, b"none").decode("ascii", "replace")
    if version not in ("1", str(MANIFEST_VERSION)):
        raise ManifestError(
            f"{path}: got manifest version {version}, expected {MANIFEST_VERSION} (or 1); run the "
            "curation again"
        )
    for column in schema():
        if version == "1" and column.name in _ADDED_IN_2:
            continue
        if found.get_field_index(column.name) < 0 or found.field(column.name).type != column.type:
            raise ManifestError(f"{path}: has no column {column.name!r} of type {column.type}")
    for column in found:
        if column.name not in COLUMNS and column.type != pyarrow.float64():
            raise ManifestError(f"{path}: score {column.name!r} is {column.type}, expected double")
