"""Quality: scores of each clip by a judge, and the two ways to choose by them.

``min_score`` is judged here, clip by clip. ``top_percent`` needs the scores of all clips and is resolved
once they are known. A judge that cannot score a clip raises; there is no score that stands for a failure.

Another judge is one file in ``data_pipeline.judges``, one line in ``JUDGES`` and one in ``QualityConfig``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Literal, Protocol, cast

import pydantic

from data_pipeline.clip import Clip, Drop, Keep, View
from data_pipeline.judges.base import UNIT_SCORES, Judge, QualityError
from data_pipeline.judges.clip_aesthetic import ClipAestheticConfig, ClipAestheticJudge
from data_pipeline.judges.dover import DoverConfig, DoverJudge
from data_pipeline.judges.nano import VIEWS as NANO_VIEWS
from data_pipeline.judges.nano import NanoVqaJudge
from data_pipeline.judges.onnx_model import OnnxConfig, OnnxJudge
from hummingbird.config import config_dataclass

__all__ = ["JUDGES", "QualityConfig", "QualityError"]


class _JudgeSettings(Protocol):
    @property
    def views(self) -> tuple[View, ...]: ...

    @property
    def gives(self) -> frozenset[str]: ...

    def missing(self) -> str | None: ...


@config_dataclass
class QualityConfig:
    """Settings of the quality stage.

    Attributes:
        model: which judge scores; ``none`` leaves clips without scores.
        min_score: clips with ``quality`` below are dropped; 0 keeps all.
        min_technical, min_aesthetic: the same for judges that tell the two apart.
        top_percent: of the clips that passed everything else, keep this share by ``quality``; 100 keeps all.
        dover: of the models ``dover`` and ``dover-mobile``.
        onnx: of the model ``onnx``.
        clip_aesthetic: of the model ``clip-aesthetic``.
    """

    model: Literal["nano-vqa", "dover", "dover-mobile", "onnx", "clip-aesthetic", "none"] = "nano-vqa"
    min_score: float = pydantic.Field(default=0.0, ge=0, le=1)
    min_technical: float = pydantic.Field(default=0.0, ge=0, le=1)
    min_aesthetic: float = pydantic.Field(default=0.0, ge=0, le=1)
    top_percent: float = pydantic.Field(default=100.0, gt=0, le=100)
    dover: DoverConfig = DoverConfig()
    onnx: OnnxConfig = OnnxConfig()
    clip_aesthetic: ClipAestheticConfig = ClipAestheticConfig()

    @pydantic.model_validator(mode="after")
    def _thresholds_need_scores(self) -> QualityConfig:
        chooses = max(self.min_score, self.min_technical, self.min_aesthetic) > 0 or self.top_percent < 100
        if self.model == "none" and chooses:
            raise ValueError(
                "min_score and top_percent choose by a score; set a model, or leave them at 0 and 100"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _judge_has_its_files(self) -> QualityConfig:
        section = _SECTIONS.get(self.model)
        missing = self._judge_settings.missing() if self._judge_settings is not None else None
        if missing is not None:
            raise ValueError(
                f"model {self.model} needs quality.{section}.{missing}; give the path of your file"
            )
        gives = self._judge_settings.gives if self._judge_settings is not None else {"quality"}
        for name, setting in _THRESHOLDS.items():
            if getattr(self, setting) > 0 and name not in gives:
                raise ValueError(
                    f"{setting} chooses by {name}, which {self.model} does not give; leave it at 0"
                )
        return self

    @property
    def _judge_settings(self) -> _JudgeSettings | None:
        section = _SECTIONS.get(self.model)
        return None if section is None else cast("_JudgeSettings", getattr(self, section))

    @property
    def name(self) -> str:
        """Name of the stage."""
        return "quality"

    @property
    def views(self) -> tuple[View, ...]:
        """Frames that the judge looks at."""
        if self._judge_settings is not None:
            return self._judge_settings.views
        return NANO_VIEWS if self.model == "nano-vqa" else ()

    def setup(self) -> None:
        """Load the judge, once per process.

        Raises:
            ValueError: its files cannot be used.
            OSError: they cannot be read.
            ImportError: a library that it needs is not installed.
        """
        if self.model != "none":
            _judge(self)

    def process(self, clip: Clip) -> Keep | Drop:
        """Score a clip.

        Raises:
            VideoError: the clip can no longer be decoded.
            QualityError: the clip cannot be scored, or a score is not a number in [0, 1].
            VqaError, DoverError: as they say.
        """
        if self.model == "none":
            return Keep()
        scores = dict(_judge(self).score(clip))
        for name, score in scores.items():
            if not math.isfinite(score) or (name in UNIT_SCORES and not 0 <= score <= 1):
                raise QualityError(f"{self.model}: {name} is {score}, expected a number in [0, 1]")
        for name, setting in _THRESHOLDS.items():
            limit = getattr(self, setting)
            if limit > 0 and scores[name] < limit:
                detail = f"{name} {scores[name]:.3f} is below {setting} {limit:g}"
                return Drop(reason=f"quality: low {_WORDS[name]}", detail=detail, scores=scores)
        return Keep(scores=scores)


_THRESHOLDS = {
    "quality": "min_score",
    "quality_technical": "min_technical",
    "quality_aesthetic": "min_aesthetic",
}
_WORDS = {"quality": "score", "quality_technical": "technical", "quality_aesthetic": "aesthetic"}
_SECTIONS = {"dover": "dover", "dover-mobile": "dover", "onnx": "onnx", "clip-aesthetic": "clip_aesthetic"}
"""Where the settings of a judge are; ``nano-vqa`` has none."""

JUDGES: dict[str, Callable[[QualityConfig], Judge]] = {
    "nano-vqa": lambda settings: NanoVqaJudge(),
    "dover": lambda settings: DoverJudge(settings.dover, "dover"),
    "dover-mobile": lambda settings: DoverJudge(settings.dover, "dover-mobile"),
    "onnx": lambda settings: OnnxJudge(settings.onnx),
    "clip-aesthetic": lambda settings: ClipAestheticJudge(settings.clip_aesthetic),
}


@cache
def _judge(settings: QualityConfig) -> Judge:
    return JUDGES[settings.model](settings)
