"""Broken copies of real videos through the whole pipeline: no crash, no hang, an honest row for each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.pipeline import PipelineConfig, run
from hummingbird.config import load_config
from hummingbird.manifest import ClipRecord, read_manifest
from hummingbird.video_io import write_video
from tests.data_pipeline.conftest import TINY_CONFIG, pan
from tests.data_pipeline.fuzz import make_fuzzed


def check_fuzzed(sources: list[Path], num_files: int, folder: Path, *flags: str) -> list[ClipRecord]:
    """Curate broken copies of videos, and hold every row to what it may be."""
    for seed in range(num_files):
        make_fuzzed(sources[(seed // 10) % len(sources)], seed, folder / "input")
    names = {path.name for path in (folder / "input").iterdir()}
    assert len(names) == num_files
    output = folder / "out"
    places = ["--input", str(folder / "input"), "--output", str(output), "--ingest.any-suffix", "True"]
    run(load_config(PipelineConfig, TINY_CONFIG, [*places, *flags]))
    rows = list(read_manifest(output / "manifest.parquet"))
    assert {row.source for row in rows} == names, "every file has a row"
    for row in rows:
        if row.status == "error":
            assert row.reason, row
            assert row.detail, row
            assert str(folder) not in row.detail, row
        elif row.status == "dropped":
            assert row.reason, row
        else:
            assert row.shard is not None, row
            assert row.num_frames, row
            assert row.scores, row
        assert all(np.isfinite(value) for value in row.scores.values()), row
        assert "timeout" not in row.reason, row
        assert "died" not in row.reason, row
        # What is wrong with a file is the reader's to say; anything else is a bug of a stage.
        assert row.status != "error" or row.reason.endswith("unreadable"), row
    return rows


def test_forty_broken_files(tmp_path: Path) -> None:
    """Text, noise and emptiness never pass; some copies with a few wrong bits do."""
    sources = [
        write_video(pan(seed, num_frames=16), tmp_path / f"pan{seed}.mp4", fps=12) for seed in range(3)
    ]
    sources.append(write_video(pan(3, num_frames=16), tmp_path / "pan3.webm", fps=12))
    rows = check_fuzzed(sources, 40, tmp_path)
    statuses = {
        kind: {row.status for row in rows if f"_{kind}_" in row.source} for kind in ("text", "empty", "noise")
    }
    assert statuses == {"text": {"error"}, "empty": {"error"}, "noise": {"error"}}
    assert any(row.status == "kept" for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_five_hundred_broken_copies_of_real_clips(clips_dir: Path, tmp_path: Path) -> None:
    sources = sorted(path for path in clips_dir.iterdir() if path.suffix != ".csv")
    check_fuzzed(
        sources, 500, tmp_path, "--workers", "0", "--source-timeout-s", "300", "--clip-timeout-s", "300"
    )
