"""What guards see in clips, when they act, and what a run does then."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from hummingbird.nano import world
from tests.train.conftest import recipe, train
from tests.train.test_loop import ToyData, ToyTask, records, same_weights, settings
from train.checkpoint import checkpoints
from train.guards import (
    PREFIX,
    STATISTICS,
    Guard,
    GuardConfig,
    clip_statistics,
    leaves_band,
    undefined_statistics,
)
from train.loop import run


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    items = [a for a in world.all_attributes() if (a.motion, a.background) == ("right", "teal")][:4]
    rendered: np.ndarray = world.render_clips(items, np.random.default_rng(0)).numpy()
    return rendered


def faded(clips: np.ndarray, gain: float, offset: float = 0.0) -> np.ndarray:
    return np.clip(clips.astype(float) * gain + offset, 0, 255).astype(np.uint8)


def test_statistics_of_plain_clips_are_known() -> None:
    red = np.zeros((1, 4, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    values = clip_statistics(red)
    assert list(values) == [PREFIX + name for name in STATISTICS]
    expected = [0.2126, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert list(values.values()) == pytest.approx(expected, abs=1e-4)


def test_flow_is_in_pixels_per_frame() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 12), dtype=np.uint8)
    picture = np.kron(noise, np.ones((8, 8), np.uint8))
    moving = np.stack([np.roll(picture, 3 * i, axis=1) for i in range(4)])[None, ..., None].repeat(3, -1)
    assert clip_statistics(moving)[PREFIX + "flow"] == pytest.approx(3.0, abs=1.0)


def test_an_even_fade_is_no_flicker_and_blinking_is() -> None:
    ramp = np.linspace(50, 200, 16)[None, :, None, None, None] * np.ones((1, 16, 32, 32, 3))
    blink = np.where(np.arange(16) % 2, 60, 180)[None, :, None, None, None] * np.ones((1, 16, 32, 32, 3))
    even, blinking = (clip_statistics(v.astype(np.uint8))[PREFIX + "flicker"] for v in (ramp, blink))
    assert even < 0.005
    assert blinking > 0.5


def damages(clips: np.ndarray) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    blinking = clips.astype(float)
    blinking[:, ::2] *= 0.3
    return {
        "brightness": faded(clips, 1.0, 90.0),
        "saturation": clips.mean(axis=-1, keepdims=True).repeat(3, -1).astype(np.uint8),
        "sharpness": np.clip(clips + rng.normal(0, 40, clips.shape), 0, 255).astype(np.uint8),
        "flicker": blinking.astype(np.uint8),
        "flow": clips[:, :1].repeat(clips.shape[1], 1),
    }


@pytest.mark.parametrize("name", ["brightness", "saturation", "sharpness", "flicker", "flow"])
def test_each_damage_leaves_the_band_by_its_own_name(name: str, clips: np.ndarray) -> None:
    good = clip_statistics(clips)
    assert leaves_band(good, good, GuardConfig()) == []
    found = leaves_band(clip_statistics(damages(clips)[name]), good, GuardConfig())
    assert any(text.startswith(f"{name} ") for text in found), found


def test_statistics_that_are_no_numbers_leave_the_band(clips: np.ndarray) -> None:
    good = clip_statistics(clips)
    assert len(leaves_band(undefined_statistics(), good, GuardConfig())) == len(STATISTICS)


def figures(value: float) -> dict[str, float]:
    return dict.fromkeys((PREFIX + name for name in STATISTICS), value)


def test_it_warns_first_and_then_acts(tmp_path: Path) -> None:
    guard = Guard(GuardConfig(action="rollback", patience=2, max_rollbacks=1, start_step=1), tmp_path)
    assert guard.judge(1, figures(0.5)) is None  # not judged
    assert guard.judge(2, figures(0.5)) is None  # the reference
    assert guard.state.good_step == 2
    warning = guard.judge(3, figures(0.9))
    assert warning is not None
    assert warning[0] == "warn"
    assert "brightness 0.9 is outside [0.35, 0.65]" in warning[1]
    assert guard.judge(3, figures(0.9)) == warning  # the same samples again
    action = guard.judge(4, figures(math.nan))
    assert action is not None
    assert action[0] == "rollback"
    guard.begin_rollback()
    again = Guard(guard.config, tmp_path)  # killed and resumed
    again.finish_rollback()
    assert (again.state.rate_scale, again.state.rollbacks, again.state.outside) == (0.5, 1, [])
    assert again.judge(3, figures(0.9)) is not None
    last = again.judge(4, figures(0.9))
    assert last is not None
    assert last[0] == "stop"
    assert "after 1 rollbacks" in last[1]


class Drifting(ToyTask):
    """Samples are as bright as the weights have moved far, which a high learning rate makes too bright."""

    def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
        start = ToyTask().network.state_dict()
        moved = sum(float((v - start[k]).abs().sum()) for k, v in network.state_dict().items())
        return {**super().sample(network, folder), **figures(0.002 * moved)}

    def sample_reference(self, folder: Path) -> dict[str, float]:
        return figures(0.0)


GUARD: dict[str, Any] = {"action": "rollback", "patience": 1, "rate_factor": 1e-3}


def test_a_run_goes_back_with_a_lower_rate_and_ends_well(tmp_path: Path) -> None:
    changes = {"learning_rate": 1.0, "sample_every": 2, "warmup_steps": 0, "ema_decay": 0.0}
    whole = tmp_path / "whole"
    run(Drifting(), ToyData(), settings(whole, guard=GuardConfig(**GUARD), **changes))
    state = json.loads((whole / "guard.json").read_text())
    assert (state["rollbacks"], state["good_step"], state["rate_scale"]) == (1, 6, 1e-3)
    lines = records(whole)
    assert [line for line in lines if "rolled_back_from" in line] == [
        {"step": 0, "rolled_back_from": 2, "rate_scale": 1e-3}
    ]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert {line["learning_rate"] for line in lines if "loss" in line} == {1e-3}
    # Killed in the middle of going back, right after it was decided: the same end.
    broken = tmp_path / "broken"

    class Killed(Guard):
        def finish_rollback(self) -> None:
            self.load()
            if self.state.rolling_back:
                raise KeyboardInterrupt
            super().finish_rollback()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("train.loop.Guard", Killed)
        with pytest.raises(KeyboardInterrupt):
            run(Drifting(), ToyData(), settings(broken, guard=GuardConfig(**GUARD), **changes))
    assert checkpoints(broken)[-1].name == "step-2"
    run(Drifting(), ToyData(), settings(broken, guard=GuardConfig(**GUARD), **changes))
    assert same_weights(whole, broken)
    assert json.loads((broken / "guard.json").read_text()) == state


def test_a_run_that_is_killed_after_going_back_ends_the_same(tmp_path: Path) -> None:
    changes = {"learning_rate": 1.0, "sample_every": 2, "warmup_steps": 0, "ema_decay": 0.0}
    changes["guard"] = GuardConfig(**GUARD)
    run(Drifting(), ToyData(), settings(tmp_path / "whole", **changes))

    class Data(ToyData):
        calls = 0

        def batch(self, index: int) -> dict[str, Any]:
            self.calls += 1
            if self.calls == 7:  # two steps before going back, and four after
                raise KeyboardInterrupt
            return super().batch(index)

    with pytest.raises(KeyboardInterrupt):
        run(Drifting(), Data(), settings(tmp_path / "broken", **changes))
    assert checkpoints(tmp_path / "broken")[-1].name == "step-4"
    run(Drifting(), ToyData(), settings(tmp_path / "broken", **changes))
    assert same_weights(tmp_path / "whole", tmp_path / "broken")


def test_an_absurd_learning_rate_is_caught_on_the_debug_recipe(parts: Path, tmp_path: Path) -> None:
    """The real task: taken back once, then stopped, and no model is left behind."""
    flags = ["--loop.learning-rate", "1.0", "--loop.max-steps", "8", "--loop.warmup-steps", "0"]
    flags += ["--loop.guard.action", "rollback", "--loop.guard.patience", "1", "--loop.ema-decay", "0.0"]
    flags += ["--loop.guard.max-rollbacks", "1", "--loop.decay-steps", "0"]
    # At half the rate it either leaves the band again or has no finite loss any more; both end the run.
    either = r"samples leave the band: .*after 1 rollbacks|expected a finite number; first in batch"
    with pytest.raises((RuntimeError, FloatingPointError), match=either):
        train("stage1", parts, tmp_path, *flags)
    lines = records(tmp_path)
    assert any(line.get("rolled_back_from") == 2 for line in lines)
    assert not (tmp_path / "model").exists()
    state = json.loads((tmp_path / "guard.json").read_text())
    assert (state["rollbacks"], state["rate_scale"], state["good_step"]) == (1, 0.5, 0)
    assert state["reference"].keys() == {PREFIX + name for name in STATISTICS}
    good = recipe("stage1", parts, tmp_path / "good")
    assert good.loop.learning_rate == 1e-3  # the same recipe as it is stays in the band: see test_run_folder
