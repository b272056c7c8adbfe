"""What guards see in clips, when they act, and what a run does then."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from torch import nn

from hummingbird.nano import world
from tests.train.conftest import recipe, train
from tests.train.test_loop import ToyData, ToyTask, records, same_weights, settings
from train.checkpoint import checkpoints
from train.guard_plot import guard_svg
from train.guards import (
    HELD_OUT,
    PREFIX,
    REWARD,
    STATISTICS,
    Guard,
    GuardConfig,
    clip_statistics,
    is_hacked,
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
        {"step": 0, "rolled_back_from": 2, "rate_scale": 1e-3, "reward_scale": 1.0}
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


def test_a_guard_that_is_turned_on_late_goes_back_to_where_it_began(tmp_path: Path) -> None:
    run(Drifting(), ToyData(), settings(tmp_path, max_steps=4, learning_rate=0.01))
    config = GuardConfig(action="rollback", patience=1, max_rollbacks=1)
    changes: dict[str, Any] = {"max_steps": 8, "sample_every": 2, "learning_rate": 5.0, "guard": config}
    guard = Guard(config, tmp_path)
    guard.set_reference(figures(0.002))
    with pytest.raises(RuntimeError, match="the last good checkpoint, step 4"):
        run(Drifting(), ToyData(), settings(tmp_path, **changes))
    assert "step-4" in [folder.name for folder in checkpoints(tmp_path)]


def test_samples_that_are_no_numbers_are_none_to_go_back_to(tmp_path: Path) -> None:
    guard = Guard(GuardConfig(action="rollback", start_step=10), tmp_path)
    assert guard.judge(1, figures(0.5)) is None
    assert guard.judge(2, figures(math.nan)) is None  # too early to be judged
    assert guard.state.good_step == 1


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


# --- rewards -----------------------------------------------------------------------------------------------


def seen(reward: float, held_out: float, **changes: float) -> dict[str, float]:
    """Figures of samples inside the band."""
    return {**{PREFIX + name: 0.5 for name in STATISTICS}, REWARD: reward, HELD_OUT: held_out, **changes}


@pytest.mark.parametrize(
    ("reward", "held_out", "hacked"),
    [
        (0.9, 0.4, True),  # up, while the other one falls
        (0.9, 0.55, False),  # a little
        (0.4, 0.3, False),  # both fall: bad, but nobody was fooled
        (0.9, 0.7, False),
        (math.nan, math.nan, True),
    ],
)
def test_a_reward_is_hacked_where_it_rises_and_the_held_out_one_falls(
    reward: float, held_out: float, hacked: bool
) -> None:
    best = {REWARD: 0.5, HELD_OUT: 0.6}
    found = is_hacked({REWARD: reward, HELD_OUT: held_out}, best, max_drop=0.1)
    assert bool(found) is hacked
    assert is_hacked({REWARD: reward}, best, max_drop=0.1) == ""  # nothing to tell it by
    assert is_hacked({REWARD: reward, HELD_OUT: held_out}, None, max_drop=0.1) == ""


def test_a_hacked_reward_is_weighed_down_and_remembered(tmp_path: Path) -> None:
    config = GuardConfig(
        action="rollback", patience=1, max_rollbacks=1, lowers="reward_weight", weight_factor=0.1
    )
    guard = Guard(config, tmp_path)
    assert guard.judge(2, seen(0.5, 0.6)) is None
    assert guard.judge(3, seen(0.4, 0.3)) is None  # both fell: nobody was fooled, and no place to go back to
    verdict = guard.judge(4, seen(0.9, 0.3))
    assert verdict is not None
    assert verdict[0] == "rollback"
    assert (
        "trained reward rose from 0.500 to 0.900 while the held-out one fell from 0.600 to 0.300"
        in verdict[1]
    )
    assert guard.judge(4, seen(0.9, 0.3)) == verdict  # judged again, remembered once
    guard.begin_rollback()
    guard.finish_rollback()
    assert (guard.state.reward_scale, guard.state.rate_scale, guard.state.good_step) == (0.1, 1.0, 2)
    assert guard.describe_scale() == "0.1 of the rewards' weights"
    assert guard.judge(4, seen(0.6, 0.65)) is None
    again = Guard(config, tmp_path)
    again.load()
    assert again.state == guard.state
    assert again.state.best == {REWARD: 0.6, HELD_OUT: 0.65}
    told = [(entry["rollbacks"], entry["step"], entry.get("verdict")) for entry in again.state.history]
    assert told == [(0, 2, None), (0, 3, None), (0, 4, "rollback"), (1, 4, None)]
    verdict = again.judge(6, seen(0.9, 0.1))
    assert verdict is not None
    assert verdict[0] == "stop"
    assert "after 1 rollbacks" in verdict[1]


def test_a_run_with_an_absurd_weight_goes_back_and_ends_well(tmp_path: Path) -> None:
    """The reward pulls a number up without end; the held-out one wants it near 1."""

    class Greedy(ToyTask):
        def losses(self, batch: dict[str, Any], generator: Any) -> dict[str, Any]:
            loss = super().losses(batch, generator)["loss"]
            pull = self.value(self.network)
            return {"loss": 0.0 * loss + (pull - 1.0) ** 2 - batch["reward_scale"] * 1e4 * pull}

        @staticmethod
        def value(network: Any) -> Any:
            return network[0].bias.sum()

        def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
            value = float(self.value(network).detach())
            return seen(value, -abs(value - 1.0))

    changes: dict[str, Any] = {"max_steps": 16, "sample_every": 2, "learning_rate": 0.02, "warmup_steps": 0}
    guard = GuardConfig(
        action="rollback", patience=1, lowers="reward_weight", weight_factor=1e-6, max_held_out_drop=0.3
    )
    run(Greedy(), ToyData(), settings(tmp_path, ema_decay=0.0, best_metric=HELD_OUT, guard=guard, **changes))
    state = json.loads((tmp_path / "guard.json").read_text())
    assert state["rollbacks"] == 1
    assert state["reward_scale"] == 1e-6
    bad = [entry for entry in state["history"] if entry.get("verdict") == "rollback"]
    assert len(bad) == 1
    last = state["history"][-1]
    assert last["step"] == 16
    assert last["figures"][HELD_OUT] > bad[0]["figures"][HELD_OUT]
    picture = ElementTree.fromstring(guard_svg(state["history"], "a < b"))
    texts = [element.text for element in picture.iter() if element.tag.endswith("text")]
    assert texts.count("rollback") == 1
    assert "a < b" in texts
    assert len([1 for element in picture.iter() if element.tag.endswith("circle")]) == 3 * len(
        state["history"]
    )
