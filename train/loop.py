"""The one training loop. Stages differ by task, data and configuration, never by a copied loop.

A task owns the network that is trained and computes losses; data is a pure function from a batch index to a
batch. Nothing depends on how far a previous process came: step ``n`` always sees the same examples and the
same noise, so a run that was killed and resumed ends bit-equal to one that was not (on CPU).

Run folder: ``config.yaml``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/step-N/``,
``samples/step-N/``, ``model/``; where they are asked for also ``best_model/``, ``guard.json`` and
``tensorboard/``.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, runtime_checkable

import pydantic
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
    set_seed,
)
from diffusers.training_utils import EMAModel
from pydantic import Field
from torch import Tensor, nn
from torch.distributed import GradBucket  # type: ignore[attr-defined]
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from hummingbird.config import ConfigError, config_dataclass, save_config
from hummingbird.evaluation.report import environment, peak_memory_mb
from train.checkpoint import (
    checkpoints,
    discard,
    load_checkpoint,
    read_best,
    remove_left_overs,
    sample_folders,
    save_checkpoint,
    step_of,
    whole_folder,
    write_best,
    write_json,
)
from train.guards import Guard, GuardConfig, are_numbers
from train.optimizer import OptimizerName, make_optimizer
from train.sharding import Sharding, is_sharded, whole
from train.trackers import Metrics, TrackerName, progress_line

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


TIMES = ("examples_per_second", "data_wait", "memory_mb")
"""What a line of ``metrics.jsonl`` says about the machine; everything else is the same in every run."""

SAMPLING_TIME = timedelta(hours=2)
"""How long processes wait for the one that samples."""


class Terminated(Exception):
    """The process was asked to end (SIGTERM) and has saved; the message is one line that says where."""


class Data(Protocol):
    """Examples by index. ``batch(i)`` must depend on nothing but ``i`` and the data's own settings.

    A batch may name its examples under ``"ids"``; errors then do so, too. The loop adds ``"global_step"``,
    ``"reward_scale"`` (what the guard left of the rewards' weights), ``"num_slots"`` (batches of one
    optimizer step over all processes) and ``"slot"`` (which of them this one is).
    """

    def batch(self, index: int) -> Batch: ...


class Task(Protocol):
    """What is trained and how. ``network`` is replaced by its distributed wrapper before training."""

    network: nn.Module

    def losses(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of one batch by name; ``"loss"`` is the one that is minimised."""

    def sample(self, network: nn.Module, folder: Path) -> dict[str, float]:
        """Writes pictures or videos made with ``network`` (the averaged weights) and returns figures."""

    def save_model(self, network: nn.Module, folder: Path) -> None:
        """Writes ``network`` in the format users load."""


@runtime_checkable
class WantsAverage(Protocol):
    """A task whose losses need the averaged weights, such as a target of consistency distillation."""

    def set_average(self, average: EMAModel) -> None:
        """The averages that the loop keeps; their values change with every step."""


@runtime_checkable
class HasReference(Protocol):
    """A task that knows what good samples look like, such as those of a teacher."""

    def sample_reference(self, folder: Path) -> dict[str, float]:
        """As ``Task.sample``, of the network that the trained one is compared with."""


@config_dataclass
class LoopConfig:
    """Settings that every stage shares."""

    output: str
    seed: int = 0
    max_steps: Count = 1000
    batch_size: Count = 16
    """Examples per process and step."""
    gradient_accumulation_steps: Count = 1
    target_global_batch: Count | None = None
    """Examples per step over all processes; the accumulation follows from it and the number of processes."""
    gradient_checkpointing: bool = False
    """Computes activations again on the way back instead of keeping them."""
    optimizer: OptimizerName = "adamw"
    learning_rate: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    adam_beta2: Share = 0.99
    warmup_steps: CountOrNone = 100
    decay_steps: CountOrNone = 0
    """Length of the linear decay to zero that ends the run; before it the rate is constant."""
    max_grad_norm: Positive = 1.0
    ema_decay: Share = 0.999
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    log_every: Count = 20
    checkpoint_every: Count = 500
    keep_checkpoints: Count = 2
    """The newest ones; the best one and the last good one stay beside them."""
    best_metric: str | None = None
    """Figure of the samples that the best checkpoint is chosen by, such as ``sample_all``."""
    best_is_lowest: bool = False
    sample_every: CountOrNone = 0
    """0 samples only at the end."""
    save_model_every: CountOrNone = 0
    """0 writes ``model/`` only at the end."""
    init_from: str | None = None
    """Folder of a trained pipeline whose U-Net starts the run; None starts from nothing."""
    guard: GuardConfig = GuardConfig()
    tracker: TrackerName = "auto"

    @pydantic.model_validator(mode="after")
    def _check(self) -> LoopConfig:
        if self.target_global_batch is not None and self.gradient_accumulation_steps != 1:
            raise ValueError(
                "target_global_batch decides about gradient_accumulation_steps; give one of the two"
            )
        return self


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Linear warm-up, constant, linear decay: in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    decay = min(1.0, (config.max_steps - step) / config.decay_steps) if config.decay_steps else 1.0
    return warmup * max(decay, 0.0)


