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
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TextIO, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import set_seed
from diffusers.training_utils import EMAModel
from pydantic import Field
from torch import Tensor, nn
from tqdm.auto import tqdm

from hummingbird.config import config_dataclass, save_config
from hummingbird.evaluation.report import environment

Batch = dict[str, Any]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
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
    max_steps: Count = 1000
    batch_size: Count = 16
    """Examples per process and step."""
    gradient_accumulation_steps: Count = 1
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
    sample_every: CountOrNone = 0
    """0 samples only at the end."""
    save_model_every: CountOrNone = 0
    """0 writes ``model/`` only at the end."""
    init_from: str | None = None
    """Folder of a trained pipeline whose U-Net starts the run; None starts from nothing."""


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
        FloatingPointError: loss or gradient is not finite; the last checkpoint stands and is sound.
        RuntimeError: the newest checkpoint is of another network.
    """
    # Accelerate keeps its settings for the whole process; an earlier run may have had another precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
    )
    set_seed(config.seed)
    output = Path(config.output)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        save_config(full_config if full_config is not None else config, output / "config.yaml")
        _write_json(output / "environment.json", environment(accelerator.device, config.mixed_precision))

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
    window = _Window(step)
    with _metrics_file(output, step) if accelerator.is_main_process else nullcontext() as metrics:
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
                    window.add(losses)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(task.network.parameters(), config.max_grad_norm)
                        window.add({"grad_norm": norm})
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            schedule.step()
            ema.step(inner.parameters())
            step += 1
            progress.update()
            is_last = step == config.max_steps
            is_logged = is_last or step % config.log_every == 0
            is_checkpoint = is_last or step % config.checkpoint_every == 0
            if is_logged or is_checkpoint:
                means = window.means(accelerator)
                _check_finite(means, step, config)
            if is_logged:
                examples = config.batch_size * config.gradient_accumulation_steps * accelerator.num_processes
                speed = (step - window.first_step) * examples / (time.perf_counter() - window.start)
                values = {**means, "examples_per_second": speed}
                _log(metrics, {"step": step, "learning_rate": float(schedule.get_last_lr()[0]), **values})
                progress.set_postfix(loss=f"{means['loss']:.4f}")
                window = _Window(step)
            start = time.perf_counter()
            # The model comes before its checkpoint: whoever finds the last checkpoint also finds the model.
            if accelerator.is_main_process and (is_last or _is_due(step, config.save_model_every)):
                _write_with_ema(ema, inner, task.save_model, output / "model")
            if is_checkpoint:
                _save_checkpoint(accelerator, output, step, config.keep_checkpoints)
            if accelerator.is_main_process and not is_last and _is_due(step, config.sample_every):
                _sample(task, ema, inner, output, step, metrics)
            window.start += time.perf_counter() - start
        if accelerator.is_main_process:
            if not (output / "model").exists():  # resumed after its last step
                _write_with_ema(ema, inner, task.save_model, output / "model")
            if not (output / "samples" / f"step-{step}").exists():
                _sample(task, ema, inner, output, step, metrics)
    progress.close()
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output / "model"


def is_finished(config: LoopConfig) -> bool:
    """Whether the run has its model and no step left to do."""
    output = Path(config.output)
    found = checkpoints(output)
    return (output / "model").exists() and (not found or _step_of(found[-1]) >= config.max_steps)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Window:
    """Means of what is logged since the last line; nothing waits for the device before they are asked for."""

    def __init__(self, first_step: int) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.first_step = first_step
        self.start = time.perf_counter()

    def add(self, values: dict[str, Tensor]) -> None:
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self, accelerator: Accelerator) -> dict[str, float]:
        """Over steps and processes."""
        means = torch.stack([value / self.counts[name] for name, value in self.sums.items()])
        return dict(zip(self.sums, accelerator.reduce(means, "mean").tolist(), strict=True))


def _check_finite(means: dict[str, float], step: int, config: LoopConfig) -> None:
    """Stops before weights that are not numbers reach a checkpoint."""
    # In fp16 an overflowing gradient is normal: the loss scale falls and the step is skipped.
    names = ["loss"] if config.mixed_precision == "fp16" else ["loss", "grad_norm"]
    for name in names:
        if not math.isfinite(means[name]):
            raise FloatingPointError(
                f"{name} at step {step}: got {means[name]}, expected a finite number; lower learning_rate, "
                f"or use bf16 or no mixed_precision (the last checkpoint is in {config.output}/checkpoints)"
            )


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
    device = next(network.parameters()).device
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    network.eval()
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            return function(network, folder)
    finally:
        ema.restore(network.parameters())
        network.train(was_training)


def _write_with_ema(
    ema: EMAModel, network: nn.Module, function: Callable[[nn.Module, Path], T], folder: Path
) -> T:
    """Fills ``folder`` with the averaged weights, all of it or nothing."""
    with _whole_folder(folder) as part:
        return _with_ema(ema, network, function, part)


def _sample(
    task: Task, ema: EMAModel, network: nn.Module, output: Path, step: int, metrics: TextIO | None
) -> None:
    figures = _write_with_ema(ema, network, task.sample, output / "samples" / f"step-{step}")
    if figures:
        _log(metrics, {"step": step, **figures})


def _log(metrics: TextIO | None, record: dict[str, float]) -> None:
    """One line of strict JSON, which has no word for infinity."""
    if metrics is not None:
        finite = {name: value if math.isfinite(value) else None for name, value in record.items()}
        print(json.dumps(finite), file=metrics, flush=True)


def _metrics_file(output: Path, step: int) -> TextIO:
    """Opens ``metrics.jsonl`` for more lines, without those that a killed run wrote after its checkpoint."""
    path = output / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    if kept != lines:
        part = path.with_name(path.name + ".part")
        part.write_text("".join(kept))
        part.replace(path)
    return path.open("a")


@contextmanager
def _whole_folder(final: Path) -> Iterator[Path]:
    """A folder that gets its name when it is complete; after an error or Ctrl-C nothing of it is left."""
    part = final.with_name(final.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)


def checkpoints(output: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    folders = [p for p in (output / "checkpoints").glob("step-*") if p.suffix != ".part"]
    return sorted(folders, key=_step_of)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _save_checkpoint(accelerator: Accelerator, output: Path, step: int, keep: int) -> None:
    """Writes beside the final name and renames, so a killed run never leaves half a checkpoint."""
    final = output / "checkpoints" / f"step-{step}"
    with _whole_folder(final) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        accelerator.save_state(str(final) + ".part")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_json(Path(str(final) + ".part") / "step.json", {"step": step})
    if accelerator.is_main_process:
        for old in checkpoints(output)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _resume(accelerator: Accelerator, output: Path) -> int:
    """Loads the newest checkpoint; returns its step, 0 when there is none."""
    if accelerator.is_main_process:
        for parent in (output, output / "checkpoints", output / "samples"):
            for left_over in parent.glob("*.part"):  # of a run that was killed
                shutil.rmtree(left_over) if left_over.is_dir() else left_over.unlink()
    found = checkpoints(output)
    if not found:
        return 0
    try:
        accelerator.load_state(str(found[-1]))
    except (RuntimeError, ValueError, KeyError) as error:
        raise RuntimeError(
            f"checkpoint {found[-1]}: does not fit this network ({' '.join(str(error).split())[:200]}); give "
            "another --loop.output, or delete the folder to start again"
        ) from error
    return int(json.loads((found[-1] / "step.json").read_text())["step"])


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=2) + "\n")
    part.replace(path)
