"""Quality: a no-reference score of each clip, and the two ways to choose by it.

``min_score`` is judged here, clip by clip. ``top_percent`` needs the scores of all clips and is resolved
once they are known. A model that cannot score a clip raises; there is no score that stands for a failure.

Another model is one class with ``views`` and ``score``, and one line in ``SCORERS``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import pydantic

from data_pipeline.clip import Clip, Drop, Keep, View
from data_pipeline.vqa.features import NUM_FRAMES, NUM_TEMPORAL_FRAMES, TEMPORAL_SHORT_SIDE, clip_features
from hummingbird.config import config_dataclass

if TYPE_CHECKING:
    from data_pipeline.vqa.model import NanoVqa

__all__ = ["SCORERS", "NanoVqaScorer", "QualityConfig", "QualityError", "QualityScorer"]


class QualityError(ValueError):
    """A clip that has no score; the message is one line that says why."""


class QualityScorer(Protocol):
    """What a quality model offers; making one loads its weights."""

    views: ClassVar[tuple[View, ...]]

    def score(self, clip: Clip) -> Mapping[str, float]:
        """Scores by the manifest's names, in [0, 1], higher is better; ``quality`` is always among them."""
        ...


class NanoVqaScorer:
    """The embedded model: eight full-size frames for the picture, consecutive small ones for the motion."""

    views: ClassVar[tuple[View, ...]] = (
        View(num_frames=NUM_FRAMES),
        View(short_side=TEMPORAL_SHORT_SIDE, max_frames=NUM_TEMPORAL_FRAMES),
    )

    def __init__(self) -> None:
        from data_pipeline.vqa.model import load_nano_vqa

        self._model: NanoVqa = load_nano_vqa()

    def score(self, clip: Clip) -> dict[str, float]:
        """See ``QualityScorer``."""
        full, small = (clip.frames(view) for view in self.views)
        quality = self._model.score(clip_features(full.images, small.images, small.times_s))
        return {"quality": quality, "quality_nano_vqa": quality}


SCORERS: dict[str, type[QualityScorer]] = {"nano-vqa": NanoVqaScorer}


@cache
def _scorer(model: str) -> QualityScorer:
    return SCORERS[model]()


@config_dataclass
class QualityConfig:
    """Settings of the quality stage.

    Attributes:
        model: which model scores; ``none`` leaves clips without scores.
        min_score: clips with ``quality`` below are dropped; 0 keeps all.
        top_percent: of the clips that passed everything else, keep this share by ``quality``; 100 keeps all.
    """

    model: Literal["nano-vqa", "none"] = "nano-vqa"
    min_score: float = pydantic.Field(default=0.0, ge=0, le=1)
    top_percent: float = pydantic.Field(default=100.0, gt=0, le=100)

    @pydantic.model_validator(mode="after")
    def _thresholds_need_scores(self) -> QualityConfig:
        if self.model == "none" and (self.min_score > 0 or self.top_percent < 100):
            raise ValueError(
                "min_score and top_percent choose by a score; set a model, or leave them at 0 and 100"
            )
        return self

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "quality"

    @property
    def views(self) -> tuple[View, ...]:
        """Frames that the model looks at."""
        return SCORERS[self.model].views if self.model != "none" else ()

    def setup(self) -> None:
        """Load the model, once per process.

        Raises:
            VqaError: its weights cannot be used.
        """
        if self.model != "none":
            _scorer(self.model)

    def process(self, clip: Clip) -> Keep | Drop:
        """Score a clip.

        Raises:
            VideoError: the clip can no longer be decoded.
            QualityError: a score is not a number in [0, 1].
            VqaError: the clip cannot be scored.
        """
        if self.model == "none":
            return Keep()
        scores = dict(_scorer(self.model).score(clip))
        for name, score in scores.items():
            if not (math.isfinite(score) and 0 <= score <= 1):
                raise QualityError(f"{self.model}: {name} is {score}, expected a number in [0, 1]")
        if scores["quality"] < self.min_score:
            detail = f"quality {scores['quality']:.3f} is below min_score {self.min_score:g}"
            return Drop(reason="quality: low score", detail=detail, scores=scores)
        return Keep(scores=scores)
