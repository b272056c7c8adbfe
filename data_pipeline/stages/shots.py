"""Shots: where one take ends and the next begins, found in one streaming pass over a source.

Three steps. PySceneDetect's ``AdaptiveDetector`` proposes cuts: a change between two frames that stands out
from the changes around it, which a steady pan does not. Each proposal is then checked against the frames
around it, because flashes, blinks, lens switches and dropped frames stand out as well: when the picture from
just before the cut comes back just after it, or can be laid over it by a shift, turn and zoom, the take goes
on. Last, stretches of black or white and dissolves separate shots and belong to none. A dissolve is a stretch
whose pictures are mixtures of the ones at its ends, with shares that move steadily from the one to the other.

Everything counts frames and looks up their real times, so a variable frame rate changes nothing.
"""

from __future__ import annotations

import itertools
from array import array
from collections import deque
from contextlib import closing
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
import pydantic
from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode

from data_pipeline.clip import ClipSpec, Source, clip_id
from hummingbird.config import config_dataclass
from hummingbird.video_io import VideoError, iter_frames

__all__ = ["ShotDetector", "ShotsConfig"]

_WINDOW = 2
"""Frames on each side of a change that it has to stand out from."""

_WEIGHTS = ContentDetector.Components(delta_hue=0.0, delta_sat=1.0, delta_lum=1.0, delta_edges=0.0)
"""Hue is left out: that of dark and grey pixels is noise, and fades and dark scenes would be full of cuts."""

_LIFT = 64
"""Added to every pixel, with the range scaled to make room: else the saturation of dark pixels is noise,
too."""

_THUMBNAIL = (32, 18)
_BLACK, _WHITE = 32, 235
"""A frame is blank when all but 1% of its luma lies below the one or above the other."""

_SAME_CORRELATION = 0.85
"""Thumbnails of unrelated scenes correlate up to 0.66 (400 random pairs), neighbouring frames mostly above
0.9."""

_MIN_MATCHES, _MIN_SPREAD = 12, 0.1
"""Two frames show one scene when so many feature matches agree on one similarity and span this share of the
picture. Unrelated frames reached 12 matches spanning 0.00; a logo that survives a cut spans little, too."""


_DISSOLVES_S = (0.3, 0.5, 0.8)
"""Spans over which a dissolve is looked for; longer ones are met by several short spans."""

_END_CORRELATION, _MIN_END_CONTRAST = 0.7, 6.0
_MIN_MIXTURE = 0.95
"""Share of the variance of the pictures between that a mixture of both ends explains. On single takes 0.94
was met nowhere (11 takes), 0.9 by a bird's flapping wings."""


@config_dataclass
class ShotsConfig:
    """How sources are split.

    Attributes:
        short_side: frames are looked at with this many pixels on the shorter side.
        cut_ratio: a cut changes the picture this many times as much as the frames around it do.
        cut_difference: and at least by this much (mean of saturation and luma differences, 0 to 191).
        min_shot_s: nothing shorter need be found; what lasts shorter and then reverts is a flash.
        max_clip_s: longer shots are cut into equal clips of at most this length.
    """

    short_side: Annotated[int, pydantic.Field(ge=64, le=1080)] = 180
    cut_ratio: Annotated[float, pydantic.Field(ge=1.0)] = 2.5
    cut_difference: Annotated[float, pydantic.Field(ge=0.0)] = 6.0
    min_shot_s: Annotated[float, pydantic.Field(ge=0.0, le=2.0)] = 0.3
    max_clip_s: Annotated[float, pydantic.Field(gt=0.0)] = 10.0

    def split(self, source: Source) -> list[ClipSpec]:
        """Find the clips of a source in one pass over it.

        Raises:
            VideoError: the source has no file, or nothing of it can be decoded.
        """
        if source.path is None:
            raise VideoError(f"{source.source_id}: {source.error or 'has no file'}")
        detector = ShotDetector(self)
        with closing(iter_frames(source.path)) as frames:
            for frame in frames:
                detector.push(frame.time_s, frame.rgb(short_side=self.short_side))
        times_s = np.append(np.asarray(detector.times_s), detector.end_s)
        specs: list[ClipSpec] = []
        for first, last in detector.shots():
            for begin, end in _windows(times_s[first : last + 1], self.max_clip_s):
                start_s, end_s = float(times_s[first + begin]), float(times_s[first + end])
                specs.append(
                    ClipSpec(
                        clip_id=clip_id(source.source_id, len(specs)),
                        source_id=source.source_id,
                        path=source.path,
                        start_s=start_s,
                        end_s=end_s,
                        num_frames=end - begin,
                        fps=(end - begin) / (end_s - start_s),
                        width=frames.info.width,
                        height=frames.info.height,
                        caption=source.caption,
                        damage=frames.damage,
                    )
                )
        return specs


