"""Memory and hours of a training recipe, from its YAML file alone: nothing is loaded, rendered or trained.

The networks are built without weights, the micro-steps of the recipe are played through on them, and every
tensor's life is followed (``hummingbird.planning.memory``).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hummingbird.config import ConfigError
from hummingbird.planning.memory import tensor_bytes
from hummingbird.planning.recipe import Device, Kind, Recipe, read_recipe
from hummingbird.planning.sketches import sketch_decoder, sketch_stage1, sketch_teacher, sketch_vae
from hummingbird.planning.stage2 import sketch_stage2
from hummingbird.planning.step import Found, Sketch, optimizer_bytes, play

__all__ = ["Planner", "RankPlan", "TrainingPlan", "plan_training"]

EFFICIENCY = {"gpu": 0.35, "cpu": 0.25}
"""Share of a large matrix product's FLOP/s that a training step is taken to reach where nobody says better:
rough guesses (docs/inference.md)."""

_SKETCHES: dict[Kind, Callable[[Recipe, Device], Sketch]] = {
    "stage1": sketch_stage1,
    "stage2": sketch_stage2,
    "teacher": sketch_teacher,
    "vae": sketch_vae,
    "decoder": sketch_decoder,
}


@dataclass(frozen=True, kw_only=True)
class RankPlan:
    """What one process of a training computes and needs. Gigabytes are 10^9 bytes.

    Args:
        rank: its number.
        micro_steps: losses of each micro-step of an optimizer step.
        parts_gb: what is there all the time, by name.
        activations_gb: what a forward pass keeps for the way back, at most.
        step_gb: peak of an optimizer step.
        tflop_per_step: of an optimizer step, recomputation included.
    """

    rank: int
    micro_steps: tuple[tuple[str, ...], ...]
    parts_gb: dict[str, float]
    activations_gb: float
    step_gb: float
    tflop_per_step: float


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What a training needs, per process. Gigabytes are 10^9 bytes.

    Args:
        config: the recipe.
        kind: what it trains.
        device: what it was planned for.
        num_processes: GPUs, or processes on CPUs.
        batch_size: examples per process and micro-step.
        accumulation: micro-steps per optimizer step.
        max_steps: of the whole training.
        trainable_parameters: of the network that is trained.
        parts_gb: what is there all the time, by name, on the process that needs most in a step.
        activations_gb: what a forward pass keeps for the way back, there.
        gradients_gb: of the trained weights.
        step_gb: peak of an optimizer step, there.
        sample_gb: peak of the first process while samples are made and judged; None where none are.
        peak_gb: the larger of the two.
        tflop_per_step: of an optimizer step of the process with most to do; the others wait for it.
        ranks: every process.
        hours: of all steps at ``tflops``; None where no rate is known.
        hours_floor: the same at the measured ceiling; None where it was not measured.
        tflops: rate that ``hours`` counts on, per process.
        assumptions: in words, what was taken for granted.
    """

    config: str
    kind: Kind
    device: Device
    num_processes: int
    batch_size: int
    accumulation: int
    max_steps: int
    trainable_parameters: int
    parts_gb: dict[str, float]
    activations_gb: float
    gradients_gb: float
    step_gb: float
    sample_gb: float | None
    peak_gb: float
    tflop_per_step: float
    ranks: tuple[RankPlan, ...]
    hours: float | None = None
    hours_floor: float | None = None
    tflops: float | None = None
    assumptions: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold."""
        return asdict(self)

    def to_text(self) -> str:
        """Lines for people."""
        lines = [
            f"{self.config}: {self.kind}, {self.num_processes} x {self.device}, batch {self.batch_size} x "
            f"{self.accumulation} micro-steps, {self.trainable_parameters:,} parameters trained",
            *(f"  {name:32} {size_gb:9.3f} GB" for name, size_gb in self.parts_gb.items()),
            f"  {'gradients':32} {self.gradients_gb:9.3f} GB",
            f"  {'activations kept by a forward':32} {self.activations_gb:9.3f} GB",
            f"peak of a step    {self.step_gb:8.3f} GB per process",
        ]
        if len({micro_step for rank in self.ranks for micro_step in rank.micro_steps}) > 1:
            lines += [_describe(rank) for rank in self.ranks]
        if self.sample_gb is not None:
            lines.append(f"peak of sampling  {self.sample_gb:8.3f} GB on the first process")
        lines.append(f"one step          {self.tflop_per_step:8.3f} TFLOP per process")
        if self.hours is not None:
            floor = "" if self.hours_floor is None else f" (floor {self.hours_floor:.2f})"
            lines.append(
                f"{self.max_steps} steps  {self.hours:11.2f} hours{floor}, at {self.tflops:.3g} TFLOP/s each"
            )
        return "\n".join([*lines, *(f"note: {text}" for text in self.assumptions)])


def _describe(rank: RankPlan) -> str:
    work = ", then ".join(" + ".join(micro_step) for micro_step in rank.micro_steps)
    return f"  process {rank.rank}: {rank.step_gb:8.3f} GB, {rank.tflop_per_step:8.3f} TFLOP, {work}"


def plan_training(
    path: str | Path,
    *,
    device: Device = "gpu",
    num_processes: int = 1,
    tflops: float | None = None,
    ceiling_tflops: float | None = None,
    changes: Mapping[str, Any] | None = None,
) -> TrainingPlan:
    """Plan one recipe.

    Args:
        path: YAML file of ``train/stage1.py``, ``train/stage2.py``, ``train/teacher.py``, ``train/nano.py
            vae`` or ``decoder``.
        device: what it will run on; on a GPU attention keeps no scores, and autocast has CUDA's lists.
        num_processes: that share the global batch.
        tflops: rate that one process is known to reach; it decides about the hours.
        ceiling_tflops: of a large matrix product on the device, for the hours where no rate is given.
        changes: values by dotted name in place of the file's, such as ``student.lora_rank``.

    Raises:
        ConfigError: not a recipe that can be planned, or one whose batch the processes cannot make.
        FileNotFoundError: a model that it names is missing.
    """
    planner = Planner(path, device=device, changes=changes)
    return planner.plan(num_processes, tflops=tflops, ceiling_tflops=ceiling_tflops)


class Planner:
    """A recipe whose networks are built once, for plans of several numbers of processes.

    Args:
        path: as for ``plan_training``, and so for the next two.
        device: what it will run on.
        changes: values by dotted name.
        counts: of micro-steps and samples, filled and read: planners that share it count nothing twice.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        device: Device = "gpu",
        changes: Mapping[str, Any] | None = None,
        counts: dict[Any, Any] | None = None,
    ) -> None:
        self.path, self.device = path, device
        self.recipe = read_recipe(path, changes)
        self.sketch = _SKETCHES[self.recipe.kind](self.recipe, device)
        self.counts: dict[Any, Any] = {} if counts is None else counts
        parameters = [p for p in self.sketch.network.parameters() if p.requires_grad]
        self.num_trainable = sum(p.numel() for p in parameters)
        self.gradients = tensor_bytes(parameters)
        self.weights = tensor_bytes(self.sketch.network.parameters())
        self.states = {"optimizer states": optimizer_bytes(parameters, self.recipe, device)}
        # The optimizer's and the averages' temporaries come when the activations are gone.
        largest = 2 * max(p.numel() * p.element_size() for p in parameters)
        self.temporary = self.gradients if device == "gpu" else largest

    def plan(
        self, num_processes: int = 1, *, tflops: float | None = None, ceiling_tflops: float | None = None
    ) -> TrainingPlan:
        """As ``plan_training``."""
        recipe, device = self.recipe, self.device
        accumulation, slots = recipe.accumulation(num_processes), len(self.sketch.slots)
        if num_processes * accumulation % slots:
            raise ConfigError(
                f"layout: got {slots} slots for {num_processes * accumulation} batches per step, "
                f"expected a multiple of {slots}; set loop.target_global_batch accordingly"
            )
        parts = {"weights, float32": self.weights, "averaged weights (EMA)": self.weights}
        if num_processes > 1:
            parts["gradient buckets (DDP)"] = self.gradients
        orders = [
            [(micro * num_processes + rank) % slots for micro in range(accumulation)]
            for rank in range(num_processes)
        ]
        ranks = [self._rank(rank, order, parts) for rank, order in enumerate(orders)]
        stays = {**parts}
        for number in orders[0]:
            stays |= self.sketch.slots[number].resident_bytes
        samples = [self._sampling(index, stays) / 1e9 for index in range(len(self.sketch.samplings))]
        worst = max(ranks, key=lambda rank: rank.step_gb)
        tflop = max(rank.tflop_per_step for rank in ranks)
        max_steps = int(recipe.loop("max_steps"))
        notes = list(recipe.notes)
        rate = tflops or (EFFICIENCY[device] * ceiling_tflops if ceiling_tflops else None)
        if tflops is None and ceiling_tflops is not None:
            notes.append(
                f"hours: {EFFICIENCY[device]:.0%} of the measured {ceiling_tflops:.3g} TFLOP/s of a large "
                "matrix product; --tflops gives a rate that was measured on the training itself"
            )
        return TrainingPlan(
            config=str(self.path),
            kind=recipe.kind,
            device=device,
            num_processes=num_processes,
            batch_size=int(recipe.loop("batch_size")),
            accumulation=accumulation,
            max_steps=max_steps,
            trainable_parameters=self.num_trainable,
            parts_gb=worst.parts_gb,
            activations_gb=worst.activations_gb,
            gradients_gb=self.gradients / 1e9,
            step_gb=worst.step_gb,
            sample_gb=max(samples, default=None),
            peak_gb=max(worst.step_gb, *samples) if samples else worst.step_gb,
            tflop_per_step=tflop,
            ranks=tuple(ranks),
            hours=None if rate is None else tflop * max_steps / rate / 3600,
            hours_floor=None if ceiling_tflops is None else tflop * max_steps / ceiling_tflops / 3600,
            tflops=rate,
            assumptions=tuple(notes),
        )

    def _rank(self, rank: int, order: list[int], parts: Mapping[str, int]) -> RankPlan:
        """One process, which computes slots of these numbers one after another."""
        losses = [self.sketch.slots[number].losses for number in order]
        found = [
            self._count(number, has_gradients=names in losses[1:])
            for number, names in zip(order, losses, strict=True)
        ]
        own = {**parts, **self.states, **self.sketch.frozen_bytes}
        for number in order:
            own |= self.sketch.slots[number].frozen_bytes
        peak = max(*(micro_step.peak_bytes for micro_step in found), self.gradients + self.temporary)
        return RankPlan(
            rank=rank,
            micro_steps=tuple(losses),
            parts_gb={name: size / 1e9 for name, size in own.items() if size},
            activations_gb=max(micro_step.activation_bytes for micro_step in found) / 1e9,
            step_gb=(sum(own.values()) + peak) / 1e9,
            tflop_per_step=sum(micro_step.flops for micro_step in found) / 1e12,
        )

    def _count(self, number: int, has_gradients: bool) -> Found:
        slot = self.sketch.slots[number]
        key = (self._settings(), slot.losses, has_gradients)
        if key not in self.counts:
            self.counts[key] = play(self.sketch, slot, self.recipe, self.device, has_gradients=has_gradients)
        found: Found = self.counts[key]
        return found

    def _sampling(self, index: int, parts: Mapping[str, int]) -> int:
        """Bytes of the first process in one moment beside the steps."""
        moment = self.sketch.samplings[index]
        there = {**parts, **moment.frozen_bytes}
        if moment.has_optimizer_states:
            there |= self.states
            if self.device == "cpu":  # the weights that the averages replace are kept beside them
                there["weights put aside"] = self.weights
        key = (self._settings(), index)
        if key not in self.counts:
            self.counts[key] = moment.peak()
        return sum(there.values()) + int(self.counts[key])

    def _settings(self) -> str:
        """Everything that tensors beside the weights depend on."""
        values = copy.deepcopy(dict(self.recipe.values))
        for name in ("optimizer", "max_steps", "target_global_batch", "gradient_accumulation_steps"):
            (values.get("loop") or {}).pop(name, None)
        for group in (values, values.get("distillation") or {}):
            group.pop("offload_teacher", None)
            if group.get("teacher_dtype") in ("auto", "float8"):
                group["teacher_dtype"] = {"gpu": "bfloat16", "cpu": "float32"}[self.device]
        return json.dumps([self.device, values], sort_keys=True, default=str)
