"""Find what a network misses least: which plan keeps the denoising loss lowest under a budget.

Every candidate is built and run: no rise of the loss is estimated. Dropping goes one unit at a time, each
time the one with the smallest rise of the loss for what it saves. A unit is measured again only when its last
measurement promises the best, so that a step costs a few runs and not one for every unit.

Reference:
    Dropping blocks of a U-Net by what is lost without them: Kim et al., BK-SDM, arXiv 2305.15798; of a video
    U-Net: AMD Hummingbird, arXiv 2503.18559. Lazy evaluation: Minoux, "Accelerated greedy algorithms for
    maximizing submodular set functions", 1978.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.pipelines import HummingbirdPipeline
from hummingbird.pruning.calibration import Calibration, calibrate
from hummingbird.pruning.costs import Cost, Probe, measure_layers, total
from hummingbird.pruning.plan import (
    NAMED_PLANS,
    TEMPORAL_CONV,
    PlanError,
    PruningPlan,
    block_of,
    droppable_layers,
    named_plan,
    unet_blocks,
    whole_plan,
)
from hummingbird.pruning.surgery import student_of

__all__ = [
    "Budget",
    "Granularity",
    "SearchResult",
    "plan_cost",
    "random_plan",
    "search_pipeline",
    "search_plan",
    "units",
]

Granularity = Literal["layers", "blocks"]
Resource = Literal["parameters", "flops", "latency"]
_UNITS = {"ms": 1e-3, "s": 1.0}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a plan may cost.

    Args:
        resource: what is counted.
        limit: a number of parameters, of FLOPs, or of seconds.
    """

    resource: Resource
    limit: float

    @staticmethod
    def parse(resource: Resource, text: str, whole: Cost) -> Budget:
        """Read what a user wrote.

        Args:
            resource: what is counted.
            text: up to 1 a share of the unpruned network (``0.55``), above it a number (``3e6``); a time is
                a share or has its unit (``120ms``, ``1.5s``).
            whole: cost of the unpruned network.

        Raises:
            ValueError: not such a number, or nothing need be dropped for it.
        """
        unit = next((unit for unit in _UNITS if text.endswith(unit)), None) if resource == "latency" else None
        try:
            number = float(text.removesuffix(unit or "")) * _UNITS.get(unit or "s", 1.0)
        except ValueError:
            number = math.nan
        absolute = unit is not None or (number > 1 and resource != "latency")
        if not (0 < number < math.inf and (absolute or number <= 1)):
            example = (
                "a share such as 0.55, or 120ms"
                if resource == "latency"
                else "a share such as 0.55, or a count"
            )
            raise ValueError(f"budget of {resource}: got {text!r}, expected {example}")
        have = _amount(whole, resource)
        limit = number if absolute else number * have
        if limit >= have:
            raise ValueError(
                f"budget of {resource}: got {text}, but the whole network has {have:,.4g}; nothing to drop"
            )
        return Budget(resource=resource, limit=limit)

    def used_by(self, cost: Cost) -> float:
        """How much of the resource something costs."""
        return _amount(cost, self.resource)


