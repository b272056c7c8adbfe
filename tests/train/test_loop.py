"""The loop's promises, with a network small enough that every step takes a millisecond."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from hummingbird.config import load_config
from train.checkpoint import checkpoints
from train.loop import (
    TIMES,
    LoopConfig,
    Terminated,
    accumulation_steps,
    is_finished,
    learning_rate_factor,
    run,
)
from train.optimizer import make_optimizer, parameter_groups


class ToyTask:
    """Fits noise through dropout, so that every kind of random state matters."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network: Any = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 4))
        self.sampled: list[str] = []
        self.poison_at: int | None = None

    def losses(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
        noise = torch.randn(batch["x"].shape, generator=generator)
        loss = (self.network(batch["x"] + noise) - batch["x"]).square().mean()
        if self.poison_at == batch["index"]:
            loss = loss * float("nan")
        return {"loss": loss, "twice": 2 * loss}

    def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
        torch.rand(3)  # draws that must not change the training
        self.sampled.append(folder.name.removesuffix(".part"))
        (folder / "figure.txt").write_text("x")
        return {"figure": float(next(network.parameters()).detach().sum())}

    def save_model(self, network: nn.Module, folder: Path) -> None:
        torch.save(network.state_dict(), folder / "weights.pt")


class ToyData:
    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at

    def batch(self, index: int) -> dict[str, Any]:
        if index == self.stop_at:
            raise KeyboardInterrupt
        return {"x": torch.randn(3, 4, generator=torch.Generator().manual_seed(index)), "index": index}


def settings(output: Path, **changes: Any) -> LoopConfig:
    values = {"max_steps": 6, "batch_size": 3, "warmup_steps": 2, "log_every": 1, "checkpoint_every": 2}
    return LoopConfig(output=str(output), **{**values, **changes})


def weights(folder: Path) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(folder / "model" / "weights.pt", weights_only=True)
    return loaded


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_weights(first: Path, second: Path) -> bool:
    a, b = weights(first), weights(second)
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop_at", [3, 5])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, stop_at: int, accumulation: int
) -> None:
    changes = {"gradient_accumulation_steps": accumulation, "sample_every": 2, "decay_steps": 3}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(ToyTask(), ToyData(), settings(whole, **changes))
    with pytest.raises(KeyboardInterrupt):
        run(ToyTask(), ToyData(stop_at * accumulation + accumulation - 1), settings(broken, **changes))
    assert not (broken / "model").exists()
    assert checkpoints(broken)[-1].name == f"step-{stop_at - 1}"
    run(ToyTask(), ToyData(), settings(broken, **changes))
    assert same_weights(whole, broken)
    assert not list(broken.rglob("*.part"))
    timeless = [
        [{k: v for k, v in line.items() if k not in TIMES} for line in records(folder)]
        for folder in (whole, broken)
    ]
    assert timeless[0] == timeless[1]


def test_the_averaged_weights_are_saved_not_the_last_ones(tmp_path: Path) -> None:
    task = ToyTask()
    run(task, ToyData(), settings(tmp_path, ema_decay=0.9))
    last = task.network.state_dict()
    assert not any(torch.equal(last[name], value) for name, value in weights(tmp_path).items())