def accumulation_steps(config: LoopConfig, num_processes: int) -> int:
    """Micro-steps per optimizer step.

    Raises:
        ConfigError: the processes cannot make ``target_global_batch`` of whole batches.
    """
    if config.target_global_batch is None:
        return config.gradient_accumulation_steps
    at_once = config.batch_size * num_processes
    if config.target_global_batch % at_once:
        raise ConfigError(
            f"target_global_batch: got {config.target_global_batch}, expected a multiple of {at_once} "
            f"(batch_size {config.batch_size} x {num_processes} processes); change one of the three"
        )
    return config.target_global_batch // at_once


def run(task: Task, data: Data, config: LoopConfig, full_config: Any = None) -> Path:
    """Trains ``task.network`` to ``config.max_steps``, resuming from the newest checkpoint if there is one.

    Args:
        task: what is trained; its network is changed in place.
        data: examples by batch index.
        config: the loop's settings.
        full_config: what is saved as ``config.yaml``; ``config`` itself when None.

    Returns:
        The folder ``model/`` with the averaged weights.

    Raises:
        ConfigError: settings that do not fit the number of processes or the network.
        FloatingPointError: loss or gradient is not finite; the last checkpoint stands and is sound.
        RuntimeError: the newest checkpoint is of another network, or a guard stops the run.
        Terminated: after SIGTERM and a checkpoint.
    """
    with _noting_sigterm() as asked_to_end:
        return _Run(task, data, config, full_config, asked_to_end).train()


def is_finished(config: LoopConfig) -> bool:
    """Whether the run has its model and no step left to do."""
    output = Path(config.output)
    found = checkpoints(output)
    if not found:
        return (output / "model").exists()
    # The model of the last step is there before its samples have been judged.
    judged = (output / "samples" / f"step-{config.max_steps}" / "figures.json").is_file()
    return (output / "model").exists() and judged and step_of(found[-1]) >= config.max_steps