def _amount(cost: Cost, resource: Resource) -> float:
    if resource == "latency":
        if cost.latency_s is None:
            raise ValueError("budget of latency: nothing was timed; give the probe repeats above 0")
        return cost.latency_s
    return float(cost.parameters if resource == "parameters" else cost.flops)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What the whole network loses and saves when one unit alone is skipped.

    Args:
        unit: a layer, the middle block, or a block of the way down with one of the way up.
        loss: denoising loss without it.
        saving: what it costs.
    """

    unit: str
    loss: float
    saving: Cost


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One plan that was built and run.

    Args:
        name: a published plan, or the unit that the search dropped to get here.
        plan: what stays.
        loss: denoising loss.
        cost: what it costs, by the layers of the unpruned network.
    """

    name: str
    plan: PruningPlan
    loss: float
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What a search found.

    Args:
        best: the plan with the lowest loss under the budget.
        whole: the unpruned network.
        budget: what was asked for.
        granularity: what could be dropped.
        sensitivities: of every unit, the least missed first.
        steps: of the search, in order.
        published: the published plans that fit this network, under the budget or not.
        num_evaluations: plans that were built and run.
        seconds: how long it all took.
    """

    best: Trial
    whole: Trial
    budget: Budget
    granularity: Granularity
    sensitivities: tuple[Sensitivity, ...]
    steps: tuple[Trial, ...]
    published: tuple[Trial, ...]
    num_evaluations: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON can hold it."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """Tables for a person: every unit skipped alone, then the plans."""
        lines = [f"{'skipped alone':<36}{'loss rises by':>14}{'of ' + self.budget.resource:>16}"]
        have = self.budget.used_by(self.whole.cost)
        for unit in self.sensitivities:
            rise, share = unit.loss - self.whole.loss, self.budget.used_by(unit.saving) / have
            lines.append(f"{unit.unit:<36}{rise:>14.5f}{share:>16.1%}")
        lines.append(f"{'plan':<36}{'loss':>14}{self.budget.resource:>16}")
        for name, trial in [
            ("whole network", self.whole),
            *((trial.name, trial) for trial in self.published),
            ("searched", self.steps[-1]),
        ]:
            chosen = " (chosen)" if trial is self.best else ""
            share = self.budget.used_by(trial.cost) / have
            lines.append(f"{name + chosen:<36}{trial.loss:>14.5f}{share:>16.1%}")
        lines.append(f"{self.num_evaluations} plans were run in {self.seconds:.0f} s")
        return "\n".join(lines)


def units(plan: PruningPlan, config: Mapping[str, Any], granularity: Granularity) -> dict[str, PruningPlan]:
    """Give every plan that drops one unit more.

    Args:
        plan: what stays so far.
        config: of the unpruned network.
        granularity: ``blocks`` drops the middle block, or a block of the way down together with one of the
            way up, as published; ``layers`` also single layers of blocks that stay.

    Returns:
        Unit -> the plan without it.
    """
    found = {}
    if plan.middle_block:
        found["middle_block"] = _without_layers(replace(plan, middle_block=False), {"middle_block"})
    inputs, outputs = unet_blocks(config)
    for down in plan.input_blocks:
        for up in plan.output_blocks:
            if inputs[down].kind != "residual" or inputs[down].level != outputs[up].level:
                continue
            smaller = replace(
                plan,
                input_blocks=tuple(index for index in plan.input_blocks if index != down),
                output_blocks=tuple(index for index in plan.output_blocks if index != up),
            )
            names = (f"input_blocks.{down}", f"output_blocks.{up}")
            smaller = _without_layers(smaller, set(names))
            if _fits(smaller, config):
                found[" + ".join(names)] = smaller
    if granularity == "layers":
        kept, gone = set(plan.inherits.values()), set(plan.pruned_layers)
        for name in droppable_layers(config):
            conv = f"{name}.{TEMPORAL_CONV}"
            if block_of(name) in kept and not {name, name.removesuffix(f".{TEMPORAL_CONV}")} & gone:
                others = tuple(layer for layer in plan.pruned_layers if layer != conv)
                found[name] = replace(plan, pruned_layers=(*others, name))
    return found


def _without_layers(plan: PruningPlan, blocks: set[str]) -> PruningPlan:
    """The same plan, naming no layer of blocks that are dropped as a whole."""
    return replace(plan, pruned_layers=tuple(n for n in plan.pruned_layers if block_of(n) not in blocks))


def _fits(plan: PruningPlan, config: Mapping[str, Any]) -> bool:
    try:
        plan.student_config(config)
    except PlanError:
        return False
    return True


def plan_cost(plan: PruningPlan, costs: Mapping[str, Cost]) -> Cost:
    """What a plan's network costs, by the costs of the unpruned network's layers."""
    kept, gone = set(plan.inherits.values()), set(plan.pruned_layers)

    def stays(layer: str) -> bool:
        block = block_of(layer)
        inside = block.split(".")[0] in ("input_blocks", "middle_block", "output_blocks")
        return not inside or (
            block in kept and layer not in gone and layer.removesuffix(f".{TEMPORAL_CONV}") not in gone
        )

    return total(cost for layer, cost in costs.items() if stays(layer))


def random_plan(
    config: Mapping[str, Any],
    costs: Mapping[str, Cost],
    budget: Budget,
    rng: np.random.Generator,
    granularity: Granularity = "layers",
    least: float = 0.97,
) -> PruningPlan:
    """Drop units at random until a plan fits: the baseline that a search has to beat.

    Args:
        config: of the unpruned network.
        costs: of its layers.
        budget: what the plan may cost.
        rng: draws the units; each that can still be dropped is as likely.
        granularity: what may be dropped.
        least: plans that use a smaller share of the budget are drawn again, so that all have about its size.

    Raises:
        ValueError: no plan of this size was drawn in a thousand attempts.
    """
    for _ in range(1000):
        plan = whole_plan(config)
        used = budget.used_by(plan_cost(plan, costs))
        while used > budget.limit and (left := units(plan, config, granularity)):
            plan = left[list(left)[int(rng.integers(len(left)))]]
            used = budget.used_by(plan_cost(plan, costs))
        if least * budget.limit <= used <= budget.limit:
            return plan
    raise ValueError(
        f"random plan: none uses {least:.0%} to 100% of {budget.limit:,.4g} {budget.resource}; lower `least`"
    )


def search_plan(
    unet: UNetSpatioTemporalModel,
    calibration: Calibration,
    budget: Budget,
    costs: Mapping[str, Cost],
    granularity: Granularity = "layers",
    progress: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Find the plan with the lowest denoising loss under a budget, before any training.

    Args:
        unet: the network to prune; unchanged.
        calibration: what the loss is measured on.
        budget: what the plan may cost.
        costs: of the network's layers, from ``measure_layers``.
        granularity: what may be dropped.
        progress: is told a line after every step.

    Raises:
        ValueError: no plan fits the budget.
    """
    _check_reachable(unet.config, costs, budget, granularity)
    started, was_training = time.perf_counter(), unet.training
    unet.eval()
    bench = _Bench(unet, calibration, costs)
    whole = bench.try_plan("whole", whole_plan(unet.config))
    progress(f"whole network: loss {whole.loss:.5f}, {budget.used_by(whole.cost):,.4g} {budget.resource}")
    alone = {
        unit: bench.try_plan(unit, plan) for unit, plan in units(whole.plan, unet.config, granularity).items()
    }
    progress(f"measured {len(alone)} units, each skipped alone")
    steps = _descend(bench, whole, alone, budget, granularity, progress)
    published = []
    for name in NAMED_PLANS:
        try:
            published.append(bench.try_plan(name, named_plan(name, unet.config)))
        except PlanError:  # a network that is as small already
            continue
    fitting = [trial for trial in published if budget.used_by(trial.cost) <= budget.limit]
    unet.train(was_training)
    sensitivities = [
        Sensitivity(unit=unit, loss=trial.loss, saving=_difference(whole.cost, trial.cost))
        for unit, trial in alone.items()
    ]
    return SearchResult(
        best=min([steps[-1], *fitting], key=lambda trial: trial.loss),
        whole=whole,
        budget=budget,
        granularity=granularity,
        sensitivities=tuple(sorted(sensitivities, key=lambda sensitivity: sensitivity.loss)),
        steps=tuple(steps),
        published=tuple(published),
        num_evaluations=bench.num_evaluations,
        seconds=time.perf_counter() - started,
    )


