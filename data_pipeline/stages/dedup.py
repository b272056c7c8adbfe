"""Near-duplicates: the same footage in another file, size or compression.

A clip's fingerprint is the perceptual hash of five frames spread over it: the signs of the 64 lowest
frequencies of the frame's cosine transform against their median. Two clips are copies when their hashes
differ by at most ``max_bits`` of 64 on average over the frames.

The search is not quadratic: clips are compared when they agree on all of 20 bits drawn from their
fingerprints, in one of 64 such draws (locality-sensitive hashing, Indyk and Motwani 1998). With independent
errors a pair 6 bits apart is missed with probability (1 - (1 - 6 / 64)^20)^64 = 1e-4, and one 4 bits apart
with less than 1e-8.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import cv2
import numpy as np
import pydantic

from data_pipeline.clip import Clip, Keep, View
from hummingbird.config import config_dataclass

__all__ = ["DedupConfig", "find_duplicates", "perceptual_hash"]

_NUM_FRAMES = 5
_FLAT = "0" * 16
"""The hash of a picture without structure; it counts neither for nor against two clips being copies."""

_MIN_STRUCTURED = 3
"""Clips with fewer frames with structure have no copies."""

_NUM_DRAWS, _NUM_BITS = 64, 20
_BLOCK = 2_000_000
"""Pairs compared at a time."""


@config_dataclass
class DedupConfig:
    """Search for near-duplicates.

    Attributes:
        max_bits: mean number of differing bits, of 64, up to which two clips are copies of each other; null
            keeps all.
    """

    max_bits: Annotated[int, pydantic.Field(ge=0, le=12)] | None = 6

    @property
    def name(self) -> str:
        return "dedup"

    @property
    def views(self) -> tuple[View, ...]:
        return (View(num_frames=_NUM_FRAMES, short_side=128),)

    def setup(self) -> None:
        """Nothing to load."""

    def process(self, clip: Clip) -> Keep:
        images = clip.frames(self.views[0]).images
        return Keep(fingerprint=tuple(perceptual_hash(image) for image in images))


def perceptual_hash(image: np.ndarray) -> str:
    """64 bits, as 16 hexadecimal digits, that survive scaling and compression; ``0000000000000000`` if flat.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    if small.std() < 2.0:
        return _FLAT
    waves = cv2.dct(small)[:8, :8].ravel()
    bits = waves > np.median(waves[1:])
    bits[0] = False  # the mean brightness, whose sign never changes
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def find_duplicates(
    fingerprints: Mapping[str, tuple[str, ...]],
    scores: Mapping[str, float],
    max_bits: int = 6,
    sources: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Group copies, keep the best of each group.

    Clips are gone through from the best score down (the name decides between equals). Each one that is not
    yet taken stays and takes all its copies; a copy of a copy is taken only if it is also a copy of one that
    stays, so a chain of small changes does not swallow clips that differ.

    Args:
        fingerprints: hashes by clip; only clips with equally many are compared.
        scores: higher is better; a clip without one comes last.
        max_bits: as ``DedupConfig``.
        sources: source by clip; clips of one source are then no copies of each other (two windows of one take
            before a still camera are 3 to 6 bits apart).

    Returns:
        The dropped clip -> the clip that stays instead.
    """
    order = sorted(fingerprints, key=lambda name: (-scores.get(name, float("-inf")), name))
    copies: dict[int, list[int]] = {}
    for count in sorted({len(hashes) for hashes in fingerprints.values()}):
        chosen = [rank for rank, name in enumerate(order) if len(fingerprints[name]) == count]
        words = np.array(
            [[int(word, 16) for word in fingerprints[order[rank]]] for rank in chosen], np.uint64
        )
        if (words != 0).sum(axis=1).max() < _MIN_STRUCTURED:
            continue
        for a, b in _close_pairs(words, max_bits):
            if sources is not None and sources[order[chosen[a]]] == sources[order[chosen[b]]]:
                continue
            copies.setdefault(chosen[a], []).append(chosen[b])
            copies.setdefault(chosen[b], []).append(chosen[a])
    taken: dict[int, int] = {}
    for rank in sorted(copies):
        if rank not in taken:
            for copy in copies[rank]:
                if copy > rank:
                    taken.setdefault(copy, rank)
    return {order[copy]: order[rank] for copy, rank in sorted(taken.items())}


def _close_pairs(words: np.ndarray, max_bits: int) -> list[tuple[int, int]]:
    """Pairs of rows ``a < b`` of ``(n, frames)`` uint64 that are copies.

    Rows that are equal are paired with the first of them and with what that is close to, not with each other:
    a thousand copies are no million pairs.
    """
    rows = np.flatnonzero((words != 0).sum(axis=1) >= _MIN_STRUCTURED)
    _, first, group = np.unique(words[rows], axis=0, return_index=True, return_inverse=True)
    leaders = rows[first[group.ravel()]]
    equals: dict[int, list[int]] = {}
    for leader, row in zip(leaders.tolist(), rows.tolist(), strict=True):
        equals.setdefault(leader, []).append(row)
    found = {(leader, row) for leader, members in equals.items() for row in members[1:]}
    rows = np.array(list(equals))
    rng = np.random.default_rng(0)
    for _ in range(_NUM_DRAWS):
        keys = np.zeros(len(rows), np.uint64)
        for position in rng.choice(64 * words.shape[1], _NUM_BITS, replace=False):
            bit = (words[rows, position // 64] >> np.uint64(position % 64)) & np.uint64(1)
            keys = (keys << np.uint64(1)) | bit
        by_key = np.argsort(keys, kind="stable")
        for a, b in _neighbours(keys[by_key], rows[by_key]):
            close = _within(words[a], words[b], max_bits)
            for first_row, second_row in zip(a[close].tolist(), b[close].tolist(), strict=True):
                better, worse = sorted((first_row, second_row))
                found.update((better, row) for row in equals[worse])
    return sorted(found)


def _neighbours(ordered: np.ndarray, members: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of members with equal keys, in blocks; ``ordered`` are their keys, sorted.

    The members ``step`` places apart, for growing steps, until no key is that frequent.
    """
    step = 1
    alive = np.arange(len(ordered))
    while True:
        alive = alive[alive + step < len(ordered)]
        alive = alive[ordered[alive] == ordered[alive + step]]
        if not len(alive):
            return
        for begin in range(0, len(alive), _BLOCK):
            left = alive[begin : begin + _BLOCK]
            yield members[left], members[left + step]
        step += 1


def _within(a: np.ndarray, b: np.ndarray, max_bits: int) -> np.ndarray:
    """Which rows are copies: by their mean distance over the frames that are flat in neither."""
    both = (a != 0) & (b != 0)
    bits = np.where(both, np.bitwise_count(a ^ b), 0).sum(axis=1)
    return (bits <= max_bits * both.sum(axis=1)) & (both.sum(axis=1) >= _MIN_STRUCTURED)
