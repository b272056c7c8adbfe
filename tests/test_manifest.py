"""The manifest: what goes in comes out, equal rows make equal files, and other files are refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hummingbird.manifest import COLUMNS, SCORES, ClipRecord, ManifestError, read_manifest, write_manifest

KEPT = ClipRecord(
    clip_id="a-0000",
    source="a.mp4",
    status="kept",
    start_s=0.5,
    end_s=2.5,
    num_frames=48,
    fps=24.0,
    width=64,
    height=48,
    caption="a dog",
    original_caption="dog stock footage",
    caption_source="rules",
    scores={"quality": 0.75, "motion_mean": 2.0, "basics_contrast": 0.1},
    shard="shards/000000.tar",
    sha256="0" * 64,
)
DEAD = ClipRecord(clip_id="b", source="b.mp4", status="error", reason="shots: unreadable", detail="no frame")


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "manifest.parquet"
    assert write_manifest([KEPT, DEAD], path, score_names=["basics_contrast"]) == 2
    assert list(read_manifest(path)) == [KEPT, DEAD]
    table = pq.read_table(path)
    assert table.column_names == [*COLUMNS, *SCORES, "basics_contrast"]
    assert table["quality"].to_pylist() == [0.75, None], "a missing score is null, never a number"


def test_equal_rows_make_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_manifest(iter([KEPT, DEAD]), tmp_path / name, score_names=["basics_contrast"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_many_rows_stream(tmp_path: Path) -> None:
    rows = (ClipRecord(clip_id=f"{n:06d}", source="s", status="dropped", reason="r") for n in range(60_000))
    write_manifest(rows, tmp_path / "m")
    assert pq.ParquetFile(tmp_path / "m").num_row_groups == 2
    assert [record.clip_id for record in read_manifest(tmp_path / "m")] == [f"{n:06d}" for n in range(60_000)]


def test_an_empty_run_has_a_manifest(tmp_path: Path) -> None:
    assert write_manifest([], tmp_path / "m") == 0
    assert list(read_manifest(tmp_path / "m")) == []


def test_file_names_that_are_not_utf8_are_escaped(tmp_path: Path) -> None:
    write_manifest([ClipRecord(clip_id="x", source="caf\udce9.mp4", status="error")], tmp_path / "m")
    assert [record.source for record in read_manifest(tmp_path / "m")] == ["caf\\udce9.mp4"]


@pytest.mark.parametrize(
    ("record", "names", "message"),
    [
        (ClipRecord(clip_id="x", source="s", status="maybe"), [], "got status 'maybe', expected one of kept"),
        (
            ClipRecord(clip_id="x", source="s", status="kept", scores={"blur": 1.0}),
            [],
            "'blur' was not announced",
        ),
        (KEPT, ["status"], "'status' has the name of a column"),
    ],
)
def test_wrong_rows_are_refused_and_leave_no_file(
    tmp_path: Path, record: ClipRecord, names: list[str], message: str
) -> None:
    with pytest.raises(ManifestError, match=message):
        write_manifest([record], tmp_path / "m", score_names=names)
    assert not list(tmp_path.iterdir())


def test_files_of_version_1_are_read_with_defaults(tmp_path: Path) -> None:
    write_manifest([KEPT, DEAD], tmp_path / "m", score_names=["basics_contrast"])
    old = pq.read_table(tmp_path / "m").drop_columns(["caption_source", "caption_note"])
    pq.write_table(old.replace_schema_metadata({b"hummingbird.manifest_version": b"1"}), tmp_path / "old")
    assert list(read_manifest(tmp_path / "old")) == [replace(KEPT, caption_source="original"), DEAD]
    pq.write_table(old.replace_schema_metadata({b"hummingbird.manifest_version": b"2"}), tmp_path / "cut")
    with pytest.raises(ManifestError, match="no column 'caption_source'"):
        next(read_manifest(tmp_path / "cut"))


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(FileNotFoundError, match=r"m\.parquet: no such file"):
        next(read_manifest(path))
    path.write_bytes(b"PAR1 but not really")
    with pytest.raises(ManifestError, match="not a Parquet file"):
        next(read_manifest(path))
    pq.write_table(pa.table({"clip_id": ["x"]}), path)
    with pytest.raises(ManifestError, match="got manifest version none, expected 2"):
        next(read_manifest(path))
    versioned = {b"hummingbird.manifest_version": b"1"}
    pq.write_table(pa.table({"clip_id": ["x"]}).replace_schema_metadata(versioned), path)
    with pytest.raises(ManifestError, match="no column 'source' of type string"):
        next(read_manifest(path))
    write_manifest([KEPT], path, score_names=["basics_contrast"])
    cut = path.read_bytes()[:-50]
    path.write_bytes(cut)
    with pytest.raises(ManifestError, match="not a Parquet file"):
        next(read_manifest(path))
