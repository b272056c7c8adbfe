"""Plans: the published ones to the last key, free ones from files, and why others are refused."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hummingbird.config import ConfigError, save_config
from hummingbird.models import UNetSpatioTemporalModel, preset_config
from hummingbird.models.blocks import ResBlock, SpatialTransformer, TemporalTransformer
from hummingbird.pruning import PlanError, PruningPlan, load_plan, named_plan, prune_unet
from hummingbird.pruning.plan import droppable_layers, unet_blocks, whole_plan

# name, parameters, entries, start of the sha256 of the lines "student key teacher key" in the state dict's
# order, as the loader of the published students maps a VideoCrafter2 checkpoint
PUBLISHED = [
    ("0.9b", 945_127_300, 956, "76b56d54418f45c23d74de69"),
    ("0.7b", 772_009_860, 852, "4c3bd2fcbad1e7ea86fc228e"),
]
INPUTS = (0, 1, 3, 4, 6, 7, 9, 10)
OUTPUTS = (1, 2, 4, 5, 6, 8, 9, 11)
NANO: dict[str, Any] = {
    "model_channels": 16,
    "channel_mult": (1, 2, 3),
    "num_res_blocks": 2,
    "attention_resolutions": (4,),
    "num_head_channels": 16,
    "cross_attention_dim": 24,
    "init_attention": False,
    "norm_num_groups": 8,
}


def meta_unet(**options: Any) -> UNetSpatioTemporalModel:
    with torch.device("meta"):
        return UNetSpatioTemporalModel(**{**NANO, **options})


@pytest.fixture(scope="module")
def videocrafter2() -> UNetSpatioTemporalModel:
    with torch.device("meta"):
        return UNetSpatioTemporalModel.from_config(preset_config("videocrafter2"))


@pytest.mark.parametrize(("name", "parameters", "entries", "digest"), PUBLISHED)
def test_published_plans_of_videocrafter2(
    videocrafter2: UNetSpatioTemporalModel, name: str, parameters: int, entries: int, digest: str
) -> None:
    student, report = prune_unet(videocrafter2, name)
    assert sum(p.numel() for p in student.parameters()) == parameters == report.after.parameters
    assert report.before.parameters == 1_413_284_420
    expected = preset_config(f"hummingbird-{name}")
    assert {key: student.config[key] for key in expected} == expected
    plan = report.plan
    assert (plan.input_blocks, plan.output_blocks) == (INPUTS, OUTPUTS)
    keys = list(student.state_dict())
    assert len(keys) == entries
    lines = "".join(f"{key} {plan.source_key(key)}\n" for key in keys)
    assert hashlib.sha256(lines.encode()).hexdigest().startswith(digest)
    dropped = [f"input_blocks.{i}" for i in (2, 5, 8, 11)] + ["middle_block"] * (name == "0.7b")
    dropped += [f"output_blocks.{i}" for i in (0, 3, 7, 10)]
    assert plan.dropped_blocks(videocrafter2.config) == dropped


@pytest.mark.parametrize("name", ["0.9b", "0.7b"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_res_blocks": 3},
        {"num_res_blocks": [1, 3, 2]},
        {"channel_mult": (1, 1, 1), "has_middle_block": False},
        {"channel_mult": (2, 2)},
        {"channel_mult": (1,), "attention_resolutions": (1,)},
        {"temporal_attention": False, "temporal_conv": False},
    ],
    ids=str,
)
def test_published_plans_fit_every_network_of_the_family(name: str, options: dict[str, Any]) -> None:
    attention = {"attention_resolutions": (2 ** (len(options.get("channel_mult", (1, 2, 3))) - 1),)}
    unet = meta_unet(**{**attention, **options})
    student, report = prune_unet(unet, name)
    assert student.config.num_res_blocks == 1
    assert student.config.has_middle_block == (name == "0.9b" and unet.config.has_middle_block)
    assert report.after.parameters < report.before.parameters


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_resolutions": (1, 4), "num_res_blocks": [1, 2, 1]},
        {"temporal_conv": False, "has_middle_block": False},
        {"temporal_attention": False},
        {"pruned_layers": ["input_blocks.2.0", "middle_block.1", "output_blocks.1.0.temopral_conv"]},
    ],
    ids=str,
)
def test_layout_is_the_one_that_is_built(options: dict[str, Any]) -> None:
    """Channels against the weights of the built network; droppable layers against its modules."""
    unet = meta_unet(**options)
    for side, blocks in zip(("input_blocks", "output_blocks"), unet_blocks(unet.config), strict=True):
        built = getattr(unet, side)
        assert len(blocks) == len(built)
        for block, entry in zip(blocks, built, strict=True):
            convs = [module for module in entry.modules() if isinstance(module, nn.Conv2d)]
            if convs:
                assert convs[0].in_channels == block.in_channels + block.skip_channels
                assert convs[-1].out_channels == block.out_channels
            assert (type(entry[-1]).__name__ == "Upsample") == block.upsample
            assert (type(entry[0]).__name__ == "Downsample") == (block.kind == "downsample")
    expected = []
    for name, module in unet.named_modules():
        if isinstance(module, ResBlock):
            expected += [name] if isinstance(module.skip_connection, nn.Identity) else []
            expected += [f"{name}.temopral_conv"] if module.temopral_conv is not None else []
        elif isinstance(module, SpatialTransformer | TemporalTransformer):
            expected.append(name)
    assert droppable_layers(unet.config) == expected


def test_every_droppable_layer_can_be_dropped() -> None:
    unet = meta_unet()
    whole = whole_plan(unet.config)
    plan = PruningPlan(
        input_blocks=whole.input_blocks,
        middle_block=True,
        output_blocks=whole.output_blocks,
        pruned_layers=tuple(
            name
            for name in droppable_layers(unet.config)
            if name.removesuffix(".temopral_conv") == name or name.startswith("output_blocks")
        ),
    )
    student, _ = prune_unet(unet, plan)
    assert not [m for m in student.modules() if isinstance(m, SpatialTransformer | TemporalTransformer)]


# input_blocks of this network: 0 conv, 1 2, 3 down, 4 5, 6 down, 7 8; output_blocks: 0 1 2, 3 4 5, 6 7 8
ALL = list(range(9))


@pytest.mark.parametrize(
    ("inputs", "middle", "outputs", "layers", "reason"),
    [
        ([1, 2, 3, 4, 5, 6, 7, 8], True, ALL, [], "input_blocks.0 is the first convolution and must stay"),
        ([0, 1, 2, 4, 5, 6, 7, 8], True, ALL, [], "input_blocks.3 halves the resolution and must stay"),
        ([*ALL, 9], True, ALL, [], "input_blocks has [9], expected numbers from 0 to 8"),
        (ALL, True, [*ALL, -1], [], "output_blocks has [-1]"),
        ([0, 2, 1, 3, 4, 5, 6, 7, 8], True, ALL, [], "expected each block once, in ascending order"),
        ([*ALL, 8], True, ALL, [], "expected each block once"),
        ([0, 3, 4, 5, 6, 7, 8], True, [0, 1, 2, 3, 4, 5, 8], [], "level 0 loses all of its input_blocks"),
        ([0, 1, 3, 4, 5, 6, 7, 8], True, ALL, [], "at level 0 input_blocks [1] leave 2 skips"),
        (ALL, True, [0, 1, 2, 3, 4, 5, 7, 8], [], "at level 0 input_blocks [1, 2] leave 3 skips"),
        ([0, 1, 2, 3, 4, 6, 7, 8], True, [0, 1, 2, 4, 5, 6, 7, 8], [], "output_blocks.4 maps 32+32 to 32"),
        ([0, 1, 2, 3, 4, 6, 7, 8], True, [0, 1, 2, 3, 4, 6, 7, 8], [], "output_blocks.4 maps 32+32"),
        ([0, 1, 2, 3, 5, 6, 7, 8], True, [0, 1, 2, 3, 5, 6, 7, 8], [], "input_blocks.5 maps 32 to 32"),
        (ALL, True, ALL, ["input_blocks.4.0"], "expected a transformer"),
        (ALL, True, ALL, ["output_blocks.0.0"], "expected a transformer"),
        (ALL, True, ALL, ["init_attn.0"], "expected a transformer"),
        (ALL, True, ALL, ["middle_block.1", "middle_block.1"], "'middle_block.1' twice"),
        (ALL, False, ALL, ["middle_block.1"], "all of middle_block is dropped"),
        (ALL, True, ALL, ["input_blocks.2.0", "input_blocks.2.0.temopral_conv"], "a part of"),
    ],
)  # fmt: skip
def test_plans_that_make_no_network_are_refused(
    inputs: list[int], middle: bool, outputs: list[int], layers: list[str], reason: str, tmp_path: Path
) -> None:
    plan = PruningPlan(
        input_blocks=tuple(inputs),
        middle_block=middle,
        output_blocks=tuple(outputs),
        pruned_layers=tuple(layers),
    )
    unet = meta_unet()
    with pytest.raises(PlanError, match=re.escape(reason)) as error:
        prune_unet(unet, plan)
    assert "\n" not in str(error.value)
    save_config(plan, tmp_path / "plan.yaml")
    with pytest.raises(PlanError, match=re.escape(f"{tmp_path / 'plan.yaml'}: plan: ")):
        load_plan(str(tmp_path / "plan.yaml"), unet.config)


def test_upsampling_must_stay() -> None:
    unet = meta_unet(channel_mult=(1, 1, 1))
    plan = PruningPlan(
        input_blocks=(0, 1, 2, 3, 4, 6, 7, 8), middle_block=True, output_blocks=(0, 1, 2, 3, 4, 6, 7, 8)
    )
    with pytest.raises(PlanError, match=r"output_blocks.4 .* needs .* and double resolution"):
        prune_unet(unet, plan)


def test_nothing_to_drop() -> None:
    small = meta_unet(num_res_blocks=1, has_middle_block=False)
    with pytest.raises(PlanError, match=r"'0.7b' would drop nothing"):
        named_plan("0.7b", small.config)
    with pytest.raises(PlanError, match="middle_block is true, but this network has none"):
        PruningPlan(
            input_blocks=(0, 1, 2, 3, 4, 5), middle_block=True, output_blocks=(0, 1, 2, 3, 4, 5)
        ).student_config(small.config)
    with pytest.raises(PlanError, match=r"expected one of 0.9b, 0.7b"):
        named_plan("0.8b", small.config)


def test_plans_in_files(tmp_path: Path) -> None:
    unet = meta_unet()
    plan = PruningPlan(
        input_blocks=(0, 2, 3, 4, 5, 6, 7, 8),
        middle_block=True,
        output_blocks=(0, 1, 2, 3, 4, 5, 6, 8),
        pruned_layers=("input_blocks.7.1",),
    )
    save_config(plan, tmp_path / "plan.yaml")
    assert load_plan(str(tmp_path / "plan.yaml"), unet.config) == plan
    assert load_plan("0.7b", unet.config) == named_plan("0.7b", unet.config)
    with pytest.raises(ConfigError, match=r"expected 0.9b, 0.7b or an existing YAML file"):
        load_plan(str(tmp_path / "other.yaml"), unet.config)
    for text, reason in [
        ("input_blocks: [0]\noutput_blocks: [0]\n", "'middle_block' is missing"),
        ("input_blocks: [0]\nmiddle_block: 1\noutput_blocks: [0]\n", "middle_block"),
        ("input_blocks: [0]\nmiddle_block: true\noutput_blocks: [0]\nmiddle: 1\n", "unknown name 'middle'"),
    ]:
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=reason):
            load_plan(str(tmp_path / "bad.yaml"), unet.config)
