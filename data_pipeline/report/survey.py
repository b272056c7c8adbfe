"""What a manifest says as a whole, read column by column: some tens of bytes of memory for each row."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hummingbird.manifest import COLUMNS, STATUSES, ManifestError, open_manifest

if TYPE_CHECKING:
    import pyarrow

__all__ = ["Survey", "survey"]

_BATCH = 50_000
_SEED = 0
_OPTIONAL = ("caption_source", "caption_note")
"""Columns of manifests whose captions were rewritten."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A manifest's rows, counted.

    Attributes:
        path: the manifest.
        causes: (status, reason) of every kind of row, the frequent ones first.
        counts: rows of each cause.
        cause: ``(rows,)`` int32 index into ``causes``.
        is_clip: ``(rows,)`` bool; other rows stand for a source that gave no clip.
        is_rewritten: ``(rows,)`` bool; the caption is not the one that came with the source.
        has_note: ``(rows,)`` bool; the caption was to be rewritten, and a note says why it was not.
        num_sources: different sources.
        num_shards: different shards.
        num_captions: rows with a caption.
        seconds: length of the clips of each status.
        caption_sources, caption_notes: rows by where their caption is from, and by why it was not rewritten.
        scores: names of the columns of scores, in the file's order.
    """

    path: Path
    causes: tuple[tuple[str, str], ...]
    counts: tuple[int, ...]
    cause: np.ndarray
    is_clip: np.ndarray
    is_rewritten: np.ndarray
    has_note: np.ndarray
    num_sources: int
    num_shards: int
    num_captions: int
    seconds: Mapping[str, float]
    caption_sources: Mapping[str, int]
    caption_notes: Mapping[str, int]
    scores: tuple[str, ...]

    def count(self, status: str) -> int:
        """Rows of a status."""
        return sum(count for (one, _), count in zip(self.causes, self.counts, strict=True) if one == status)

    def has_status(self, status: str) -> np.ndarray:
        """``(rows,)`` bool."""
        wanted = np.array([one == status for one, _ in self.causes], bool)
        return wanted[self.cause] if len(wanted) else np.zeros(0, bool)

    def column(self, name: str) -> np.ndarray:
        """``(rows,)`` float64 of a column of numbers; NaN where there is none."""
        values = np.full(len(self.cause), np.nan)
        first = 0
        for batch in _batches(self.path, [name]):
            column = batch.column(0)
            last = first + len(column)
            values[first:last] = column.to_numpy(zero_copy_only=False)
            first = last
        return values

    def sample(self, chosen: np.ndarray, count: int) -> list[int]:
        """Numbers of up to ``count`` rows where ``chosen``, ``(rows,)`` bool, is true; the same each time."""
        rows = np.flatnonzero(chosen)
        if len(rows) > count:
            rows = np.random.default_rng(_SEED).choice(rows, count, replace=False)
        return [int(row) for row in np.sort(rows)]

    def rows(self, numbers: Collection[int]) -> dict[int, dict[str, Any]]:
        """Whole rows by number; text that a row lacks is empty, numbers that it lacks are None."""
        found: dict[int, dict[str, Any]] = {}
        wanted = np.array(sorted(set(numbers)), np.int64)
        first = 0
        with open_manifest(self.path) as file:
            for group in range(file.num_row_groups):
                last = first + file.metadata.row_group(group).num_rows
                here = wanted[(wanted >= first) & (wanted < last)]
                if len(here):
                    table = file.read_row_group(group).take(here - first)
                    table.validate(full=True)
                    found |= zip(here.tolist(), table.to_pylist(), strict=True)
                first = last
        texts = [name for name, kind in COLUMNS.items() if kind == "string"]
        blank = dict.fromkeys((*texts, *_OPTIONAL), "")
        return {
            number: blank
            | {name: value for name, value in row.items() if value is not None or name not in blank}
            for number, row in found.items()
        }


def survey(path: Path) -> Survey:
    """Count a manifest's rows.

    Raises:
        FileNotFoundError: there is no such file.
        ManifestError: it is no manifest, of an unknown version, or damaged.
    """
    import pyarrow
    import pyarrow.compute

    with open_manifest(path) as file:
        names = file.schema_arrow.names
    columns = ["source", "start_s", "end_s", "caption", "original_caption", "status", "reason", "shard"]
    columns += [name for name in _OPTIONAL if name in names]
    number_of: dict[tuple[str, str], int] = {}
    causes, clips, rewritten, noted, sources = [], [], [], [], []
    shards: set[str] = set()
    seconds = dict.fromkeys(STATUSES, 0.0)
    texts: dict[str, Counter[str]] = {name: Counter() for name in _OPTIONAL}
    num_captions = 0
    for batch in _batches(path, columns):
        cause = _causes(batch, number_of, path)
        start_s, end_s = (batch.column(name).to_numpy(zero_copy_only=False) for name in ("start_s", "end_s"))
        length_s = np.nan_to_num(end_s - start_s, nan=0.0, posinf=0.0, neginf=0.0)
        statuses = np.array([status for status, _ in number_of], object)[cause]
        for status in seconds:
            seconds[status] += float(length_s[statuses == status].sum())
        caption, original = batch.column("caption"), batch.column("original_caption")
        is_same = pyarrow.compute.equal(caption.fill_null(""), original.fill_null(""))
        num_captions += len(caption) - caption.null_count
        causes.append(cause)
        clips.append(batch.column("start_s").is_valid().to_numpy(zero_copy_only=False))
        rewritten.append(~is_same.to_numpy(zero_copy_only=False))
        note = batch.column("caption_note").fill_null("") if "caption_note" in columns else None
        noted.append(
            np.zeros(len(cause), bool) if note is None else note.to_numpy(zero_copy_only=False) != ""
        )
        sources.append(np.array([_hash(name) for name in _different(batch, "source")], np.uint64))
        shards.update(_different(batch, "shard"))
        for name in _OPTIONAL:
            if name in columns:
                for item in batch.column(name).value_counts().to_pylist():
                    texts[name][item["values"] or ""] += item["counts"]
    order = sorted(number_of, key=lambda cause: (STATUSES.index(cause[0]), cause[1]))
    cause = np.concatenate(causes) if causes else np.zeros(0, np.int32)
    counts = np.bincount(cause, minlength=len(number_of))
    order.sort(key=lambda cause: -counts[number_of[cause]])
    place = np.empty(len(order), np.int32)
    for index, item in enumerate(order):
        place[number_of[item]] = index
    return Survey(
        path=path,
        causes=tuple(order),
        counts=tuple(int(counts[number_of[item]]) for item in order),
        cause=place[cause],
        is_clip=np.concatenate(clips) if clips else np.zeros(0, bool),
        is_rewritten=np.concatenate(rewritten) if rewritten else np.zeros(0, bool),
        has_note=np.concatenate(noted) if noted else np.zeros(0, bool),
        num_sources=len(np.unique(np.concatenate(sources))) if sources else 0,
        num_shards=len(shards - {""}),
        num_captions=num_captions,
        seconds=seconds,
        caption_sources=dict(sorted(texts["caption_source"].items())),
        caption_notes=dict(sorted(texts["caption_note"].items())),
        scores=tuple(name for name in names if name not in (*COLUMNS, *_OPTIONAL)),
    )


def _causes(batch: pyarrow.RecordBatch, number_of: dict[tuple[str, str], int], path: Path) -> np.ndarray:
    """``(rows,)`` int32: the number of each row's status and reason; new ones are added."""
    encoded = [batch.column(name).fill_null("").dictionary_encode() for name in ("status", "reason")]
    indices = [column.indices.to_numpy() for column in encoded]
    statuses, reasons = (column.dictionary.to_pylist() for column in encoded)
    unknown = sorted(set(statuses) - set(STATUSES))
    if unknown:
        raise ManifestError(f"{path}: got status {unknown[0]!r}, expected one of {', '.join(STATUSES)}")
    pairs = indices[0].astype(np.int64) * max(len(reasons), 1) + indices[1]
    different, inverse = np.unique(pairs, return_inverse=True)
    numbers = [
        number_of.setdefault((statuses[pair // len(reasons)], reasons[pair % len(reasons)]), len(number_of))
        for pair in different.tolist()
    ]
    return np.array(numbers, np.int32)[inverse.ravel()]


def _different(batch: pyarrow.RecordBatch, name: str) -> list[str]:
    values: list[str] = batch.column(name).fill_null("").unique().to_pylist()
    return values


def _hash(name: str) -> int:
    """8 bytes instead of a path, so that ten million fit."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")


def _batches(path: Path, columns: list[str]) -> Iterator[pyarrow.RecordBatch]:
    with open_manifest(path) as file:
        for batch in file.iter_batches(batch_size=_BATCH, columns=columns):
            batch.validate(full=True)  # text that is no UTF-8 is found here, not where it is used
            if batch.schema.names != columns:
                batch = batch.select(columns)
            yield batch