def search_pipeline(
    pipe: HummingbirdPipeline,
    resource: Resource,
    amount: str,
    data: str,
    probe: Probe,
    *,
    num_clips: int = 16,
    seed: int = 0,
    granularity: Granularity = "layers",
    progress: Callable[[str], None] = lambda line: None,
) -> SearchResult:
    """Find the plan for a pipeline's U-Net.

    Args:
        pipe: unchanged.
        resource: what is limited.
        amount: as ``Budget.parse`` reads it.
        data: as ``calibrate`` reads it.
        probe: what FLOPs and time are measured on.
        num_clips: clips that the loss is measured on.
        seed: of clips and noise.
        granularity: what may be dropped.
        progress: is told a line after every step.
    """
    costs = measure_layers(pipe.unet, probe)
    budget = Budget.parse(resource, amount, total(costs.values()))
    calibration = calibrate(pipe, data, num_clips, seed)
    return search_plan(pipe.unet, calibration, budget, costs, granularity, progress)


class _Bench:
    """Builds plans on the unpruned network's own tensors and runs them."""

    def __init__(
        self, unet: UNetSpatioTemporalModel, calibration: Calibration, costs: Mapping[str, Cost]
    ) -> None:
        self.unet, self.calibration, self.costs = unet, calibration, costs
        self.num_evaluations = 0

    def try_plan(self, name: str, plan: PruningPlan) -> Trial:
        self.num_evaluations += 1
        loss = self.calibration.loss(student_of(self.unet, plan))
        return Trial(name=name, plan=plan, loss=loss, cost=plan_cost(plan, self.costs))


