"""The one training loop. Stages differ by task, data and configuration, never by a copied loop.

A task owns the network that is trained and computes losses; data is a pure function from a batch index to a
batch. Nothing depends on how far a previous process came: step ``n`` always sees the same examples and the
same noise, so a run that was killed and resumed ends bit-equal to one that was not (on CPU).

Run folder: ``config.yaml``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/step-N/``,
``samples/step-N/``, ``model/``.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from hummingbird.config import config_dataclass, save_config

Batch = dict[str, Any]
T = TypeVar("T")


class Data(Protocol):
    """Examples by index. ``batch(i)`` must depend on nothing but ``i`` and the data's own settings."""

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


@config_dataclass
class LoopConfig:
    """Settings that every stage shares."""

    output: str
    seed: int = 0
    max_steps: int = 1000
    batch_size: int = 16
    """Examples per process and step."""
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    adam_beta2: float = 0.99
    warmup_steps: int = 100
    decay_steps: int = 0
    """Length of the linear decay to zero that ends the run; before it the rate is constant."""
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    sample_every: int = 0
    """0 samples only at the end."""
    save_model_every: int = 0
    init_from: str | None = None
    """``model.safetensors`` or a diffusers folder whose weights start the run; None starts from nothing."""


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """Linear warm-up, constant, linear decay: in [0, 1]."""
    warmup = min(1.0, (step + 1) / max(config.warmup_steps, 1))
    decay = min(1.0, (config.max_steps - step) / config.decay_steps) if config.decay_steps else 1.0
    return warmup * max(decay, 0.0)


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
        FloatingPointError: the loss is not finite; the last checkpoint stands.
    """
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )
    set_seed(config.seed)
    output = Path(config.output)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        save_config(full_config if full_config is not None else config, output / "config.yaml")
        _write_json(output / "environment.json", environment())

    optimizer = torch.optim.AdamW(
        _parameter_groups(task.network, config.weight_decay),
        lr=config.learning_rate,
        betas=(0.9, config.adam_beta2),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, config))
    task.network, optimizer = accelerator.prepare(task.network, optimizer)
    inner = accelerator.unwrap_model(task.network)
    ema = EMAModel(inner.parameters(), decay=config.ema_decay, use_ema_warmup=True, power=3 / 4, foreach=True)
    accelerator.register_for_checkpointing(schedule, ema)
    step = _resume(accelerator, output)
    ema.to(accelerator.device)

    generator = torch.Generator(device=accelerator.device)
    progress = tqdm(
        total=config.max_steps, initial=step, desc=output.name, disable=not accelerator.is_local_main_process,
        mininterval=5.0,
    )  # fmt: skip
    window = _Window()
    with (output / "metrics.jsonl").open("a") if accelerator.is_main_process else _no_file() as metrics:
        while step < config.max_steps:
            task.network.train()
            for micro_step in range(config.gradient_accumulation_steps):
                index = (
                    step * config.gradient_accumulation_steps + micro_step
                ) * accelerator.num_processes + accelerator.process_index
                generator.manual_seed(config.seed * 1_000_003 + index)
                batch = data.batch(index)
                with accelerator.accumulate(task.network):
                    with accelerator.autocast():
                        losses = task.losses(batch, generator)
                    accelerator.backward(losses["loss"])
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(task.network.parameters(), config.max_grad_norm)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            schedule.step()
            ema.step(inner.parameters())
            step += 1
            progress.update()
            window.add(losses, norm)
            if step % config.log_every == 0 or step == config.max_steps:
                values = window.summary(
                    config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes
                )
                if not math.isfinite(values["loss"]):
                    raise FloatingPointError(
                        f"loss at step {step}: got {values['loss']}, expected a finite number; "
                        f"lower learning_rate, or use bf16 or fp32 (the last checkpoint is in {output / 'checkpoints'})"
                    )
                if accelerator.is_main_process:
                    record = {"step": step, "learning_rate": schedule.get_last_lr()[0], **values}
                    print(json.dumps(record), file=metrics, flush=True)
                progress.set_postfix(loss=f"{values['loss']:.4f}")
            if step % config.checkpoint_every == 0 or step == config.max_steps:
                _save_checkpoint(accelerator, output, step, config.keep_checkpoints)
            is_last = step == config.max_steps
            if accelerator.is_main_process and (
                is_last or (config.sample_every and step % config.sample_every == 0)
            ):
                folder = output / "samples" / f"step-{step}"
                folder.mkdir(parents=True, exist_ok=True)
                figures = _with_ema(ema, inner, task.sample, folder)
                if figures:
                    print(json.dumps({"step": step, **figures}), file=metrics, flush=True)
                window = _Window()
            if accelerator.is_main_process and (
                is_last or (config.save_model_every and step % config.save_model_every == 0)
            ):
                _with_ema(ema, inner, task.save_model, output / "model")
    progress.close()
    if accelerator.is_main_process and not (output / "model").exists():
        _with_ema(ema, inner, task.save_model, output / "model")  # resumed after its last step
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output / "model"


class _Window:
    """Means of what is logged since the last line."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.start = time.perf_counter()

    def add(self, losses: dict[str, Tensor], grad_norm: Tensor) -> None:
        self.steps += 1
        for name, value in {**losses, "grad_norm": grad_norm}.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def summary(self, examples_per_step: int) -> dict[str, float]:
        """Means and speed; starts the next window."""
        values = {name: float(value) / self.steps for name, value in self.sums.items()}
        values["examples_per_second"] = self.steps * examples_per_step / (time.perf_counter() - self.start)
        self.__init__()  # type: ignore[misc]
        return values


def _parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay on matrices and kernels only, not on norms and biases."""
    parameters = [p for p in network.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def _with_ema(ema: EMAModel, network: nn.Module, function: Callable[[nn.Module, Path], T], folder: Path) -> T:
    """Calls ``function(network, folder)`` while ``network`` holds the averaged weights."""
    was_training = network.training
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    network.eval()
    try:
        with torch.random.fork_rng():
            return function(network, folder)
    finally:
        ema.restore(network.parameters())
        network.train(was_training)


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [p for p in (output / "checkpoints").glob("step-*") if p.suffix != ".part"]
    return sorted(folders, key=lambda p: int(p.name.removeprefix("step-")))


def _save_checkpoint(accelerator: Accelerator, output: Path, step: int, keep: int) -> None:
    """Writes beside the final name and renames, so a killed run never leaves half a checkpoint."""
    final = output / "checkpoints" / f"step-{step}"
    part = final.with_name(final.name + ".part")
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _write_json(part / "step.json", {"step": step})
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        for old in checkpoints(output)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, output: Path) -> int:
    """Loads the newest checkpoint; returns its step, 0 when there is none."""
    found = checkpoints(output)
    if not found:
        return 0
    accelerator.load_state(str(found[-1]))
    return int(json.loads((found[-1] / "step.json").read_text())["step"])


def environment() -> dict[str, Any]:
    """What a number needs beside it: versions, hardware, commit, date."""
    versions = {}
    for package in ("torch", "diffusers", "transformers", "accelerate", "numpy"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "missing"
    git = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False, cwd=Path(__file__).parent
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": versions,
        "git_commit": git.stdout.strip() or None,
    }


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)


def _no_file() -> TextIO:
    """Where other processes than the first would log: nowhere."""
    return open(os.devnull, "w")
