"""The quality stage: scores by name, thresholds, and no score where there is none."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_pipeline.clip import Clip, ClipSpec, Drop, Keep
from data_pipeline.stages import quality
from data_pipeline.stages.quality import QualityConfig, QualityError
from data_pipeline.vqa.scenes import procedural_shot
from hummingbird.video_io import write_video

NUM_FRAMES, FPS = 20, 25


def write_clip(frames: np.ndarray, path: Path) -> ClipSpec:
    write_video(frames, path, FPS)
    return ClipSpec(
        clip_id=path.stem,
        source_id=path.name,
        path=path,
        start_s=0.0,
        end_s=len(frames) / FPS,
        num_frames=len(frames),
        fps=FPS,
        width=frames.shape[2],
        height=frames.shape[1],
    )


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> ClipSpec:
    return write_clip(
        procedural_shot(NUM_FRAMES, seed=5).frames, tmp_path_factory.mktemp("clips") / "clean.mp4"
    )


@pytest.fixture(scope="module")
def blurred(tmp_path_factory: pytest.TempPathFactory) -> ClipSpec:
    frames = procedural_shot(NUM_FRAMES, seed=5).frames
    soft = np.stack([cv2.GaussianBlur(image, (0, 0), 4) for image in frames])
    return write_clip(soft, tmp_path_factory.mktemp("clips") / "blurred.mp4")


def run(spec: ClipSpec, stage: QualityConfig) -> Keep | Drop:
    stage.setup()
    return stage.process(Clip(spec, stage.views))


def test_scores_are_named_repeatable_and_fall_with_damage(clean: ClipSpec, blurred: ClipSpec) -> None:
    stage = QualityConfig()
    verdict = run(clean, stage)
    assert isinstance(verdict, Keep)
    assert set(verdict.scores) == {"quality", "quality_nano_vqa"}
    assert 0 < verdict.scores["quality"] < 1
    assert run(clean, stage) == verdict
    assert run(blurred, stage).scores["quality"] < verdict.scores["quality"] - 0.2


def test_min_score_drops_with_the_measured_value(clean: ClipSpec, blurred: ClipSpec) -> None:
    scores = [run(spec, QualityConfig()).scores["quality"] for spec in (clean, blurred)]
    stage = QualityConfig(min_score=sum(scores) / 2)
    assert isinstance(run(clean, stage), Keep)
    verdict = run(blurred, stage)
    assert isinstance(verdict, Drop)
    assert verdict.reason == "quality: low score"
    assert verdict.detail == f"quality {scores[1]:.3f} is below min_score {stage.min_score:g}"
    assert verdict.scores["quality"] == scores[1]


def test_without_a_model_nothing_is_decoded_or_scored(clean: ClipSpec) -> None:
    stage = QualityConfig(model="none")
    assert stage.views == ()
    assert run(clean, stage) == Keep()


class _Broken:
    """A judge that returns no number: the stage must not pass it on."""

    def __init__(self, settings: QualityConfig) -> None:
        del settings

    def score(self, clip: Clip) -> Mapping[str, float]:
        return {"quality": float("nan")}


def test_a_score_that_is_no_number_is_an_error(clean: ClipSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(quality.JUDGES, "nano-vqa", _Broken)
    quality._judge.cache_clear()
    try:
        with pytest.raises(QualityError, match=r"quality is nan, expected a number in \[0, 1\]"):
            run(clean, QualityConfig())
    finally:
        quality._judge.cache_clear()


@pytest.mark.parametrize(
    "values",
    [{"min_score": 1.5}, {"top_percent": 0.0}, {"model": "none", "min_score": 0.5}, {"model": "dover"}],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        QualityConfig(**values)  # type: ignore[arg-type]


def test_settings_travel_between_processes() -> None:
    stage = QualityConfig(min_score=0.25)
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert hash(stage) == hash(QualityConfig(min_score=0.25))
