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
from hummingbird.evaluation.metrics import (
    brightness_flicker,
    dis_flow,
    luma_of,
    saturation_of,
    sharpness_of,
)
from train.checkpoint import checkpoints, discard, sample_folders, step_of, write_json

PREFIX = "clip/"
"""Of the names of these statistics among the figures of the samples."""
STATISTICS = ("brightness", "red", "green", "blue", "saturation", "sharpness", "flicker", "flow")

REWARD, HELD_OUT = "reward", "held_out"
"""Figures of the samples: the weighted sum of what is trained on, and the mean of what never is."""

Drift = Annotated[float, Field(gt=0, le=1)]
Ratio = Annotated[float, Field(gt=1)]


@config_dataclass
class GuardConfig:
    """What happens when samples leave the band around the reference, or when a reward is hacked.

    A reward is hacked where it rises on the samples while the held-out one falls. The reference is the
    teacher's samples of the same seeds where the task has a teacher, else the first samples of the run.
    """

    action: Literal["off", "warn", "rollback", "stop"] = "off"
    patience: Annotated[int, Field(ge=1)] = 2
    """Samples in a row outside the band before the action; those before it warn."""
    start_step: Annotated[int, Field(ge=0)] = 0
    """Samples up to here are not judged: a network that was just pruned has to recover first."""
    lowers: Literal["learning_rate", "reward_weight"] = "learning_rate"
    """What each rollback lowers."""
    rate_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Each rollback multiplies the learning rate by it, where that is lowered."""
    weight_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Each rollback multiplies the weights of all rewards by it, where those are lowered."""
    max_held_out_drop: Annotated[float, Field(ge=0)] = 0.02
    """How far the held-out reward may fall below its best so far while the trained one is above its value
    there."""
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
    luma = luma_of(pixels)  # (N, F, H, W)
    red, green, blue = (float(pixels[..., channel].mean()) for channel in range(3))
    values = {
        "brightness": float(luma.mean()),
        "red": red,
        "green": green,
        "blue": blue,
        "saturation": float(saturation_of(pixels).mean()),
        "sharpness": float(sharpness_of(luma).mean()),
        "flicker": float(brightness_flicker(luma.mean(axis=(2, 3))).mean()),
        "flow": _flow_magnitude((luma * 255.0).round().astype(np.uint8)),
    }
    return {PREFIX + name: value for name, value in values.items()}


def undefined_statistics() -> dict[str, float]:
    """Of clips that hold values that are no numbers."""
    return {PREFIX + name: math.nan for name in STATISTICS}


def are_numbers(figures: dict[str, float]) -> bool:
    """Whether the samples of these figures are clips at all."""
    return all(math.isfinite(value) for name, value in figures.items() if name.startswith(PREFIX))


def _flow_magnitude(luma: np.ndarray) -> float:
    """(N, F, H, W) uint8 -> mean length in pixels."""
    if luma.shape[1] < 2:
        return 0.0
    return float(
        np.mean(
            [
                np.linalg.norm(dis_flow(before, after), axis=-1).mean()
                for clip in luma
                for before, after in pairwise(clip)
            ]
        )
    )


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


def is_hacked(figures: dict[str, float], best: dict[str, float] | None, max_drop: float) -> str:
    """Why the trained reward is no longer to be believed, in words; empty where it is.

    Args:
        figures: of the samples; without ``held_out`` there is nothing to tell it by.
        best: the two rewards where the held-out one was highest.
        max_drop: how far the held-out one may fall below that.
    """
    if best is None or HELD_OUT not in figures or REWARD not in figures:
        return ""
    reward, held_out = figures[REWARD], figures[HELD_OUT]
    if reward <= best[REWARD] or held_out >= best[HELD_OUT] - max_drop:  # neither holds for what is no number
        return ""
    return (
        f"the trained reward rose from {best[REWARD]:.3f} to {reward:.3f} while the held-out one fell from "
        f"{best[HELD_OUT]:.3f} to {held_out:.3f}"
    )


# --- state and decisions -----------------------------------------------------------------------------------