class _Run:
    """One run of the loop: what lives from its first step to its last."""

    def __init__(
        self, task: Task, data: Data, config: LoopConfig, full_config: Any, asked_to_end: threading.Event
    ) -> None:
        self.task, self.data, self.config = task, data, config
        self.asked_to_end = asked_to_end
        self.output = Path(config.output)
        self.step = 0
        self.accelerator = accelerator = _accelerator(config)
        self.is_main = accelerator.is_main_process
        self.accumulation = accumulation_steps(config, accelerator.num_processes)
        accelerator.gradient_accumulation_steps = self.accumulation
        set_seed(config.seed)
        if config.gradient_checkpointing:
            _checkpoint_gradients(task.network)
        if self.is_main:
            self.output.mkdir(parents=True, exist_ok=True)
            save_config(full_config if full_config is not None else config, self.output / "config.yaml")
            facts = environment(accelerator.device, config.mixed_precision)
            facts |= {"num_processes": accelerator.num_processes, "accumulation_steps": self.accumulation}
            write_json(self.output / "environment.json", facts)
        self.sharding = Sharding(task.network, accelerator) if is_sharded(accelerator) else None
        if self.sharding is not None and config.optimizer != "adamw":
            raise ConfigError(
                f"optimizer: got {config.optimizer} with FSDP, expected adamw, whose state it spreads"
            )
        optimizer = make_optimizer(task.network, config.optimizer, config.learning_rate,
            config.weight_decay, config.adam_beta2, accelerator.device)  # fmt: skip
        self.guard = Guard(config.guard, self.output)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: self.guard.state.rate_scale * learning_rate_factor(step, config)
        )
        _fill_in_deepspeed(accelerator, config, self.accumulation)
        if self.sharding is None:
            task.network, self.optimizer = accelerator.prepare(task.network, optimizer)
        else:
            self.optimizer = accelerator.prepare_optimizer(optimizer, device_placement=False)
        if accelerator.device.type == "cpu" and isinstance(task.network, DistributedDataParallel):
            task.network.register_comm_hook(None, _average_in_order_of_ranks)
        self.network = task.network if self.sharding is not None else accelerator.unwrap_model(task.network)
        self.ema = EMAModel(
            self.network.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True
        )
        if self.sharding is None:
            accelerator.register_for_checkpointing(self.schedule, self.ema)
        if isinstance(task, WantsAverage):
            task.set_average(self.ema)
        self.generator = torch.Generator(device=accelerator.device)

    def train(self) -> Path:
        """From the newest checkpoint to the last step."""
        self._resume()
        self.metrics = Metrics(self.output, self.step, self.config) if self.is_main else None
        self.window = _Window(self.step)
        self.progress = tqdm(total=self.config.max_steps, initial=self.step, desc=self.output.name,
            disable=not self.accelerator.is_local_main_process, mininterval=5.0)  # fmt: skip
        try:
            self._prepare_guard()
            while True:
                self._sample_if_due()
                if self.step >= self.config.max_steps:
                    break
                self._optimizer_step()
                self._log_and_save()
                self._end_if_asked()
            self._gather()
            if self.is_main and not (self.output / "model").exists():  # resumed after its last step
                self._with_ema(self.task.save_model, self.output / "model")
        finally:
            self.progress.close()
            if self.metrics is not None:
                self.metrics.close()
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return self.output / "model"

    # --- one step ------------------------------------------------------------------------------------------

    def _optimizer_step(self) -> None:
        accelerator, network = self.accelerator, self.task.network
        network.train()
        for micro_step in range(self.accumulation):
            index = (
                self.step * self.accumulation + micro_step
            ) * accelerator.num_processes + accelerator.process_index
            seed = self.config.seed * 1_000_003 + index
            self.generator.manual_seed(seed)
            start = time.perf_counter()
            slots = self.accumulation * accelerator.num_processes
            batch = {
                **self.data.batch(index),
                "global_step": self.step,
                "slot": index % slots,
                "num_slots": slots,
                "reward_scale": self.guard.state.reward_scale,
            }
            self.window.data_seconds += time.perf_counter() - start
            torch.manual_seed(seed)  # of dropout, which else depends on the process that has this batch
            with accelerator.accumulate(network):
                with accelerator.autocast():
                    losses = self.task.losses(batch, self.generator)
                accelerator.backward(losses["loss"])
                self.window.add(losses, self.step, index, batch.get("ids"))
                if accelerator.sync_gradients:
                    norm = self._clip()
                    if norm is None:  # DeepSpeed clips in its own step
                        engine: Any = network
                        norm = losses["loss"].new_tensor(float(engine.get_global_grad_norm() or 0.0))
                    self.window.add({"grad_norm": norm})
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        self.ema.step(self.network.parameters())
        self.step += 1
        self.progress.update()

    def _clip(self) -> Tensor | None:
        parameters, limit = self.task.network.parameters(), self.config.max_grad_norm
        if self.sharding is None:
            return self.accelerator.clip_grad_norm_(parameters, limit)
        return whole(nn.utils.clip_grad_norm_(parameters, limit))

    def _log_and_save(self) -> None:
        config, step = self.config, self.step
        is_last = step == config.max_steps
        is_logged = is_last or step % config.log_every == 0
        is_checkpoint = is_last or step % config.checkpoint_every == 0
        if self.guard.is_on or config.best_metric is not None:  # both point to checkpoints
            is_checkpoint = is_checkpoint or _is_due(step, config.sample_every)
        if is_logged or is_checkpoint:
            means = self.window.means(self.accelerator)
            self._check_finite(means)
            if is_logged:
                self._log(means)
        start = time.perf_counter()
        # The model comes before its checkpoint: whoever finds the last checkpoint also finds the model.
        if is_last or _is_due(step, config.save_model_every):
            self._gather()
            if self.is_main:
                self._with_ema(self.task.save_model, self.output / "model")
        if is_checkpoint:
            self._save_checkpoint()
        self.window.start += time.perf_counter() - start

    def _log(self, means: dict[str, float]) -> None:
        config, seconds = self.config, time.perf_counter() - self.window.start
        steps = self.step - self.window.first_step
        examples = config.batch_size * self.accumulation * self.accelerator.num_processes
        values = {
            "step": self.step,
            "learning_rate": float(self.schedule.get_last_lr()[0]),
            **means,
            "examples_per_second": steps * examples / seconds,
            "data_wait": self.window.data_seconds / seconds,
            "memory_mb": peak_memory_mb(self.accelerator.device),
        }
        if self.metrics is not None:
            self.metrics.log(values)
            self.progress.write(progress_line(values, steps / seconds, config.max_steps), file=sys.stderr)
        self.window = _Window(self.step)

    def _check_finite(self, means: dict[str, float]) -> None:
        """Stops before weights that are not numbers reach a checkpoint; every process comes here alike."""
        # In fp16 an overflowing gradient is normal: the loss scale falls and the step is skipped.
        names = ["loss"] if self.config.mixed_precision == "fp16" else ["loss", "grad_norm"]
        for name in names:
            if not math.isfinite(means[name]):
                guilty = [text for text in gather_object([self.window.first_bad(name)]) if text]
                raise FloatingPointError(
                    f"{name} at step {self.step}: got {means[name]}, expected a finite number; first in "
                    f"{', '.join(guilty) or 'the average alone'}; lower learning_rate, or use bf16 or no "
                    f"mixed_precision (the last checkpoint is in {self.config.output}/checkpoints)"
                )

    def _end_if_asked(self) -> None:
        """After SIGTERM: saves and ends. One process that was asked ends all of them, at the same step."""
        asked = torch.tensor(float(self.asked_to_end.is_set()), device=self.accelerator.device)
        if self.accelerator.num_processes > 1:
            asked = self.accelerator.reduce(asked, "sum")
        if float(asked) == 0.0:
            return
        if self.window.sums:
            self._check_finite(self.window.means(self.accelerator))
        if not (self.output / "checkpoints" / f"step-{self.step}").exists():
            self._save_checkpoint()
        raise Terminated(
            f"checkpoint {self.output}/checkpoints/step-{self.step} is written; the same command goes on "
            "from there"
        )

    # --- checkpoints ---------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        best = read_best(self.output)
        spared = {self.guard.state.good_step} | ({best["step"]} if best else set())
        save_checkpoint(
            self.accelerator, self.output, self.step, self.config.keep_checkpoints, spared, self._save_state
        )

    def _save_state(self, folder: Path) -> None:
        if self.sharding is None:
            self.accelerator.save_state(str(folder))
        else:
            self.sharding.save(self.network, self.optimizer.optimizer, self.ema, folder)

    def _load_state(self, folder: Path) -> None:
        if self.sharding is None:
            self.accelerator.load_state(str(folder))
        else:
            self.sharding.load(self.network, self.optimizer.optimizer, self.ema, folder)

    def _resume(self) -> None:
        if self.is_main:
            remove_left_overs(self.output)
            self.guard.finish_rollback()
        self.accelerator.wait_for_everyone()
        self.guard.load()
        if found := checkpoints(self.output):
            self._load(found[-1])
        self.ema.to(self.accelerator.device)
        if self.is_main:  # those of later steps are of weights that are gone
            for folder in sample_folders(self.output):
                if step_of(folder) > self.step:
                    discard(folder)

    def _load(self, checkpoint: Path) -> None:
        self.step = load_checkpoint(self.accelerator, checkpoint, self._load_state)
        self.schedule.last_epoch = self.step
        self.ema.to(self.accelerator.device)
        factor = self.guard.state.rate_scale * learning_rate_factor(self.step, self.config)
        for group in self.optimizer.param_groups:  # the rate may have been lowered since
            group["lr"] = self.config.learning_rate * factor
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]

    def _roll_back(self, reason: str) -> None:
        """To the last good checkpoint, with a lower rate."""
        bad_step = self.step
        if self.is_main:
            self.guard.begin_rollback()
            self.guard.finish_rollback()
        self.accelerator.wait_for_everyone()
        self.guard.load()
        self._load(self.output / "checkpoints" / f"step-{self.guard.state.good_step}")
        if self.metrics is not None:
            self.metrics.rewind(self.step)
            scales = {
                "rate_scale": self.guard.state.rate_scale,
                "reward_scale": self.guard.state.reward_scale,
            }
            self.metrics.log({"step": self.step, "rolled_back_from": bad_step, **scales})
        self.window = _Window(self.step)
        self.progress.n = self.step
        logger.warning("step %d: %s; back to step %d with %s",
            bad_step, reason, self.step, self.guard.describe_scale())  # fmt: skip

    # --- samples -------------------------------------------------------------------------------------------

    def _prepare_guard(self) -> None:
        """The reference of the band, and a checkpoint to go back to."""
        if not self.guard.is_on:
            return
        if self.is_main and self.guard.state.reference is None and isinstance(self.task, HasReference):
            with self._all_threads(), whole_folder(self.output / "samples" / "reference") as part:
                self.guard.set_reference(self.task.sample_reference(part))
        if self.config.guard.action == "rollback":
            good = self.output / "checkpoints" / f"step-{self.guard.state.good_step}"
            if not broadcast_object_list([good.exists()])[0]:  # the guard was off until now
                if not broadcast_object_list([bool(checkpoints(self.output))])[0]:
                    self._save_checkpoint()
                if self.is_main:
                    self.guard.begin(self.step)
        self.window = _Window(self.step)

    def _sample_if_due(self) -> None:
        """Samples of this step, unless there are; then what follows from them: best checkpoint and guard."""
        is_last = self.step == self.config.max_steps
        if not is_last and not (self.step and _is_due(self.step, self.config.sample_every)):
            return
        start = time.perf_counter()
        self._gather()
        with self._all_threads():
            verdict = self._sample() if self.is_main else None
        verdict = broadcast_object_list([verdict])[0]
        self.window.start += time.perf_counter() - start
        if verdict is None:
            return
        action, reason = verdict
        if action == "warn":
            if self.is_main:
                logger.warning("step %d: %s", self.step, reason)
            return
        self.guard.load()  # the main process alone has judged
        if self.is_main:
            discard(self.output / "model")
        if action == "rollback":
            self._roll_back(reason)
            return
        raise RuntimeError(
            f"guard: at step {self.step} {reason}; lower {self.guard.advice} and go on from the last good "
            f"checkpoint, step {self.guard.state.good_step}: delete the later ones in "
            f"{self.output}/checkpoints"
        )

    def _sample(self) -> tuple[str, str] | None:
        """What the guard says; None where all is well."""
        folder = self.output / "samples" / f"step-{self.step}"
        file = folder / "figures.json"
        if not file.is_file():
            self._with_ema(
                lambda network, part: _write_figures(self.task.sample(network, part), part), folder
            )
        figures = {k: math.nan if v is None else float(v) for k, v in json.loads(file.read_text()).items()}
        if figures and self.metrics is not None:
            self.metrics.log({"step": self.step, **figures})
        verdict = self.guard.judge(self.step, figures)
        if verdict is None:
            self._note_best(figures)
        return verdict

    @contextmanager
    def _all_threads(self) -> Iterator[None]:
        """The threads of all processes of this CPU for the main one, while the others wait for it."""
        before = torch.get_num_threads()
        if self.accelerator.device.type == "cpu":
            torch.set_num_threads(min(before * self.accelerator.num_processes, os.cpu_count() or before))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _note_best(self, figures: dict[str, float]) -> None:
        name = self.config.best_metric
        if name is None:
            return
        if not are_numbers(figures) or not math.isfinite(figures.get(name, 0.0)):
            logger.warning("step %d: samples are no numbers, and not compared with the best", self.step)
            return
        if name not in figures:
            raise ConfigError(
                f"best_metric: got {name!r}, expected a figure of the samples: {', '.join(sorted(figures))}"
            )
        best, sign = read_best(self.output), -1.0 if self.config.best_is_lowest else 1.0
        if best is None or best["metric"] != name or sign * figures[name] > sign * best["value"]:
            self._with_ema(self.task.save_model, self.output / "best_model")
            write_best(self.output, self.step, name, figures[name])

    def _gather(self) -> None:
        """Whole averaged weights for the main process, before it uses them."""
        if self.sharding is not None:
            self.sharding.gather(self.ema)

    def _with_ema(self, function: Callable[[nn.Module, Path], Any], folder: Path) -> None:
        """Fills ``folder`` with what ``function`` makes of the averaged weights, all of it or nothing."""
        network, device = self.network, self.accelerator.device
        if self.sharding is not None:
            assert self.sharding.copy is not None  # of the main process, which alone comes here
            with whole_folder(folder) as part, torch.random.fork_rng():
                function(self.sharding.copy.to(device).eval(), part)
            self.sharding.copy.cpu()
            return
        was_training = network.training
        with whole_folder(folder) as part:
            self.ema.store(network.parameters())
            self.ema.copy_to(network.parameters())
            network.eval()
            try:
                with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                    function(network, part)
            finally:
                self.ema.restore(network.parameters())
                network.train(was_training)


