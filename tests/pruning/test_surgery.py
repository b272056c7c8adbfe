"""What stays computes what it computed before; adapters, flags and the unpruned network survive."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoHaConfig, LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from hummingbird import HummingbirdPipeline
from hummingbird.config import load_config
from hummingbird.models import UNetSpatioTemporalModel
from hummingbird.models.flops import count_flops
from hummingbird.pruning import PlanError, Probe, PruningPlan, named_plan, prune_pipeline, prune_unet
from hummingbird.pruning.costs import OTHER, count_parameters, measure_layers, total
from hummingbird.pruning.search import plan_cost
from hummingbird.pruning.surgery import new_folder, save_pruned, student_of
from tests.models.tiny import tiny_inputs, tiny_unet
from tests.pipelines.tiny import CALL, seeded, tiny_pipeline

PROBE = Probe(num_frames=3, height=8, width=4, num_tokens=5, repeats=2)
FREE = PruningPlan(
    input_blocks=(0, 2, 3, 4, 5),
    middle_block=True,
    output_blocks=(0, 1, 2, 3, 5),
    pruned_layers=(
        "input_blocks.5.0",
        "middle_block.2",
        "output_blocks.3.0.temopral_conv",
        "input_blocks.2.1",
    ),
)


def two_block_unet(**options: Any) -> UNetSpatioTemporalModel:
    return tiny_unet(
        **{"num_res_blocks": 2, "time_cond_proj_dim": 12, "pooled_text_embedding": True, **options}
    )


@torch.no_grad()
def run(unet: UNetSpatioTemporalModel) -> torch.Tensor:
    return unet(**tiny_inputs(), timestep_cond=torch.ones(2, 12), return_dict=False)[0]


@torch.no_grad()
def run_what_stays(unet: UNetSpatioTemporalModel, plan: PruningPlan) -> torch.Tensor:
    """The unpruned network's own modules, taken out of its lists by hand and skipped by hooks."""
    unet = copy.deepcopy(unet)
    for name in plan.pruned_layers:
        unet.get_submodule(name).register_forward_hook(lambda module, args, output: args[0])
    unet.input_blocks = nn.ModuleList(unet.input_blocks[i] for i in plan.input_blocks)
    unet.output_blocks = nn.ModuleList(unet.output_blocks[i] for i in plan.output_blocks)
    unet.register_to_config(has_middle_block=plan.middle_block)
    return run(unet)


@pytest.mark.parametrize("plan", ["0.9b", "0.7b", FREE], ids=["0.9b", "0.7b", "free"])
def test_what_stays_computes_what_it_did(plan: PruningPlan | str) -> None:
    unet = two_block_unet()
    before = {key: tensor.clone() for key, tensor in unet.state_dict().items()}
    output = run(unet)
    student, report = prune_unet(unet, plan)
    expected = run_what_stays(unet, report.plan)
    assert torch.equal(run(student), expected)
    assert not torch.allclose(expected, output, atol=1e-2)
    assert torch.equal(run(student_of(unet, report.plan)), expected)
    # the pruned network is on memory of its own, and the other is as it was
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert torch.equal(run(unet), output)
    assert all(torch.equal(tensor, before[key]) for key, tensor in unet.state_dict().items())


def test_a_pruned_network_can_be_pruned_again() -> None:
    unet = two_block_unet()
    once, _ = prune_unet(unet, FREE)
    twice, report = prune_unet(once, named_plan("0.7b", once.config))
    assert report.plan.input_blocks == (0, 1, 2, 3)
    assert list(once.config.pruned_layers) == [
        "input_blocks.4.0",
        "middle_block.2",
        "output_blocks.3.0.temopral_conv",
        "input_blocks.1.1",
    ]
    assert list(twice.config.pruned_layers) == ["output_blocks.2.0.temopral_conv", "input_blocks.1.1"]
    assert torch.equal(run(twice), run_what_stays(once, report.plan))