def _windows(times_s: np.ndarray, max_s: float) -> list[tuple[int, int]]:
    """Cut a shot into equal parts of at most ``max_s``; ``times_s`` are its frames' times and its end."""
    duration_s = times_s[-1] - times_s[0]
    parts = max(1, int(np.ceil(duration_s / max_s - 1e-6)))
    edges = np.searchsorted(times_s, times_s[0] + np.linspace(0.0, duration_s, parts + 1) - 1e-6)
    return [(int(a), int(b)) for a, b in itertools.pairwise(edges) if b > a]


@dataclass(frozen=True)
class _Look:
    """What is kept of a frame while a cut near it may be in question."""

    index: int
    time_s: float
    luma: np.ndarray
    thumbnail: np.ndarray


class ShotDetector:
    """Finds the shots of one stream of frames: give it every frame in order, then ask.

    Holds the small frames of about a second, and eight bytes for every frame of the source.

    Attributes:
        times_s: the times of all frames so far.
    """

    def __init__(self, settings: ShotsConfig) -> None:
        self._settings = settings
        self._detector = AdaptiveDetector(
            adaptive_threshold=settings.cut_ratio,
            min_content_val=settings.cut_difference,
            min_scene_len=0,
            window_width=_WINDOW,
            weights=_WEIGHTS,
        )
        self.times_s = array("d")
        self._fed = 0
        self._recent: deque[_Look] = deque()
        self._proposed: deque[int] = deque()
        self._cuts: list[int] = []
        self._last_second: deque[_Look] = deque()
        self._gaps: list[tuple[int, int]] = []
        self._before_blank: _Look | None = None
        self._blank_since: int | None = None

    @property
    def end_s(self) -> float:
        """The time at which the frame after the last one would begin."""
        if len(self.times_s) < 2:
            return self.times_s[-1] + 1.0 / 25.0
        recent = np.diff(np.asarray(self.times_s[-10:]))
        return float(self.times_s[-1] + np.median(recent))

    def push(self, time_s: float, image: np.ndarray) -> None:
        """Take the next frame.

        Args:
            time_s: its time in seconds; later than that of the one before.
            image: ``(H, W, 3)`` uint8 RGB, small; every frame of one size.
        """
        luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        thumbnail = cv2.resize(luma, _THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
        look = _Look(len(self.times_s), time_s, luma, thumbnail)
        self.times_s.append(time_s)
        self._recent.append(look)
        lifted = cv2.convertScaleAbs(image, alpha=(255 - _LIFT) / 255, beta=_LIFT)
        bgr = cv2.cvtColor(lifted, cv2.COLOR_RGB2BGR)
        # The first frame is given several times, so that a change right after it has a window before it.
        for _ in range(1 if look.index else 1 + _WINDOW):
            self._propose(bgr)
        self._last_bgr = bgr
        self._follow_blank(look)
        self._follow_dissolve(look)
        self._settle(time_s)

    def shots(self) -> list[tuple[int, int]]:
        """First frame and last frame + 1 of every shot; call once, after the last frame.

        A source that is blank from end to end is one shot.
        """
        for _ in range(_WINDOW):
            self._propose(self._last_bgr)
        self._settle(float("inf"))
        count = len(self.times_s)
        if self._blank_since is not None:
            self._gaps.append((self._blank_since, count))
        edges = sorted({0, count, *self._cuts, *(edge for gap in self._gaps for edge in gap)})
        in_gap = np.zeros(count, dtype=bool)
        for first, last in self._gaps:
            in_gap[first:last] = True
        spans = list(itertools.pairwise(edges))
        return [span for span in spans if not in_gap[span[0]]] or [(0, count)]

    def _propose(self, bgr: np.ndarray) -> None:
        # The rate is a dummy: only the frame's number comes back.
        for cut in self._detector.process_frame(FrameTimecode(self._fed, 25.0), bgr):
            self._proposed.append(cut.frame_num - _WINDOW)
        self._fed += 1

    def _settle(self, now_s: float) -> None:
        """Judge the proposals whose surroundings are complete, and forget frames that no proposal needs."""
        reach_s = self._settings.min_shot_s
        while self._proposed and self.times_s[self._proposed[0]] + reach_s <= now_s:
            cut = self._proposed.popleft()
            if not self._goes_on(cut):
                self._cuts.append(cut)
        needed = self._proposed[0] if self._proposed else max(0, len(self.times_s) - 1 - _WINDOW)
        horizon_s = self.times_s[needed] - reach_s
        while self._recent[0].time_s < horizon_s and self._recent[0].index < needed - 1:
            self._recent.popleft()

    def _goes_on(self, cut: int) -> bool:
        """Whether one take is seen on both sides of a proposed cut, at most ``min_shot_s`` apart."""
        reach_s, at_s = self._settings.min_shot_s, self.times_s[cut]
        before = [look for look in self._recent if look.index < cut]
        after = [look for look in self._recent if look.index >= cut and look.time_s < at_s + reach_s]
        near = [(a, b) for a in before for b in after if b.time_s - a.time_s < reach_s]
        return (
            any(_alike(a, b) for a, b in near)
            or _one_scene(before[-1], after[0])
            or _one_scene(before[-1], after[-1])
        )

    def _follow_blank(self, look: _Look) -> None:
        """Keep track of stretches of black or white; a short one inside one scene is a blink, not a
        border."""
        low, high = np.percentile(look.luma, (1, 99))
        blank = bool(high < _BLACK or low > _WHITE)
        if blank and self._blank_since is None:
            self._blank_since = look.index
        elif not blank and self._blank_since is not None:
            lasted_s = look.time_s - self.times_s[self._blank_since]
            previous = self._before_blank
            if lasted_s >= self._settings.min_shot_s or previous is None or not _one_scene(previous, look):
                self._gaps.append((self._blank_since, look.index))
            self._blank_since = None
        if not blank:
            self._before_blank = look

    def _follow_dissolve(self, look: _Look) -> None:
        recent = self._last_second
        recent.append(look)
        while look.time_s - recent[0].time_s > _DISSOLVES_S[-1] * 1.25:
            recent.popleft()
        times_s = np.array([past.time_s for past in recent])
        for span_s in _DISSOLVES_S:
            wanted = look.time_s - span_s * np.linspace(1.0, 0.0, 5)
            places = np.abs(times_s[:, None] - wanted).argmin(axis=0)
            if times_s[0] <= wanted[0] and (np.diff(places) > 0).all():
                looks = [recent[int(place)] for place in places]
                # A slow pan over simple shapes can pass for a mixture.
                if (
                    _is_mixture([look.thumbnail for look in looks])
                    and not _one_scene(looks[0], looks[-1])
                    and not all(_shifted(a, b) for a, b in itertools.pairwise(looks))
                ):
                    self._gaps.append((looks[0].index + 1, looks[-1].index))


def _alike(a: _Look, b: _Look) -> bool:
    """Whether two thumbnails are one picture up to brightness and contrast."""
    x, y = a.thumbnail - a.thumbnail.mean(), b.thumbnail - b.thumbnail.mean()
    return float((x * y).sum()) > _SAME_CORRELATION * float(np.sqrt((x * x).sum() * (y * y).sum())) + 1e-6


def _one_scene(a: _Look, b: _Look) -> bool:
    """Whether the frames are alike, or one can be laid over the other by a shift, turn and zoom."""
    if _alike(a, b):
        return True
    sift = cv2.SIFT.create(600, contrastThreshold=0.02)
    keypoints_a, features_a = sift.detectAndCompute(a.luma, None)
    keypoints_b, features_b = sift.detectAndCompute(b.luma, None)
    if min(len(keypoints_a), len(keypoints_b)) < _MIN_MATCHES:
        return False
    pairs = cv2.BFMatcher().knnMatch(features_a, features_b, k=2)
    matches = [best for best, second in pairs if best.distance < 0.75 * second.distance]  # Lowe's ratio test
    if len(matches) < _MIN_MATCHES:
        return False
    points_a = np.array([keypoints_a[match.queryIdx].pt for match in matches], np.float32)
    points_b = np.array([keypoints_b[match.trainIdx].pt for match in matches], np.float32)
    cv2.setRNGSeed(0)  # RANSAC draws from it: the same file must give the same shots
    model, inliers = cv2.estimateAffinePartial2D(points_a, points_b, ransacReprojThreshold=3.0)
    if model is None or inliers.sum() < _MIN_MATCHES:
        return False
    agreed = inliers.ravel() > 0
    spread = min(cv2.contourArea(cv2.convexHull(points[agreed])) for points in (points_a, points_b))
    return spread >= _MIN_SPREAD * a.luma.size


def _shifted(a: _Look, b: _Look) -> bool:
    """Whether one frame is the other moved by some pixels; blurry pictures count, which have no keypoints."""
    first, second = a.luma.astype(np.float32), b.luma.astype(np.float32)
    (moved_x, moved_y), _ = cv2.phaseCorrelate(
        first, second, cv2.createHanningWindow(first.shape[::-1], cv2.CV_32F)
    )
    x, y = round(moved_x), round(moved_y)
    height, width = first.shape
    if (x, y) == (0, 0) or 2 * abs(x) > width or 2 * abs(y) > height:
        return False
    first = first[max(0, -y) : height - max(0, y), max(0, -x) : width - max(0, x)]
    second = second[max(0, y) : height - max(0, -y), max(0, x) : width - max(0, -x)]
    return bool(np.corrcoef(first.ravel(), second.ravel())[0, 1] > _SAME_CORRELATION)


def _is_mixture(pictures: list[np.ndarray]) -> bool:
    """Whether pictures, in order, are mixtures of the first and the last with steadily moving shares."""
    flat = np.stack([picture.ravel() - picture.mean() for picture in pictures])
    contrast = flat.std(axis=1)
    ends = flat[[0, -1]]
    if contrast[[0, -1]].min() < _MIN_END_CONTRAST:
        return False
    if float(np.mean(ends[0] * ends[1])) > _END_CORRELATION * contrast[0] * contrast[-1]:
        return False
    between = flat[1:-1]
    shares = np.linalg.solve(ends @ ends.T, ends @ between.T).T  # (pictures between, ends)
    explained = 1.0 - ((between - shares @ ends) ** 2).sum(axis=1) / ((between**2).sum(axis=1) + 1e-6)
    middle = shares[len(shares) // 2]
    return bool(
        explained.min() > _MIN_MIXTURE
        and (np.diff(shares[:, 0]) < -0.05).all()
        and (np.diff(shares[:, 1]) > 0.05).all()
        and ((middle > 0.25) & (middle < 0.75)).all()
        and (np.abs(shares.sum(axis=1) - 1.0) < 0.2).all()
    )