def test_accumulated_steps_are_one_step_on_the_larger_batch(tmp_path: Path) -> None:
    class Plain(ToyTask):
        def losses(self, batch: dict[str, Any], generator: torch.Generator) -> dict[str, Tensor]:
            return {"loss": (self.network(batch["x"]) - batch["x"]).square().mean()}

    class Doubled:
        def batch(self, index: int) -> dict[str, Any]:
            parts = [ToyData().batch(2 * index + i)["x"] for i in (0, 1)]
            return {"x": torch.cat(parts)}

    for name, data, accumulation in (("large", Doubled(), 1), ("small", ToyData(), 2)):
        task = Plain()
        task.network[1].p = 0.0
        changes = settings(tmp_path / name, gradient_accumulation_steps=accumulation)
        run(task, data, changes)
    a, b = weights(tmp_path / "large"), weights(tmp_path / "small")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-6, rtol=1e-5)
    losses = [[line["loss"] for line in records(tmp_path / n) if "loss" in line] for n in ("large", "small")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_run_folder_and_what_is_kept(tmp_path: Path) -> None:
    config = settings(tmp_path, max_steps=7, keep_checkpoints=2, sample_every=3, save_model_every=3)
    task = ToyTask()
    assert run(task, ToyData(), config) == tmp_path / "model"
    assert load_config(LoopConfig, tmp_path / "config.yaml") == config
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert {"date", "python", "packages", "device", "hardware", "git_commit"} <= environment.keys()
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-6", "step-7"]
    assert sorted(p.name for p in (tmp_path / "samples").iterdir()) == ["step-3", "step-6", "step-7"]
    assert task.sampled == ["step-3", "step-6", "step-7"]
    assert not list(tmp_path.rglob("*.part"))
    lines = records(tmp_path)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 8))
    assert [line["step"] for line in lines if "figure" in line] == [3, 6, 7]
    for line in lines:
        if "loss" in line:
            assert line["twice"] == pytest.approx(2 * line["loss"])
            assert line["grad_norm"] > 0
            assert line["examples_per_second"] > 0


def test_a_line_holds_the_mean_of_its_steps(tmp_path: Path) -> None:
    run(ToyTask(), ToyData(), settings(tmp_path / "each"))
    run(ToyTask(), ToyData(), settings(tmp_path / "three", log_every=3, checkpoint_every=2))
    each = [line["loss"] for line in records(tmp_path / "each") if "loss" in line]
    three = [line["loss"] for line in records(tmp_path / "three") if "loss" in line]
    assert three == pytest.approx([sum(each[:3]) / 3, sum(each[3:]) / 3])


def test_a_finished_run_is_left_alone_and_can_be_made_longer(tmp_path: Path) -> None:
    config = settings(tmp_path)
    assert not is_finished(config)
    run(ToyTask(), ToyData(), config)
    assert is_finished(config)
    before = (tmp_path / "model" / "weights.pt").stat().st_mtime_ns
    task = ToyTask()
    run(task, ToyData(stop_at=0), config)  # would be interrupted if it trained or sampled
    assert task.sampled == []
    assert (tmp_path / "model" / "weights.pt").stat().st_mtime_ns == before
    longer = dataclasses.replace(config, max_steps=8)
    assert not is_finished(longer)
    run(ToyTask(), ToyData(), longer)
    run(ToyTask(), ToyData(), settings(tmp_path / "at_once", max_steps=8))
    assert same_weights(tmp_path, tmp_path / "at_once")


def test_a_run_killed_after_its_last_step_still_gets_model_and_samples(tmp_path: Path) -> None:
    class Killed(ToyTask):
        def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
            (folder / "half.txt").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Killed(), ToyData(), settings(tmp_path))
    assert not list((tmp_path / "samples").iterdir())
    run(ToyTask(), ToyData(stop_at=0), settings(tmp_path))
    assert (tmp_path / "samples" / "step-6" / "figure.txt").exists()
    run(ToyTask(), ToyData(), settings(tmp_path / "whole"))
    assert same_weights(tmp_path, tmp_path / "whole")


