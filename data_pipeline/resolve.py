"""Decisions that need all clips at once: near-duplicates, and thresholds that are shares of the run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data_pipeline.clip import Drop
from data_pipeline.stages.dedup import DedupConfig, find_duplicates

__all__ = ["Candidate", "Resolution", "resolve"]

_EQUAL = 1e-6
_MIN_FOR_ALARM = 3


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A clip that every stage kept.

    Attributes:
        quality: higher is better; None where no model scored it.
        fingerprint: of the near-duplicate stage; empty where it gave none.
    """

    clip_id: str
    source_id: str
    quality: float | None
    fingerprint: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Resolution:
    """What was decided.

    Attributes:
        drops: verdicts by clip.
        thresholds: figures for ``thresholds.json``.
        alarms: lines about scores that cannot be right.
    """

    drops: dict[str, Drop]
    thresholds: dict[str, Any]
    alarms: tuple[str, ...]


def resolve(candidates: Sequence[Candidate], dedup: DedupConfig, top_percent: float) -> Resolution:
    """Drop the worse copies of near-duplicates, then all but the best ``top_percent`` of the rest.

    The order of the candidates makes no difference.

    Args:
        candidates: clips with their scores.
        dedup: settings of the near-duplicate stage.
        top_percent: share of the clips to keep by quality, in (0, 100]; those equal to the last one stay.
    """
    candidates = sorted(candidates, key=lambda candidate: candidate.clip_id)
    scores = {item.clip_id: item.quality for item in candidates if item.quality is not None}
    fingerprints = {item.clip_id: item.fingerprint for item in candidates if item.fingerprint}
    sources = {item.clip_id: item.source_id for item in candidates}
    copies = {}
    if dedup.max_bits is not None:
        copies = find_duplicates(fingerprints, scores, dedup.max_bits, sources)
    drops = {
        loser: Drop(reason="dedup: near-duplicate", detail=f"of {winner}") for loser, winner in copies.items()
    }
    unique = [item for item in candidates if item.clip_id not in drops]
    qualities = sorted((item.quality for item in unique if item.quality is not None), reverse=True)
    threshold = None
    if top_percent < 100 and qualities:
        threshold = qualities[math.ceil(len(qualities) * top_percent / 100) - 1]
        for item in unique:
            if item.quality is not None and item.quality < threshold:
                drops[item.clip_id] = Drop(
                    reason="quality: below top percent",
                    detail=f"quality {item.quality:.4f}, the best {top_percent:g}% reach {threshold:.4f}",
                )
    alarms = []
    if len(qualities) >= _MIN_FOR_ALARM and qualities[0] - qualities[-1] < _EQUAL:
        alarms.append(
            f"all {len(qualities)} quality scores are {qualities[0]:.6f}; a model that cannot tell clips "
            "apart is broken or sees no pictures; check quality.model before using this data"
        )
    thresholds = {
        "near_duplicates": {"clips": len(candidates), "dropped": len(copies)},
        "quality": {
            "clips": len(qualities),
            "top_percent": top_percent,
            "threshold": threshold,
            "dropped": len(drops) - len(copies),
        },
    }
    return Resolution(drops=drops, thresholds=thresholds, alarms=tuple(alarms))
