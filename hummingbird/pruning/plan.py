"""Which blocks of a video U-Net stay, and whether what stays makes a network.

A U-Net's way down leaves a skip behind at every block, and its way up takes them in reverse order. So a level
that loses a residual block on the way down loses one on the way up, and what meets there must have the
channels that the inherited weights were made for. Everything else is refused here, before a weight is read.

Reference:
    AMD Hummingbird, arXiv 2503.18559, section 3.1: blocks are removed from the 1.4B VideoCrafter2 U-Net down
    to one residual block per level, and the middle block with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hummingbird.config import ConfigError, config_dataclass, load_config

__all__ = [
    "NAMED_PLANS",
    "Block",
    "PlanError",
    "PruningPlan",
    "block_of",
    "droppable_layers",
    "load_plan",
    "named_plan",
    "unet_blocks",
    "whole_plan",
]

NAMED_PLANS = ("0.9b", "0.7b")
TEMPORAL_CONV = "temopral_conv"  # misspelt in every published checkpoint


class PlanError(ValueError):
    """A plan that cannot make a network of the given one; the message is one line that says why."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One entry of ``input_blocks`` or ``output_blocks``.

    Attributes:
        level: 0 for the full resolution; each further one has half of it.
        kind: ``conv`` (the first one), ``residual`` or ``downsample``.
        in_channels: what reaches it from the block before.
        skip_channels: what it takes from the way down in addition; 0 on the way down.
        out_channels: what it gives.
        upsample: whether it doubles the resolution at its end.
    """

    level: int
    kind: str
    in_channels: int
    skip_channels: int = 0
    out_channels: int
    upsample: bool = False

    def __str__(self) -> str:
        channels = f"{self.in_channels}+{self.skip_channels}" if self.skip_channels else str(self.in_channels)
        return f"{channels} to {self.out_channels} channels{' and double resolution' * self.upsample}"


def unet_blocks(config: Mapping[str, Any]) -> tuple[list[Block], list[Block]]:
    """Lay out ``input_blocks`` and ``output_blocks`` of a network.

    Args:
        config: of a ``UNetSpatioTemporalModel``.
    """
    widths = [config["model_channels"] * mult for mult in config["channel_mult"]]
    counts = _blocks_per_level(config)
    last_level = len(widths) - 1
    width = config["model_channels"]
    inputs = [Block(level=0, kind="conv", in_channels=config["in_channels"], out_channels=width)]
    for level, (count, level_width) in enumerate(zip(counts, widths, strict=True)):
        for _ in range(count):
            inputs.append(Block(level=level, kind="residual", in_channels=width, out_channels=level_width))
            width = level_width
        if level < last_level:
            inputs.append(Block(level=level, kind="downsample", in_channels=width, out_channels=width))
    skips = [block.out_channels for block in inputs]
    outputs = []
    for level in reversed(range(len(widths))):
        for index in range(counts[level] + 1):
            outputs.append(
                Block(
                    level=level,
                    kind="residual",
                    in_channels=width,
                    skip_channels=skips.pop(),
                    out_channels=widths[level],
                    upsample=level > 0 and index == counts[level],
                )
            )
            width = widths[level]
    return inputs, outputs


def _blocks_per_level(config: Mapping[str, Any]) -> list[int]:
    count = config["num_res_blocks"]
    return [count] * len(config["channel_mult"]) if isinstance(count, int) else list(count)


@config_dataclass
class PruningPlan:
    """What stays of a network. Every name and number is the unpruned network's.

    Args:
        input_blocks: entries of ``input_blocks`` that stay, ascending; the pruned network's entry ``i``
            inherits the weights of ``input_blocks[i]``.
        middle_block: whether the middle block stays.
        output_blocks: the same for ``output_blocks``.
        pruned_layers: layers of blocks that stay which are left out alone: a transformer
            (``input_blocks.1.2``), a residual block that keeps its width (``input_blocks.2.0``) or the
            convolutions over frames of one (``output_blocks.4.0.temopral_conv``).
    """

    input_blocks: tuple[int, ...]
    middle_block: bool
    output_blocks: tuple[int, ...]
    pruned_layers: tuple[str, ...] = ()

    @property
    def inherits(self) -> dict[str, str]:
        """Block of the pruned network -> block whose weights it inherits."""
        pairs = {f"input_blocks.{i}": f"input_blocks.{j}" for i, j in enumerate(self.input_blocks)}
        if self.middle_block:
            pairs["middle_block"] = "middle_block"
        return pairs | {f"output_blocks.{i}": f"output_blocks.{j}" for i, j in enumerate(self.output_blocks)}

    def source_key(self, key: str) -> str:
        """Name, in the unpruned network, of a parameter or layer of the pruned one."""
        return _rename(key, self.inherits)

    def dropped_blocks(self, config: Mapping[str, Any]) -> list[str]:
        """Blocks that go, in the network's order."""
        inputs, outputs = unet_blocks(config)
        names = [f"input_blocks.{i}" for i in range(len(inputs))]
        names += ["middle_block"] if config["has_middle_block"] else []
        names += [f"output_blocks.{i}" for i in range(len(outputs))]
        kept = set(self.inherits.values())
        return [name for name in names if name not in kept]

    def student_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Check the plan against a network and give the configuration of what is left.

        Args:
            config: of the unpruned network.

        Raises:
            PlanError: a block or layer that does not exist or must stay, or skips that cannot match.
        """
        inputs, outputs = unet_blocks(config)
        _check_indices("input_blocks", self.input_blocks, len(inputs))
        _check_indices("output_blocks", self.output_blocks, len(outputs))
        for index, block in enumerate(inputs):
            if block.kind != "residual" and index not in self.input_blocks:
                what = "is the first convolution" if block.kind == "conv" else "halves the resolution"
                raise PlanError(
                    f"plan: input_blocks.{index} {what} and must stay; add {index} to input_blocks"
                )
        if self.middle_block and not config["has_middle_block"]:
            raise PlanError("plan: middle_block is true, but this network has none; set it to false")
        counts = self._count_blocks(inputs, outputs)
        options = {key: value for key, value in config.items() if not key.startswith("_")}
        student = {
            **options,
            "num_res_blocks": counts[0] if len(set(counts)) == 1 else tuple(counts),
            "has_middle_block": self.middle_block,
        }
        self._check_channels(config, student)
        renamed = {source: block for block, source in self.inherits.items()}
        already = [name for name in config["pruned_layers"] if block_of(name) in renamed]
        self._check_layers(config)
        student["pruned_layers"] = tuple(_rename(name, renamed) for name in (*already, *self.pruned_layers))
        return student

    def _count_blocks(self, inputs: Sequence[Block], outputs: Sequence[Block]) -> list[int]:
        """Residual blocks that stay on the way down at each level; one more must stay on the way up."""
        counts = []
        for level in range(inputs[-1].level + 1):
            down = [i for i, block in enumerate(inputs) if (block.level, block.kind) == (level, "residual")]
            up = [i for i, block in enumerate(outputs) if block.level == level]
            kept_down = [i for i in down if i in self.input_blocks]
            kept_up = [i for i in up if i in self.output_blocks]
            if not kept_down:
                raise PlanError(
                    f"plan: level {level} loses all of its input_blocks {down}, expected at least one to stay"
                )
            if len(kept_up) != len(kept_down) + 1:
                raise PlanError(
                    f"plan: at level {level} input_blocks {kept_down} leave {len(kept_down) + 1} skips (one "
                    f"is the level's entry), but {len(kept_up)} output_blocks {kept_up} take them; keep "
                    f"{len(kept_down) + 1} of {up}"
                )
            counts.append(len(kept_down))
        return counts

    def _check_channels(self, config: Mapping[str, Any], student: Mapping[str, Any]) -> None:
        for side, kept, old, new in zip(
            ("input_blocks", "output_blocks"),
            (self.input_blocks, self.output_blocks),
            unet_blocks(config),
            unet_blocks(student),
            strict=True,
        ):
            for index, source in enumerate(kept):
                if new[index] != old[source]:
                    raise PlanError(
                        f"plan: {side}.{source} maps {old[source]}, but in its place the pruned network "
                        f"needs {new[index]}; keep another block of level {new[index].level}"
                    )

    def _check_layers(self, config: Mapping[str, Any]) -> None:
        droppable = droppable_layers(config)
        kept = set(self.inherits.values())
        for name in self.pruned_layers:
            if self.pruned_layers.count(name) > 1:
                raise PlanError(f"plan: pruned_layers names {name!r} twice; keep one of the two")
            if name not in droppable:
                raise PlanError(
                    f"plan: pruned_layers names {name!r}, expected a transformer, a residual block that "
                    f"keeps its width, or its {TEMPORAL_CONV}; here: {', '.join(droppable)}"
                )
            if block_of(name) not in kept:
                raise PlanError(
                    f"plan: pruned_layers names {name!r}, but all of {block_of(name)} is dropped; remove it"
                )
            owner = name.removesuffix(f".{TEMPORAL_CONV}")
            if owner != name and owner in self.pruned_layers:
                raise PlanError(f"plan: pruned_layers names {name!r}, a part of {owner!r}; remove it")


def droppable_layers(config: Mapping[str, Any]) -> list[str]:
    """Names of what ``pruned_layers`` may still add, in the network's order.

    Args:
        config: of a ``UNetSpatioTemporalModel``.
    """
    inputs, outputs = unet_blocks(config)
    transformers = ["1", "2"] if config["temporal_attention"] else ["1"]

    def layers(block: str, narrowing: bool, attention: bool) -> list[str]:
        """Of a block that begins with a residual block; ``narrowing`` ones change the number of channels."""
        names = [] if narrowing else [f"{block}.0"]
        names += [f"{block}.0.{TEMPORAL_CONV}"] if config["temporal_conv"] else []
        return names + ([f"{block}.{index}" for index in transformers] if attention else [])

    names = []
    for side, blocks in (("input_blocks", inputs), ("output_blocks", outputs)):
        for index, block in enumerate(blocks):
            if block.kind == "residual":
                narrowing = block.in_channels + block.skip_channels != block.out_channels
                attention = 2**block.level in config["attention_resolutions"]
                names += layers(f"{side}.{index}", narrowing, attention)
        if side == "input_blocks" and config["has_middle_block"]:
            names += layers("middle_block", narrowing=False, attention=True)
            last = f"middle_block.{len(transformers) + 1}"
            names += [last, *([f"{last}.{TEMPORAL_CONV}"] if config["temporal_conv"] else [])]
    gone = set(config["pruned_layers"])
    return [name for name in names if name not in gone and name.removesuffix(f".{TEMPORAL_CONV}") not in gone]


def block_of(name: str) -> str:
    """Name of the block of a layer or parameter: ``input_blocks.4.1.norm`` -> ``input_blocks.4``."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] in ("input_blocks", "output_blocks") else parts[0]


