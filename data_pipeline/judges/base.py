"""What every judge offers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from data_pipeline.clip import Clip

__all__ = ["UNIT_SCORES", "Judge", "QualityError", "to_unit"]

UNIT_SCORES = ("quality", "quality_technical", "quality_aesthetic")
"""Scores in [0, 1], higher is better; judges may add raw ones under names of their own."""


class QualityError(ValueError):
    """A clip that has no score, or a judge that cannot be used; the message is one line that says why."""


class Judge(Protocol):
    """A loaded model."""

    def score(self, clip: Clip) -> Mapping[str, float]:
        """Scores by the manifest's names; ``quality`` is always among them.

        Raises:
            QualityError: the clip cannot be scored. There is no score that stands for a failure.
        """
        ...


def to_unit(value: float, low: float, high: float, who: str) -> float:
    """``low`` to ``high`` onto 0 to 1.

    Raises:
        QualityError: the value is no finite number in that range: it is not cut off to fit, because a range
            that was set wrong would then look like a score.
    """
    if not math.isfinite(value):
        raise QualityError(f"{who} is {value}, expected a finite number; the clip has no score")
    if not low <= value <= high:
        raise QualityError(
            f"{who} is {value:g}, expected {low:g} to {high:g}; set low and high to the model's range"
        )
    return (value - low) / (high - low)
