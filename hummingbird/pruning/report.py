"""What a pruned network costs, block by block, beside the network it was made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.pruning.costs import Cost, Probe, total
from hummingbird.pruning.plan import PruningPlan, block_of

__all__ = ["AdapterReport", "BlockReport", "PruningReport", "compare"]

_Column = tuple[str, str, float, int]
# title, field of Cost, unit, digits; a column is shown where it was measured
_COLUMNS: tuple[_Column, ...] = (
    ("parameters", "parameters", 1, 0),
    ("GFLOP", "flops", 1e9, 3),
    ("ms", "latency_s", 1e-3, 2),
)


@dataclass(frozen=True, kw_only=True)
class AdapterReport:
    """What became of one adapter.

    Args:
        kept: layers that still have it.
        dropped: layers, by the unpruned network's names, that went with theirs.
    """

    kept: int
    dropped: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class BlockReport:
    """One block before and after.

    Args:
        block: its name in the unpruned network.
        student: its name in the pruned one; None where it is dropped.
        dropped_layers: layers left out of a block that stays, by the unpruned network's names.
        before: cost in the unpruned network.
        after: cost in the pruned one.
    """

    block: str
    student: str | None
    dropped_layers: tuple[str, ...]
    before: Cost
    after: Cost


@dataclass(frozen=True, kw_only=True)
class PruningReport:
    """What pruning did.

    Args:
        plan: what stayed.
        before: cost of the unpruned network.
        after: cost of the pruned one.
        blocks: every block of the unpruned network, and what stands outside of blocks.
        adapters: adapter name -> what became of it.
        probe: what FLOPs and seconds were measured on; None where only parameters were counted.
        device: where, as torch names it.
        dtype: in which precision.
    """

    plan: PruningPlan
    before: Cost
    after: Cost
    blocks: tuple[BlockReport, ...]
    adapters: dict[str, AdapterReport]
    probe: Probe | None
    device: str
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        return dataclasses.asdict(self)

    def to_text(self) -> str:
        """A table for a person: a line per block, then the sum."""
        columns = [column for column in _COLUMNS if getattr(self.before, column[1])]
        rows = [["block", "becomes", *(title for column in columns for title in (column[0], ""))]]
        for block in self.blocks:
            becomes = block.student or "-"
            if block.dropped_layers:
                becomes += " without " + ", ".join(
                    name.removeprefix(f"{block.block}.") for name in block.dropped_layers
                )
            rows.append([block.block, becomes, *_cells(block.before, block.after, columns)])
        rows.append(["sum", "", *_cells(self.before, self.after, columns)])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            cells = [
                cell.ljust(width) if column < 2 else cell.rjust(width)
                for column, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
        lines.append(_shares(self.before, self.after))
        for name, adapter in self.adapters.items():
            gone = f"; dropped with their layers: {', '.join(adapter.dropped)}" if adapter.dropped else ""
            lines.append(f"adapter {name}: {adapter.kept} layers kept, {len(adapter.dropped)} dropped{gone}")
        return "\n".join(lines)


def compare(
    plan: PruningPlan,
    before: Mapping[str, Cost],
    after: Mapping[str, Cost],
    adapters: dict[str, AdapterReport],
    probe: Probe | None,
    unet: UNetSpatioTemporalModel,
) -> PruningReport:
    """Put the layers of two networks side by side, block by block.

    Args:
        plan: how the second was made of the first.
        before: layer -> cost of the unpruned network.
        after: the same of the pruned one.
        adapters: what became of them.
        probe: what was measured on.
        unet: the unpruned network.
    """
    students = {source: block for block, source in plan.inherits.items()}
    names = dict.fromkeys(block_of(layer) for layer in before)
    blocks = []
    for name in names:
        inside = name.split(".")[0] in ("input_blocks", "middle_block", "output_blocks")
        student = students.get(name) if inside else name
        blocks.append(
            BlockReport(
                block=name,
                student=student,
                dropped_layers=tuple(layer for layer in plan.pruned_layers if block_of(layer) == name),
                before=total(cost for layer, cost in before.items() if block_of(layer) == name),
                after=total(cost for layer, cost in after.items() if block_of(layer) == student),
            )
        )
    return PruningReport(
        plan=plan,
        before=total(before.values()),
        after=total(after.values()),
        blocks=tuple(blocks),
        adapters=adapters,
        probe=probe,
        device=str(unet.device),
        dtype=str(unet.dtype).removeprefix("torch."),
    )


def _cells(before: Cost, after: Cost, columns: Sequence[_Column]) -> list[str]:
    """Before and after in every column."""
    return [
        f"{getattr(cost, name) / unit:,.{digits}f}"
        for _, name, unit, digits in columns
        for cost in (before, after)
    ]


def _shares(before: Cost, after: Cost) -> str:
    """What is left, as shares of what was there."""
    parts = [f"{after.parameters / before.parameters:.1%} of the parameters"]
    if before.flops:
        parts.append(f"{after.flops / before.flops:.1%} of the FLOPs")
    if before.latency_s and after.latency_s is not None:
        parts.append(f"{after.latency_s / before.latency_s:.1%} of the time")
    return f"left: {', '.join(parts)}"