def test_a_checkpoint_that_was_cut_off_is_not_taken_for_one(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(ToyTask(), ToyData(stop_at=3), settings(tmp_path))
    part = tmp_path / "checkpoints" / "step-4.part"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    run(ToyTask(), ToyData(), settings(tmp_path))
    assert not part.exists()
    assert [line["step"] for line in records(tmp_path) if "loss" in line] == list(range(1, 7))
    run(ToyTask(), ToyData(), settings(tmp_path / "whole"))
    assert same_weights(tmp_path, tmp_path / "whole")


@pytest.mark.parametrize(("log_every", "poison_at"), [(1, 4), (5, 3)])
def test_a_loss_that_is_no_number_stops_before_a_checkpoint(
    tmp_path: Path, log_every: int, poison_at: int
) -> None:
    """Also where it falls between two log lines, right before a checkpoint is due."""
    task = ToyTask()
    task.poison_at = poison_at
    with pytest.raises(
        FloatingPointError, match=r"(loss|grad_norm) at step \d: got nan, expected a fin"
    ) as e:
        run(task, ToyData(), settings(tmp_path, log_every=log_every))
    assert "\n" not in str(e.value)
    assert checkpoints(tmp_path)
    for folder in checkpoints(tmp_path):
        assert int(folder.name[5:]) <= poison_at
    assert not (tmp_path / "model").exists()
    run(ToyTask(), ToyData(), settings(tmp_path))
    assert all(bool(value.isfinite().all()) for value in weights(tmp_path).values())


def test_a_checkpoint_of_another_network_is_refused_in_one_line(tmp_path: Path) -> None:
    run(ToyTask(), ToyData(), settings(tmp_path))
    task = ToyTask()
    task.network = nn.Linear(4, 4)
    with pytest.raises(RuntimeError, match="step-6: does not fit this network") as error:
        run(task, ToyData(), settings(tmp_path))
    assert "\n" not in str(error.value)


def test_runs_of_one_process_may_differ_in_precision(tmp_path: Path) -> None:
    run(ToyTask(), ToyData(), settings(tmp_path / "bf16", mixed_precision="bf16"))
    run(ToyTask(), ToyData(), settings(tmp_path / "no", gradient_accumulation_steps=2))
    run(ToyTask(), ToyData(), settings(tmp_path / "again", gradient_accumulation_steps=2))
    assert same_weights(tmp_path / "no", tmp_path / "again")


def test_a_bad_batch_is_named(tmp_path: Path) -> None:
    class Named(ToyData):
        def batch(self, index: int) -> dict[str, Any]:
            return {**super().batch(index), "ids": [10 * index, 10 * index + 1]}

    task = ToyTask()
    task.poison_at = 2
    with pytest.raises(FloatingPointError, match=r"first in batch 2 with ids \[20, 21\] \(step 3\)"):
        run(task, Named(), settings(tmp_path, log_every=5, checkpoint_every=5))


@pytest.mark.parametrize("checkpoint_every", [2, 3])
def test_sigterm_saves_first(tmp_path: Path, checkpoint_every: int) -> None:
    class Asked(ToyData):
        def batch(self, index: int) -> dict[str, Any]:
            if index == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(index)

    before = signal.getsignal(signal.SIGTERM)
    config = settings(tmp_path / "asked", checkpoint_every=checkpoint_every)
    with pytest.raises(Terminated, match="step-4 is written; the same command goes on from there"):
        run(ToyTask(), Asked(), config)
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoints(tmp_path / "asked")[-1].name == "step-4"
    run(ToyTask(), ToyData(), config)
    run(ToyTask(), ToyData(), settings(tmp_path / "whole"))
    assert same_weights(tmp_path / "asked", tmp_path / "whole")


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    class Rated(ToyTask):
        def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
            step = int(folder.name.removesuffix(".part").removeprefix("step-"))
            return {"quality": {2: 0.1, 4: 0.9, 6: 0.5, 8: 0.9, 10: 0.2}[step]}

    config = settings(tmp_path, max_steps=10, sample_every=2, keep_checkpoints=1, best_metric="quality")
    run(Rated(), ToyData(), config)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-4", "step-10"]
    best = json.loads((tmp_path / "checkpoints/best.json").read_text())
    assert best == {"step": 4, "metric": "quality", "value": 0.9}
    at_4 = settings(tmp_path / "short", max_steps=4)
    run(ToyTask(), ToyData(), at_4)
    best_model = torch.load(tmp_path / "best_model/weights.pt", weights_only=True)
    assert all(torch.equal(best_model[name], value) for name, value in weights(tmp_path / "short").items())
    lowest = settings(
        tmp_path / "low", max_steps=10, sample_every=2, best_metric="quality", best_is_lowest=True
    )
    run(Rated(), ToyData(), lowest)
    assert json.loads((tmp_path / "low/checkpoints/best.json").read_text())["step"] == 2
    with pytest.raises(
        ValueError, match="best_metric: got 'beauty', expected a figure of the samples: quality"
    ):
        run(Rated(), ToyData(), settings(tmp_path / "no", sample_every=2, best_metric="beauty"))


def test_samples_of_a_step_are_taken_once_also_by_a_run_that_was_killed_before(tmp_path: Path) -> None:
    class Killed(ToyTask):
        def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Killed(), ToyData(), settings(tmp_path, sample_every=2))
    assert checkpoints(tmp_path)[-1].name == "step-2"
    task = ToyTask()
    run(task, ToyData(), settings(tmp_path, sample_every=2))
    assert task.sampled == ["step-2", "step-4", "step-6"]
    assert [line["step"] for line in records(tmp_path) if "figure" in line] == [2, 4, 6]