def _rename(key: str, blocks: Mapping[str, str]) -> str:
    block = block_of(key)
    return blocks.get(block, block) + key[len(block) :]


def _check_indices(side: str, kept: Sequence[int], count: int) -> None:
    unknown = [index for index in kept if not 0 <= index < count]
    if unknown:
        raise PlanError(f"plan: {side} has {unknown}, expected numbers from 0 to {count - 1}")
    if list(kept) != sorted(set(kept)):
        raise PlanError(f"plan: {side} is {list(kept)}, expected each block once, in ascending order")


# --- plans by name, and files ------------------------------------------------------------------------------


def whole_plan(config: Mapping[str, Any]) -> PruningPlan:
    """The plan that keeps everything."""
    inputs, outputs = unet_blocks(config)
    return PruningPlan(
        input_blocks=tuple(range(len(inputs))),
        middle_block=config["has_middle_block"],
        output_blocks=tuple(range(len(outputs))),
    )


def named_plan(name: str, config: Mapping[str, Any]) -> PruningPlan:
    """Give a published plan for any network of the family.

    One residual block per level on the way down, the first; two on the way up: the last, and the one that
    takes the kept block's skip, or where the level is narrower than the one below it, the first, whose
    weights alone fit. ``0.9b`` keeps the middle block and ``0.7b`` does not.

    Args:
        name: one of ``NAMED_PLANS``.
        config: of the network to prune.

    Raises:
        PlanError: unknown name, or a network that has nothing to drop.

    Reference:
        AMD Hummingbird, arXiv 2503.18559: the 945M and 772M students of the 1.4B VideoCrafter2 U-Net.
    """
    if name not in NAMED_PLANS:
        raise PlanError(f"plan: got {name!r}, expected one of {', '.join(NAMED_PLANS)} or a YAML file")
    inputs, outputs = unet_blocks(config)
    keep_in = [i for i, block in enumerate(inputs) if block.kind != "residual"]
    keep_out = []
    for level in range(inputs[-1].level + 1):
        down = [i for i, block in enumerate(inputs) if (block.level, block.kind) == (level, "residual")]
        up = [i for i, block in enumerate(outputs) if block.level == level]
        keep_in.append(down[0])
        same_width = outputs[up[0]].in_channels == outputs[up[0]].out_channels
        keep_out += [up[-2] if same_width else up[0], up[-1]]
    plan = PruningPlan(
        input_blocks=tuple(sorted(keep_in)),
        middle_block=config["has_middle_block"] and name == "0.9b",
        output_blocks=tuple(sorted(keep_out)),
    )
    if plan == whole_plan(config):
        raise PlanError(f"plan: {name!r} would drop nothing of this network, which is that small already")
    return plan


def load_plan(source: str, config: Mapping[str, Any]) -> PruningPlan:
    """Give the plan that a user named.

    Args:
        source: one of ``NAMED_PLANS``, or a YAML file with the fields of ``PruningPlan``.
        config: of the network to prune.

    Raises:
        PlanError: the plan does not fit the network.
        ConfigError: the file cannot be read.
    """
    if source in NAMED_PLANS:
        return named_plan(source, config)
    if not Path(source).is_file():
        raise ConfigError(f"plan: got {source!r}, expected {', '.join(NAMED_PLANS)} or an existing YAML file")
    plan = load_config(PruningPlan, source)
    try:
        plan.student_config(config)
    except PlanError as error:
        raise PlanError(f"{source}: {error}") from error
    return plan