def test_flags_and_types_are_inherited() -> None:
    unet = two_block_unet().to(torch.float16).train()
    unet.temporal_layers_enabled, unet.channels_last = False, False
    unet.input_blocks.requires_grad_(False)
    student, report = prune_unet(unet, "0.7b")
    assert (student.training, student.temporal_layers_enabled, student.channels_last) == (True, False, False)
    assert student.dtype == torch.float16
    assert report.dtype == "float16"
    trainable = {name.split(".")[0] for name, p in student.named_parameters() if p.requires_grad}
    assert "output_blocks" in trainable
    assert "input_blocks" not in trainable
    student_of(unet, report.plan)
    assert next(unet.output_blocks.parameters()).requires_grad  # nothing of the other was switched


# --- adapters ---------------------------------------------------------------------


def add_lora(unet: UNetSpatioTemporalModel, name: str, seed: int, **options: Any) -> None:
    unet.add_adapter(LoraConfig(r=2, lora_alpha=3, **options), name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, parameter in unet.named_parameters():
            if f"lora_B.{name}" in key:
                parameter.normal_(std=0.1, generator=generator)


def lora_unet() -> UNetSpatioTemporalModel:
    unet = two_block_unet()
    kinds = (nn.Linear, nn.Conv2d, nn.Conv3d)
    every = [name for name, module in unet.named_modules() if isinstance(module, kinds)]
    add_lora(unet, "style", 0, target_modules=every, rank_pattern={r"input_blocks.2.1.proj_in": 1})
    add_lora(unet, "middle", 1, target_modules=r"middle_block\..*to_q")
    unet.set_adapters(["style", "middle"], [0.5, 2.0])
    return unet.eval()


def test_adapters_of_layers_that_stay_go_with_them(tmp_path: Path) -> None:
    unet = lora_unet()
    student, report = prune_unet(unet, FREE)
    expected = run_what_stays(unet, FREE)
    assert torch.equal(run(student), expected)
    layers = {name for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    style = report.adapters["style"]
    kept = {name for name, module in student.named_modules() if isinstance(module, LoraLayer)}
    assert style.kept == len(kept)
    assert {FREE.source_key(name) for name in kept} | set(style.dropped) == layers
    assert all(
        name.startswith(("input_blocks.1.", "output_blocks.4.", *(f"{n}." for n in FREE.pruned_layers)))
        for name in style.dropped
    )
    assert report.adapters["middle"].dropped == tuple(
        name for name in report.adapters["style"].dropped if name.startswith("middle") and "to_q" in name
    )
    trainable = {name for name, p in student.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in student.named_parameters() if "lora_" in name}
    # adapters are no part of the network's size
    plain, _ = prune_unet(two_block_unet(), FREE)
    assert report.after.parameters == count_parameters(student) == sum(p.numel() for p in plain.parameters())
    # what is saved can be loaded into a pruned network without adapters
    student.save_lora_adapter(tmp_path, adapter_name="style")
    student.set_adapters(["style"], [1.0])
    plain.load_lora_adapter(tmp_path, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    torch.testing.assert_close(run(plain.eval()), run(student), atol=1e-5, rtol=1e-5)


def test_merged_switched_off_and_vanished_adapters() -> None:
    unet = lora_unet()
    with_adapters = run_what_stays(unet, FREE)
    unet.disable_adapters()
    off, _ = prune_unet(unet, FREE)
    assert torch.equal(run(off), run_what_stays(unet, FREE))
    off.enable_adapters()
    assert torch.equal(run(off), with_adapters)
    unet.enable_adapters()
    unet.fuse_lora(adapter_names=["style"])
    fused, _ = prune_unet(unet, FREE)
    assert torch.equal(run(fused), run_what_stays(unet, FREE))
    fused.unfuse_lora()
    torch.testing.assert_close(run(fused), with_adapters, atol=1e-4, rtol=1e-4)
    no_middle, report = prune_unet(unet, "0.7b")
    assert report.adapters["middle"].kept == 0
    assert set(no_middle.peft_config) == {"style"}
    assert "adapter middle: 0 layers kept" in report.to_text()


def test_other_adapters_are_refused() -> None:
    unet = two_block_unet()
    unet.add_adapter(LoHaConfig(r=2, target_modules=["to_q"]), "other")
    with pytest.raises(PlanError, match="adapter 'other' is LoHaConfig, expected LoraConfig"):
        prune_unet(unet, "0.7b")


# --- costs ---------------------------------------------------------------------


def test_costs_add_up_and_carry_over() -> None:
    unet = two_block_unet()
    student, report = prune_unet(unet, FREE, PROBE)
    for network, cost in ((unet, report.before), (student, report.after)):
        assert cost.parameters == sum(p.numel() for p in network.parameters())
        assert cost.flops == count_flops(network.config, 3, 8, 4, num_tokens=5)
        assert cost.latency_s is not None
        assert cost.latency_s > 0
    before = measure_layers(unet, PROBE)
    assert OTHER in before
    predicted = plan_cost(report.plan, before)  # from the unpruned network's layers alone
    assert (predicted.parameters, predicted.flops) == (report.after.parameters, report.after.flops)
    assert sum(block.before.parameters for block in report.blocks) == report.before.parameters
    assert sum(block.after.flops for block in report.blocks) == report.after.flops
    dropped = {block.block for block in report.blocks if block.student is None}
    assert dropped == set(report.plan.dropped_blocks(unet.config))
    assert json.loads(json.dumps(report.to_dict()))["after"]["flops"] == report.after.flops
    lines = report.to_text().splitlines()
    assert lines[-2].startswith("sum")
    assert f"{report.after.parameters:,}" in lines[-2]
    assert lines[-1].startswith(f"left: {report.after.parameters / report.before.parameters:.1%}")


def test_without_a_probe_only_parameters_are_counted() -> None:
    _, report = prune_unet(two_block_unet(), "0.9b")
    assert report.before.flops == 0
    assert report.before.latency_s is None
    assert "GFLOP" not in report.to_text()
    assert total([]).parameters == 0


def test_time_of_a_slow_layer_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    unet = two_block_unet()
    quick = measure_layers(unet, PROBE)
    layer = unet.get_submodule("input_blocks.4.0.temopral_conv")
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda *args: (time.sleep(0.2), forward(*args))[1])
    slow = measure_layers(unet, PROBE)
    rises = {name: (cost.latency_s or 0) - (quick[name].latency_s or 0) for name, cost in slow.items()}
    assert rises.pop("input_blocks.4.0.temopral_conv") > 0.15
    assert max(rises.values()) < 0.1


# --- pipelines ---------------------------------------------------------------------


def test_a_pruned_pipeline_is_saved_whole(tmp_path: Path) -> None:
    pipe = tiny_pipeline(few_step=False, default_call={"num_frames": 3, "height": 16, "width": 24})
    small, report = prune_pipeline(pipe, "0.7b", Probe.of(pipe, repeats=0))
    assert small.default_call == pipe.default_call
    assert report.probe is not None
    assert (report.probe.num_frames, report.probe.height, report.probe.width) == (3, 8, 12)
    small.set_progress_bar_config(disable=True)
    frames = small("a red circle", generator=seeded(0), **CALL).frames
    with new_folder(tmp_path / "small") as folder:
        assert folder.parent == tmp_path
        save_pruned(small, report.plan, report.to_dict(), folder)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    assert load_config(PruningPlan, tmp_path / "small" / "plan.yaml") == report.plan
    loaded = HummingbirdPipeline.from_pretrained(tmp_path / "small")
    loaded.set_progress_bar_config(disable=True)
    assert (loaded("a red circle", generator=seeded(0), **CALL).frames == frames).all()


def test_nothing_is_half_written_or_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), new_folder(tmp_path / "a") as folder:  # noqa: PT012
        (folder / "file").write_text("half")
        raise RuntimeError("boom")
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with new_folder(tmp_path / "a") as folder:  # an empty folder is as good as none
        (folder / "file").write_text("whole")
    assert (tmp_path / "a" / "file").read_text() == "whole"
    with pytest.raises(FileExistsError, match="not empty"), new_folder(tmp_path / "a"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
