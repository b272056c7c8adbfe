"""From the scores of sixteen dimensions to Quality, Semantic and Total, as the leaderboard counts them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["DIMENSIONS", "QUALITY_WEIGHT", "SEMANTIC_WEIGHT", "Dimension", "normalize", "totals"]

QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0
"""Total = (4 Quality + Semantic) / 5."""


@dataclass(frozen=True)
class Dimension:
    """How a dimension enters the totals.

    Attributes:
        group: ``quality`` or ``semantic``.
        low: raw score that counts as 0.
        high: raw score that counts as 1; some models lie above.
        weight: within its group.
    """

    group: str
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


DIMENSIONS: dict[str, Dimension] = {
    "subject_consistency": Dimension("quality", low=0.1462),
    "background_consistency": Dimension("quality", low=0.2615),
    "temporal_flickering": Dimension("quality", low=0.6293),
    "motion_smoothness": Dimension("quality", low=0.706, high=0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
    "object_class": Dimension("semantic"),
    "multiple_objects": Dimension("semantic"),
    "human_action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial_relationship": Dimension("semantic"),
    "scene": Dimension("semantic", high=0.8222),
    "appearance_style": Dimension("semantic", low=0.0009, high=0.2855),
    "temporal_style": Dimension("semantic", high=0.364),
    "overall_consistency": Dimension("semantic", high=0.364),
}
"""Name -> its ends and weight.

Reference:
    VBench's README, "How to Calculate Total Score", and the constants that it names (Apache-2.0).
"""


def normalize(dimension: str, score: float) -> float:
    """Where a raw score lies between the dimension's ends; 0 to 1, beyond where the score is.

    Raises:
        ValueError: no such dimension, or a score that is not a finite number.
    """
    if dimension not in DIMENSIONS:
        raise ValueError(f"dimension: got {dimension!r}, expected one of {', '.join(DIMENSIONS)}")
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        raise ValueError(f"{dimension}: got score {score!r}, expected a finite number")
    ends = DIMENSIONS[dimension]
    return (score - ends.low) / (ends.high - ends.low)


def totals(scores: Mapping[str, float]) -> dict[str, float | None]:
    """Quality, Semantic and Total of a model.

    Args:
        scores: dimension -> raw score in [0, 1], as the ``vbench`` package gives them.

    Returns:
        ``quality``, ``semantic`` and ``total`` in [0, 1]; None where a dimension that it needs is missing: a
        mean over the rest would be another quantity under the same name.

    Raises:
        ValueError: no such dimension, or a score that is not a finite number.
    """
    normalized = {name: normalize(name, score) for name, score in scores.items()}
    quality = _mean(normalized, "quality")
    semantic = _mean(normalized, "semantic")
    total = None
    if quality is not None and semantic is not None:
        total = combine(quality, semantic)
    return {"quality": quality, "semantic": semantic, "total": total}


def combine(quality: float, semantic: float) -> float:
    """The Total of two means, in their unit."""
    return (QUALITY_WEIGHT * quality + SEMANTIC_WEIGHT * semantic) / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)


def _mean(normalized: Mapping[str, float], group: str) -> float | None:
    members = {name: ends.weight for name, ends in DIMENSIONS.items() if ends.group == group}
    if not members.keys() <= normalized.keys():
        return None
    return sum(weight * normalized[name] for name, weight in members.items()) / sum(members.values())
