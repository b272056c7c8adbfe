"""Decisions over a whole run: copies, shares, alarms; never a matter of order."""

from __future__ import annotations

import random

import pytest

from data_pipeline.resolve import Candidate, resolve
from data_pipeline.stages.dedup import DedupConfig


def word(generator: random.Random) -> str:
    return f"{generator.getrandbits(64):016x}"


def clip(
    name: str,
    quality: float | None,
    fingerprint: tuple[str, ...] | None = None,
    source: str | None = None,
) -> Candidate:
    words = fingerprint or tuple(word(random.Random(f"{name}{n}")) for n in range(5))
    return Candidate(clip_id=name, source_id=source or name, quality=quality, fingerprint=words)


def flipped(fingerprint: tuple[str, ...], bits: int) -> tuple[str, ...]:
    """Each word with that many bits changed."""
    return tuple(f"{int(item, 16) ^ ((1 << bits) - 1):016x}" for item in fingerprint)


def test_the_better_copy_stays_and_the_other_names_it() -> None:
    best = clip("b", 0.9)
    copies = [
        best,
        clip("a", 0.5, flipped(best.fingerprint, 2)),
        clip("c", None, flipped(best.fingerprint, 1)),
    ]
    found = resolve([*copies, clip("other", 0.1)], DedupConfig(), 100.0)
    assert {name: (drop.reason, drop.detail) for name, drop in found.drops.items()} == {
        "a": ("dedup: near-duplicate", "of b"),
        "c": ("dedup: near-duplicate", "of b"),
    }
    assert found.thresholds["near_duplicates"] == {"clips": 4, "dropped": 2}
    assert found.alarms == ()


def test_two_windows_of_one_take_are_no_copies() -> None:
    first = clip("a", 0.9, source="take")
    found = resolve([first, clip("b", 0.5, first.fingerprint, source="take")], DedupConfig(), 100.0)
    assert not found.drops


def test_copies_may_be_left_alone() -> None:
    clips = [clip("a", 0.9), clip("b", 0.5, clip("a", 0.9).fingerprint)]
    assert set(resolve(clips, DedupConfig(), 100.0).drops) == {"b"}
    assert not resolve(clips, DedupConfig(max_bits=None), 100.0).drops


def test_a_share_is_kept_of_what_is_left_after_copies() -> None:
    clips = [clip(f"{n:02d}", n / 20) for n in range(20)]
    clips.append(clip("copy", 0.01, clips[19].fingerprint))
    found = resolve(clips, DedupConfig(), 25.0)
    kept = {item.clip_id for item in clips} - set(found.drops)
    assert kept == {"15", "16", "17", "18", "19"}
    assert found.thresholds["quality"] == {"clips": 20, "top_percent": 25.0, "threshold": 0.75, "dropped": 15}
    assert found.drops["00"].detail == "quality 0.0000, the best 25% reach 0.7500"


def test_equal_scores_at_the_edge_are_all_kept() -> None:
    clips = [clip(f"{n}", 0.5) for n in range(4)] + [clip("high", 0.9), clip("low", 0.1)]
    assert set(resolve(clips, DedupConfig(), 30.0).drops) == {"low"}


@pytest.mark.parametrize("percent", [1.0, 34.0, 99.9])
def test_at_least_one_clip_stays(percent: float) -> None:
    assert not resolve([clip("only", 0.2)], DedupConfig(), percent).drops


def test_the_order_of_the_clips_makes_no_difference() -> None:
    generator = random.Random(5)
    clips = [clip(f"{n:03d}", generator.random()) for n in range(60)]
    clips += [clip(f"copy{n}", generator.random(), flipped(clips[n].fingerprint, n % 3)) for n in range(20)]
    first = resolve(clips, DedupConfig(), 50.0)
    for _ in range(3):
        generator.shuffle(clips)
        assert resolve(clips, DedupConfig(), 50.0) == first
    assert len(first.drops) == 20 + 30


def test_clips_without_scores_or_hashes_are_left_alone() -> None:
    clips = [Candidate(clip_id=name, source_id=name, quality=None, fingerprint=()) for name in "abc"]
    found = resolve(clips, DedupConfig(), 100.0)
    assert not found.drops
    assert found.thresholds["quality"]["threshold"] is None


def test_an_alarm_when_all_scores_agree() -> None:
    agree = resolve([clip(name, 0.5) for name in "abc"], DedupConfig(), 100.0)
    assert len(agree.alarms) == 1
    assert "all 3 quality scores are 0.500000" in agree.alarms[0]
    assert not resolve([clip("a", 0.5), clip("b", 0.5)], DedupConfig(), 100.0).alarms, (
        "two may agree by chance"
    )
    assert not resolve(
        [clip(name, 0.5 + 0.01 * n) for n, name in enumerate("abc")], DedupConfig(), 100.0
    ).alarms