@dataclass(kw_only=True)
class GuardState:
    """What a run that is resumed has to know.

    Attributes:
        reference: statistics that the band is around; None before they are known.
        good_step: step of the last checkpoint whose samples were inside the band.
        outside: steps in a row, up to now, whose samples were not.
        rollbacks: how many there were.
        rate_scale: product of the factors of the learning rate.
        reward_scale: product of the factors of the rewards' weights.
        best: figures of the samples whose held-out reward was highest.
        history: every judged sample, those that were rolled back included: ``rollbacks`` before it, ``step``,
            ``figures``, ``reward_scale`` and, where something was wrong, ``verdict`` and ``reason``.
        rolling_back: whether later checkpoints and samples still have to go.
    """

    reference: dict[str, float] | None = None
    good_step: int = 0
    outside: list[int] = field(default_factory=list)
    rollbacks: int = 0
    rate_scale: float = 1.0
    reward_scale: float = 1.0
    best: dict[str, float] | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
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

    @property
    def advice(self) -> str:
        """What a person should lower."""
        return "learning_rate" if self.config.lowers == "learning_rate" else "the weights of the rewards"

    def describe_scale(self) -> str:
        """What rollbacks left of what they lower."""
        if self.config.lowers == "learning_rate":
            return f"{self.state.rate_scale:g} of the learning rate"
        return f"{self.state.reward_scale:g} of the rewards' weights"

    def begin(self, step: int) -> None:
        """Makes this step the one to go back to, before any other was judged."""
        self._save(good_step=step)

    def judge(self, step: int, figures: dict[str, float]) -> tuple[str, str] | None:
        """What has to follow from the samples of a step: an action and its reason, or None.

        Judging the same step again, as a run does that was killed in between, changes nothing.
        """
        if not self.is_on or PREFIX + STATISTICS[0] not in figures:
            return None
        verdict = self._judge(step, figures)
        entry = {
            "rollbacks": self.state.rollbacks,
            "step": step,
            "reward_scale": self.state.reward_scale,
            "figures": {name: value if math.isfinite(value) else None for name, value in figures.items()},
        }
        if verdict is not None:
            entry |= {"verdict": verdict[0], "reason": verdict[1]}
        key = self.state.rollbacks, step
        others = [old for old in self.state.history if (old["rollbacks"], old["step"]) != key]
        self._save(history=[*others, entry])
        return verdict

    def _judge(self, step: int, figures: dict[str, float]) -> tuple[str, str] | None:
        if self.state.reference is None and step > self.config.start_step:
            self.set_reference(figures)
        if self.state.reference is None or step <= self.config.start_step:
            self._note_good(step, figures)
            return None
        reasons = []
        if found := leaves_band(figures, self.state.reference, self.config):
            reasons.append("samples leave the band: " + ", ".join(found))
        if hacked := is_hacked(figures, self.state.best, self.config.max_held_out_drop):
            reasons.append(hacked)
        if not reasons:
            self._note_good(step, figures)
            return None
        outside = sorted({*self.state.outside, step})
        self._save(outside=outside)
        reason = "; ".join(reasons)
        if self.config.action == "warn" or len(outside) < self.config.patience:
            return "warn", reason
        if self.config.action == "rollback" and self.state.rollbacks < self.config.max_rollbacks:
            return "rollback", reason
        if self.config.action == "rollback":
            reason += f", after {self.state.rollbacks} rollbacks"
        return "stop", reason

    def _note_good(self, step: int, figures: dict[str, float]) -> None:
        """A step to go back to, unless the held-out reward has fallen there, even if no other has risen."""
        best, good_step = self.state.best, max(step, self.state.good_step)
        held_out = figures.get(HELD_OUT, math.nan)
        has_fallen = best is not None and held_out < best[HELD_OUT] - self.config.max_held_out_drop
        if has_fallen or not are_numbers(figures):
            good_step = self.state.good_step
        if math.isfinite(held_out) and (best is None or held_out > best[HELD_OUT]):
            best = {HELD_OUT: held_out, REWARD: figures.get(REWARD, 0.0)}
        self._save(good_step=good_step, outside=[], best=best)

    def begin_rollback(self) -> None:
        """Decides, on disk, to go back: a process that is killed after this finishes it when resumed."""
        if self.config.lowers == "learning_rate":
            scales = {"rate_scale": self.state.rate_scale * self.config.rate_factor}
        else:
            scales = {"reward_scale": self.state.reward_scale * self.config.weight_factor}
        self._save(outside=[], rollbacks=self.state.rollbacks + 1, rolling_back=True, **scales)

    def finish_rollback(self) -> None:
        """Removes checkpoints and samples after the last good step, where a rollback was begun."""
        self.load()
        if not self.state.rolling_back:
            return
        for folder in (*checkpoints(self.output), *sample_folders(self.output)):
            if step_of(folder) > self.state.good_step:
                discard(folder)
        self._save(rolling_back=False)