def _check_reachable(
    config: Mapping[str, Any], costs: Mapping[str, Cost], budget: Budget, granularity: Granularity
) -> None:
    """Drop the most expensive unit again and again, without running anything.

    Raises:
        ValueError: even so the budget is not met.
    """
    plan = whole_plan(config)
    while (used := budget.used_by(plan_cost(plan, costs))) > budget.limit:
        options = units(plan, config, granularity)
        if not options:
            raise _too_small(budget, used, granularity)
        plan = min(options.values(), key=lambda option: budget.used_by(plan_cost(option, costs)))


def _too_small(budget: Budget, used: float, granularity: Granularity) -> ValueError:
    return ValueError(
        f"budget of {budget.resource}: got {budget.limit:,.4g}, but by dropping {granularity} the smallest "
        f"network here has {used:,.4g}; raise the budget"
    )


def _descend(
    bench: _Bench,
    whole: Trial,
    alone: dict[str, Trial],
    budget: Budget,
    granularity: Granularity,
    progress: Callable[[str], None],
) -> list[Trial]:
    """Drop the unit with the smallest rise of the loss per saving, until the budget is met."""
    rises = {unit: trial.loss - whole.loss for unit, trial in alone.items()}
    measured = alone  # on top of what is dropped so far
    current, steps = whole, []
    while (used := budget.used_by(current.cost)) > budget.limit:
        savings, options = {}, units(current.plan, bench.unet.config, granularity)
        for unit, plan in options.items():
            # what is saved beyond the budget is worth nothing
            saved = min(used - budget.used_by(plan_cost(plan, bench.costs)), used - budget.limit)
            if saved > 0:
                savings[unit] = saved
        if not savings:
            raise _too_small(budget, used, granularity)

        def price(unit: str, savings: dict[str, float] = savings) -> float:
            return rises[unit] / savings[unit]

        while (unit := min(savings, key=price)) not in measured:
            measured[unit] = bench.try_plan(unit, options[unit])
            rises[unit] = measured[unit].loss - current.loss
        current, measured = measured[unit], {}
        steps.append(current)
        progress(
            f"without {unit}: loss {current.loss:.5f}, {budget.used_by(current.cost):,.4g} {budget.resource} "
            f"(budget {budget.limit:,.4g})"
        )
    return steps


def _difference(whole: Cost, part: Cost) -> Cost:
    timed = whole.latency_s is not None and part.latency_s is not None
    return Cost(
        parameters=whole.parameters - part.parameters,
        flops=whole.flops - part.flops,
        latency_s=(whole.latency_s or 0.0) - (part.latency_s or 0.0) if timed else None,
    )
