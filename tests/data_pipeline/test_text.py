"""The text stage on writing that was rendered over procedural and real pictures."""

from __future__ import annotations

import csv
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import pytest

from data_pipeline.clip import Clip, ClipSpec, Drop, Keep
from data_pipeline.pipeline import PipelineConfig
from data_pipeline.stages import text
from data_pipeline.stages.text import TextConfig, TextError, text_mask
from data_pipeline.vqa.scenes import procedural_shot
from hummingbird.video_io import iter_frames
from tests.data_pipeline.test_quality import write_clip

CAPTION = "SUBSCRIBE NOW for more videos"
needs_ocr = pytest.mark.usefixtures("ocr")


@pytest.fixture(scope="module")
def ocr() -> None:
    for name in ("rapidocr", "onnxruntime"):
        pytest.importorskip(name, reason="needs the extra ocr")


def write_on(image: np.ndarray, line: str, size: int, place: tuple[int, int]) -> tuple[np.ndarray, float]:
    """A line of text over a picture, and the share of the picture that it covers."""
    picture = PIL.Image.fromarray(image)
    draw = PIL.ImageDraw.Draw(picture)
    font = PIL.ImageFont.load_default(size)
    draw.text(place, line, fill=(255, 255, 255), font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    left, top, right, bottom = draw.textbbox(place, line, font=font, stroke_width=2)
    width, height = picture.size
    area = max(0, min(right, width) - left) * max(0, min(bottom, height) - top)
    return np.asarray(picture), area / (width * height)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    """12 frames without writing, of 16:9."""
    return procedural_shot(12, seed=5).frames


def verdict(spec: ClipSpec, **settings: Any) -> Keep | Drop:
    stage = TextConfig(model="rapidocr", **settings)
    stage.setup()
    return stage.process(Clip(spec, stage.views))


@needs_ocr
def test_rendered_text_is_measured_and_plain_pictures_have_none(frames: np.ndarray, tmp_path: Path) -> None:
    height, width = frames.shape[1:3]
    written = [write_on(image, CAPTION, height // 10, (width // 20, height // 2)) for image in frames]
    covered = written[0][1]
    assert covered > 0.03
    plain = verdict(write_clip(frames, tmp_path / "plain.mp4"))
    assert isinstance(plain, Keep)
    assert plain.scores == {"text_area": 0.0, "text_watermark": 0.0}
    spec = write_clip(np.stack([image for image, _ in written]), tmp_path / "written.mp4")
    found = verdict(spec)
    assert isinstance(found, Drop)
    assert found.reason == "text: too much"
    assert found.detail.endswith("is above 0.03")
    # The boxes leave some room around the letters.
    assert 0.8 * covered < found.scores["text_area"] < 1.8 * covered
    assert verdict(spec) == found
    assert isinstance(verdict(spec, max_area=0.5), Keep)


@needs_ocr
def test_a_watermark_stays_where_it_is_and_subtitles_do_not(frames: np.ndarray, tmp_path: Path) -> None:
    height, width = frames.shape[1:3]
    place = (width // 20, height // 20)
    marked = np.stack([write_on(image, "example.com", height // 14, place)[0] for image in frames])
    moving = [
        write_on(image, "example.com", height // 14, (width // 20, int(height * (0.05 + 0.07 * index))))[0]
        for index, image in enumerate(frames)
    ]
    limits = {"max_area": None, "max_watermark": 0.002}
    found = verdict(write_clip(marked, tmp_path / "marked.mp4"), **limits)
    assert isinstance(found, Drop)
    assert found.reason == "text: watermark"
    moved = verdict(write_clip(np.stack(moving), tmp_path / "moving.mp4"), **limits)
    assert isinstance(moved, Keep)
    assert moved.scores["text_area"] > 0.5 * found.scores["text_area"]
    assert moved.scores["text_watermark"] == 0.0


@needs_ocr
def test_rendered_text_over_real_clips(clips_dir: Path) -> None:
    with (clips_dir / "MANIFEST.csv").open(newline="") as file:
        names = [next(iter(row.values())) for row in csv.DictReader(file)]
    judged = 0
    for name in names:
        if Path(name).stem not in (
            "flower_timelapse",
            "highway_drive",
            "friday_office_talk",
            "phone_zoom_in_out",
        ):
            continue
        frame = next(frame for index, frame in enumerate(iter_frames(clips_dir / name)) if index == 20)
        image = frame.rgb(short_side=360)
        assert not text_mask(image, 0.7, 2).any(), name
        written, covered = write_on(image, CAPTION, 30, (20, image.shape[0] // 2))
        share = text_mask(written, 0.7, 2).mean()
        assert 0.8 * covered < share < 1.8 * covered, name
        judged += 1
    assert judged == 4


@needs_ocr
def test_models_come_with_the_package_or_the_stage_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import rapidocr

    text._reader.cache_clear()
    monkeypatch.setattr(rapidocr, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(TextError, match=r"has 0 files \*_det_\*\.onnx, expected one"):
        TextConfig(model="rapidocr").setup()
    text._reader.cache_clear()


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    text._reader.cache_clear()
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(ImportError, match=r"pip install 'hummingbird-t2v\[ocr\]'"):
        TextConfig(model="rapidocr").setup()
    text._reader.cache_clear()


def test_off_by_default_and_a_stage_of_every_run(frames: np.ndarray, tmp_path: Path) -> None:
    stage = TextConfig()
    assert stage.views == ()
    stage.setup()
    assert stage.process(Clip(write_clip(frames[:4], tmp_path / "x.mp4"), ())) == Keep()
    assert [item.name for item in PipelineConfig().stages] == ["basics", "motion", "text", "quality", "dedup"]
    assert pickle.loads(pickle.dumps(stage)) == stage