class _Window:
    """Means of what is logged since the last line; nothing waits for the device before they are asked for."""

    def __init__(self, first_step: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.batches: list[tuple[int, int, Any, Tensor]] = []
        self.first_step = first_step
        self.start = time.perf_counter()
        self.data_seconds = 0.0

    def add(self, values: dict[str, Tensor], step: int = 0, index: int = 0, ids: Any = None) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1
        if "loss" in values:
            self.batches.append((step, index, ids, values["loss"].detach()))

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Over steps and processes; of what only some batches have, over those."""
        names = list(self.sums)
        if accelerator.num_processes > 1:  # processes may have different losses
            names = list(dict.fromkeys(gather_object(names)))
        zero = torch.zeros((), device=accelerator.device)
        sums = torch.stack([self.sums.get(name, zero).to(accelerator.device) for name in names])
        counts = torch.tensor([float(self.counts.get(name, 0)) for name in names], device=accelerator.device)
        totals = accelerator.reduce(torch.stack([sums, counts]), "sum")
        return dict(zip(names, (totals[0] / totals[1]).tolist(), strict=True))

    def first_bad(self, name: str) -> str | None:
        """The batch of this process whose loss was the first that is no number, in words."""
        for step, index, ids, loss in self.batches:
            if not bool(torch.isfinite(loss)):
                which = f" with ids {list(ids)}" if ids is not None else ""
                return f"batch {index}{which} (step {step + 1})"
        if name == "grad_norm" and self.batches:
            return f"the gradient of batches up to {self.batches[-1][1]}"
        return None


def _accelerator(config: LoopConfig) -> Accelerator:
    # Accelerate keeps its settings for the whole process; an earlier run may have had another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    # Without a GPU, accelerate has to be told: it would let every process of a launcher train for itself.
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    cpu = not alone and not torch.accelerator.is_available()
    patience = InitProcessGroupKwargs(timeout=SAMPLING_TIME)
    return Accelerator(mixed_precision=config.mixed_precision, cpu=cpu, kwargs_handlers=[patience])


def _average_in_order_of_ranks(_: None, bucket: GradBucket) -> Future[Tensor]:
    """Means of gradients that do not depend on how they are packed.

    A ring adds up each part of a bucket in an order of its own, and buckets are packed anew after the first
    backward pass of a process: with three processes or more a resumed run would not end bit-equal.
    """
    own = bucket.buffer()
    gathered = [torch.empty_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(gathered, own)
    total = gathered[0]
    for part in gathered[1:]:
        total += part
    done: Future[Tensor] = Future()
    done.set_result(total / len(gathered))
    return done


# torch compares the annotations with these types, and does not know their names
_average_in_order_of_ranks.__annotations__ = {"_": None, "bucket": GradBucket, "return": Future[Tensor]}


def _fill_in_deepspeed(accelerator: Accelerator, config: LoopConfig, accumulation: int) -> None:
    """What DeepSpeed wants to know beforehand, and accelerate usually reads from a data loader."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = config.batch_size
        plugin.deepspeed_config["gradient_accumulation_steps"] = accumulation
        plugin.deepspeed_config["gradient_clipping"] = config.max_grad_norm


def _checkpoint_gradients(network: Any) -> None:
    if not hasattr(network, "enable_gradient_checkpointing"):
        raise ConfigError(
            f"gradient_checkpointing: {type(network).__name__} cannot do it; set it to false for this part"
        )
    network.enable_gradient_checkpointing()


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _write_figures(figures: dict[str, float], folder: Path) -> None:
    finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    write_json(folder / "figures.json", finite)


@contextmanager
def _noting_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets. Only a main thread can be told about signals."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)