def test_samples_of_weights_that_are_gone_are_taken_again(tmp_path: Path) -> None:
    config = settings(tmp_path, sample_every=2)
    run(ToyTask(), ToyData(), config)
    shutil.rmtree(tmp_path / "checkpoints" / "step-6")
    task = ToyTask()
    run(task, ToyData(), dataclasses.replace(config, learning_rate=0.1))
    assert task.sampled == ["step-6"]


def test_a_run_whose_last_samples_are_missing_is_not_finished(tmp_path: Path) -> None:
    config = settings(tmp_path)
    run(ToyTask(), ToyData(), config)
    assert is_finished(config)
    shutil.rmtree(tmp_path / "samples" / "step-6")
    assert not is_finished(config)
    task = ToyTask()
    run(task, ToyData(stop_at=0), config)
    assert task.sampled == ["step-6"]
    assert is_finished(config)


def test_samples_that_are_no_numbers_are_never_the_best(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Rated(ToyTask):
        def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
            if folder.name.startswith("step-2"):
                return {"clip/brightness": math.nan}
            return {"clip/brightness": 0.5, "quality": math.nan if folder.name.startswith("step-4") else 0.1}

    config = settings(tmp_path, sample_every=2, best_metric="quality")
    run(Rated(), ToyData(), config)
    assert json.loads((tmp_path / "checkpoints/best.json").read_text())["step"] == 6
    lines = [record.getMessage() for record in caplog.records if "no numbers" in record.getMessage()]
    assert [line.split(":")[0] for line in lines] == ["step 2", "step 4"]


def test_dropout_of_a_batch_is_its_own(tmp_path: Path) -> None:
    """Whatever else was drawn before it: as in another process, or in another number of micro-steps."""

    class Drawing(ToyData):
        def batch(self, index: int) -> dict[str, Any]:
            torch.rand(index + 1)
            return super().batch(index)

    run(ToyTask(), ToyData(), settings(tmp_path / "plain"))
    run(ToyTask(), Drawing(), settings(tmp_path / "drawing"))
    assert same_weights(tmp_path / "plain", tmp_path / "drawing")


def test_accumulation_follows_from_the_number_of_processes() -> None:
    config = LoopConfig(output="x", batch_size=2, target_global_batch=8)
    assert [accumulation_steps(config, n) for n in (1, 2, 4)] == [4, 2, 1]
    with pytest.raises(ValueError, match=r"got 8, expected a multiple of 6 \(batch_size 2 x 3 processes\)"):
        accumulation_steps(config, 3)
    assert accumulation_steps(LoopConfig(output="x", gradient_accumulation_steps=3), 7) == 3
    with pytest.raises(ValidationError, match="give one of the two"):
        LoopConfig(output="x", target_global_batch=8, gradient_accumulation_steps=2)


def test_one_process_with_the_global_batch_sees_what_several_would(tmp_path: Path) -> None:
    """Batches of a step have the same numbers however they are spread over processes and time."""
    seen: list[int] = []

    class Watched(ToyData):
        def batch(self, index: int) -> dict[str, Any]:
            seen.append(index)
            return super().batch(index)

    run(ToyTask(), Watched(), settings(tmp_path, max_steps=2, target_global_batch=12))
    assert seen == list(range(8))


def test_a_checkpoint_of_another_accumulation_goes_on_between_steps(tmp_path: Path) -> None:
    """Three micro-steps are saved; four follow. The count of the old ones must not shift the new steps."""
    run(ToyTask(), ToyData(), settings(tmp_path, max_steps=1, gradient_accumulation_steps=3))
    run(ToyTask(), ToyData(), settings(tmp_path, max_steps=3, gradient_accumulation_steps=4))
    lines = [line for line in records(tmp_path) if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all("grad_norm" in line for line in lines)


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(ToyTask(), ToyData(), settings(tmp_path))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("loss")}
    lines = {line["step"]: line["loss"] for line in records(tmp_path) if "loss" in line}
    assert logged == pytest.approx(lines)


def test_a_tracker_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.trackers.find_spec", lambda name: None)
    run(ToyTask(), ToyData(), settings(tmp_path / "auto"))
    assert not (tmp_path / "auto/tensorboard").exists()
    with pytest.raises(RuntimeError, match="pip install 'hummingbird-t2v\\[train\\]'"):
        run(ToyTask(), ToyData(), settings(tmp_path / "named", tracker="tensorboard"))


def test_one_line_says_how_it_goes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(ToyTask(), ToyData(), settings(tmp_path))
    lines = [line for line in capsys.readouterr().err.splitlines() if "step 5/6" in line]
    assert len(lines) == 1
    for text in ("loss ", "twice ", "grad ", "lr ", "it/s", "data ", " MB", "0:00:0"):
        assert text in lines[0]


def test_eight_bit_states_or_one_line_that_says_why_not(caplog: pytest.LogCaptureFixture) -> None:
    network = nn.Linear(128, 64)
    optimizer = make_optimizer(network, "adamw8bit", 1e-3, 0.1, 0.99, torch.device("cpu"))
    lines = [record.getMessage() for record in caplog.records if record.name == "train.optimizer"]
    assert len(lines) == 1
    if isinstance(optimizer, torch.optim.AdamW):
        assert lines[0].startswith("optimizer: torch's AdamW, because no 8-bit one works here (bitsandbytes:")
    network(torch.ones(2, 128)).sum().backward()
    before = network.weight.detach().clone()
    optimizer.step()
    assert not torch.equal(before, network.weight)
    plain = make_optimizer(network, "adamw", 1e-3, 0.1, 0.99, torch.device("cpu"))
    assert [group["weight_decay"] for group in plain.param_groups] == [0.1, 0.0]


def test_gradient_checkpointing_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gradient_checkpointing: Sequential cannot do it"):
        run(ToyTask(), ToyData(), settings(tmp_path, gradient_checkpointing=True))


def test_learning_rate() -> None:
    config = LoopConfig(output="x", max_steps=100, warmup_steps=10, decay_steps=20)
    factors = [learning_rate_factor(step, config) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[9:81] == [1.0] * 72
    assert factors[80:101] == pytest.approx([1.0 - i / 20 for i in range(21)])
    assert factors[99] > 0.0  # the last step still learns
    constant = LoopConfig(output="x", max_steps=3, warmup_steps=0)
    assert [learning_rate_factor(step, constant) for step in range(3)] == [1.0] * 3
    assert min(learning_rate_factor(step, config) for step in range(100, 200)) == 0.0


def test_weight_decay_is_on_matrices_alone() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Conv2d(1, 1, 1))
    network[0].bias.requires_grad_(False)
    groups = parameter_groups(network, 0.1)
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in groups] == [2, 3]


@pytest.mark.parametrize(
    "change", [{"log_every": 0}, {"max_steps": 0}, {"keep_checkpoints": 0}, {"ema_decay": 1.5}, {"seeds": 1}]
)
def test_settings_that_cannot_work_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LoopConfig(output="x", **change)
