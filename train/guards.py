"""Guards: what sample clips look like in numbers, and what happens when they leave the band.

A diffusion loss hardly tells a healthy run from one that drifts to grey, burns out its colours or freezes;
clips of fixed seeds do.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hummingbird.config import config_dataclass
from train.checkpoint import checkpoints, discard, step_of, write_json

PREFIX = "clip/"
"""Of the names of these statistics among the figures of the samples."""
STATISTICS = ("brightness", "red", "green", "blue", "saturation", "sharpness", "flicker", "flow")

Drift = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=1)]


@config_dataclass
class GuardConfig:
    """What happens when samples leave the band around the reference.

    The reference is the teacher's samples of the same seeds where the task has a teacher, else the first
    samples of the run.
    """

    action: Literal["off", "warn", "rollback", "stop"] = "off"
    patience: Annotated[int, Field(ge=1)] = 2
    """Samples in a row outside the band before the action; those before it warn."""
    start_step: Annotated[int, Field(ge=0)] = 0
    """Samples up to here are not judged: a network that was just pruned has to recover first."""
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Each rollback multiplies the learning rate by it."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 3
    """One more stops the run."""
    max_brightness_drift: Drift = 0.15
    """Of the mean luminance, in [0, 1]."""
    max_color_drift: Drift = 0.15
    """Of the mean of any channel, in [0, 1]."""
    max_saturation_drift: Drift = 0.2
    max_sharpness_ratio: Ratio = 3.0
    """Either way."""
    max_flicker_ratio: Ratio = 3.0
    """Upwards only; less flicker is no fault."""
    max_flow_ratio: Ratio = 4.0
    """Either way: below, videos freeze."""


# --- statistics --------------------------------------------------------------------------------------------


def clip_statistics(videos: np.ndarray) -> dict[str, float]:
    """Means over clips of what drifts when a training goes wrong, under ``clip/...``.

    Args:
        videos: (N, F, H, W, 3) uint8 RGB, at least 16 pixels high and wide.

    Returns:
        ``brightness`` (Rec. 709 luma) and the means of ``red``, ``green`` and ``blue``, in [0, 1];
        ``saturation``, the mean of (max - min) over channels, in [0, 1]; ``sharpness``, the mean absolute
        Laplacian of the luma; ``flicker``, the mean absolute second difference over time of a frame's
        brightness, which an even fade does not raise; ``flow``, the mean length of the optical flow from
        frame to frame in pixels.

    Reference:
        Optical flow: Kroeger et al., Fast Optical Flow using Dense Inverse Search, arXiv 1603.03590.
    """
    pixels = videos.astype(np.float32) / 255.0
    luma = pixels @ np.array([0.2126, 0.7152, 0.0722], dtype=np.float32)  # (N, F, H, W)
    red, green, blue = (float(pixels[..., channel].mean()) for channel in range(3))
    curves = luma.mean(axis=(2, 3))
    second = np.diff(curves, n=2, axis=1) if curves.shape[1] > 2 else np.zeros((1, 1))
    laplacian = (
        luma[..., 2:, 1:-1]
        + luma[..., :-2, 1:-1]
        + luma[..., 1:-1, 2:]
        + luma[..., 1:-1, :-2]
        - 4.0 * luma[..., 1:-1, 1:-1]
    )
    values = {
        "brightness": float(luma.mean()),
        "red": red,
        "green": green,
        "blue": blue,
        "saturation": float((pixels.max(axis=-1) - pixels.min(axis=-1)).mean()),
        "sharpness": float(np.abs(laplacian).mean()),
        "flicker": float(np.abs(second).mean()),
        "flow": _flow_magnitude((luma * 255.0).round().astype(np.uint8)),
    }
    return {PREFIX + name: value for name, value in values.items()}


def undefined_statistics() -> dict[str, float]:
    """Of clips that hold values that are no numbers."""
    return {PREFIX + name: math.nan for name in STATISTICS}


def _flow_magnitude(luma: np.ndarray) -> float:
    """(N, F, H, W) uint8 -> mean length in pixels."""
    import cv2

    if luma.shape[1] < 2:
        return 0.0
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # so that the figure does not depend on the machine
    try:
        method: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        lengths = [
            np.linalg.norm(method.calc(before, after, None), axis=-1).mean()
            for clip in luma
            for before, after in pairwise(clip)
        ]
    finally:
        cv2.setNumThreads(threads)
    return float(np.mean(lengths))


def leaves_band(figures: dict[str, float], reference: dict[str, float], config: GuardConfig) -> list[str]:
    """What is outside the band, in words; empty where all is well.

    Args:
        figures: of ``clip_statistics``, among others.
        reference: the same of clips that are known to be good.
        config: how far is too far.
    """
    absolute = {"brightness": config.max_brightness_drift, "saturation": config.max_saturation_drift}
    absolute |= dict.fromkeys(("red", "green", "blue"), config.max_color_drift)
    # name -> (lowest and highest ratio, difference that never matters)
    ratios = {
        "sharpness": (1.0 / config.max_sharpness_ratio, config.max_sharpness_ratio, 0.002),
        "flicker": (0.0, config.max_flicker_ratio, 0.005),
        "flow": (1.0 / config.max_flow_ratio, config.max_flow_ratio, 0.05),
    }
    found = []
    for name in STATISTICS:
        value, good = figures[PREFIX + name], reference[PREFIX + name]
        if name in absolute:
            low, high = good - absolute[name], good + absolute[name]
        else:
            lowest, highest, slack = ratios[name]
            low, high = max(0.0, min(good * lowest, good - slack)), max(good * highest, good + slack)
        if not low <= value <= high:  # also where the value is no number
            found.append(f"{name} {value:.3g} is outside [{low:.3g}, {high:.3g}]")
    return found


# --- state and decisions -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class GuardState:
    """What a run that is resumed has to know.

    Attributes:
        reference: statistics that the band is around; None before they are known.
        good_step: step of the last checkpoint whose samples were inside the band.
        outside: steps in a row, up to now, whose samples were not.
        rollbacks: how many there were.
        rate_scale: product of their factors.
        rolling_back: whether later checkpoints and samples still have to go.
    """

    reference: dict[str, float] | None = None
    good_step: int = 0
    outside: list[int] = field(default_factory=list)
    rollbacks: int = 0
    rate_scale: float = 1.0
    rolling_back: bool = False


class Guard:
    """Judges samples and remembers, in ``guard.json``, what followed from them.

    Only the main process judges; the others ``load`` what it decided.
    """

    def __init__(self, config: GuardConfig, output: Path) -> None:
        self.config, self.output = config, output
        self.path = output / "guard.json"
        self.state = GuardState()

    @property
    def is_on(self) -> bool:
        return self.config.action != "off"

    def load(self) -> None:
        if self.path.is_file():
            self.state = GuardState(**json.loads(self.path.read_text()))

    def _save(self, **changes: Any) -> None:
        self.state = GuardState(**{**asdict(self.state), **changes})
        write_json(self.path, asdict(self.state))

    def set_reference(self, figures: dict[str, float]) -> None:
        """Statistics of the clips that the band is laid around."""
        reference = {name: value for name, value in figures.items() if name.startswith(PREFIX)}
        if reference:
            self._save(reference=reference)

    def judge(self, step: int, figures: dict[str, float]) -> tuple[str, str] | None:
        """What has to follow from the samples of a step: an action and its reason, or None.

        Judging the same step again, as a run does that was killed in between, changes nothing.
        """
        if not self.is_on or PREFIX + STATISTICS[0] not in figures:
            return None
        if self.state.reference is None and step > self.config.start_step:
            self.set_reference(figures)
        if self.state.reference is None or step <= self.config.start_step:
            self._save(good_step=max(step, self.state.good_step))
            return None
        found = leaves_band(figures, self.state.reference, self.config)
        if not found:
            self._save(good_step=max(step, self.state.good_step), outside=[])
            return None
        outside = sorted({*self.state.outside, step})
        self._save(outside=outside)
        reason = "samples leave the band: " + ", ".join(found)
        if self.config.action == "warn" or len(outside) < self.config.patience:
            return "warn", reason
        if self.config.action == "rollback" and self.state.rollbacks < self.config.max_rollbacks:
            return "rollback", reason
        if self.config.action == "rollback":
            reason += f", after {self.state.rollbacks} rollbacks"
        return "stop", reason

    def begin_rollback(self) -> None:
        """Decides, on disk, to go back: a process that is killed after this finishes it when resumed."""
        scale = self.state.rate_scale * self.config.rate_factor
        self._save(outside=[], rollbacks=self.state.rollbacks + 1, rate_scale=scale, rolling_back=True)

    def finish_rollback(self) -> None:
        """Removes checkpoints and samples after the last good step, where a rollback was begun."""
        self.load()
        if not self.state.rolling_back:
            return
        for folder in (*checkpoints(self.output), *(self.output / "samples").glob("step-*")):
            if folder.suffix != ".part" and step_of(folder) > self.state.good_step:
                discard(folder)
        self._save(rolling_back=False)
