"""Low-rank adapters of U-Net and text encoder, as diffusers' users load, mix, fuse, swap and save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.hooks.group_offloading import _get_top_level_group_offload_hook
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer

from hummingbird import HummingbirdPipeline
from tests.pipelines.tiny import CALL, seeded, tiny_pipeline

TARGETS = {
    "unet": ["to_q", "to_k", "to_v", "to_out.0"],
    "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
}
CLOSE = {"rtol": 1e-3, "atol": 1e-3}


def frames_of(pipe: HummingbirdPipeline, **options: Any) -> torch.Tensor:
    return pipe("a red circle", generator=seeded(0), **CALL | {"output_type": "pt"} | options).frames


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, **CLOSE)


def add_adapter(pipe: HummingbirdPipeline, name: str = "default", rank: int = 4, seed: int = 0) -> None:
    """Give both components an adapter that changes their output from the start."""
    torch.manual_seed(seed)
    for component, targets in TARGETS.items():
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False)
        getattr(pipe, component).add_adapter(config, adapter_name=name)


def save_adapter(pipe: HummingbirdPipeline, folder: Path, name: str = "default", **options: Any) -> None:
    layers = {
        f"{component}_lora_layers": get_peft_model_state_dict(getattr(pipe, component), adapter_name=name)
        for component in TARGETS
    }
    HummingbirdPipeline.save_lora_weights(folder, **layers, **options)


def has_adapter_layers(pipe: HummingbirdPipeline) -> list[bool]:
    return [
        any(isinstance(module, BaseTunerLayer) for module in getattr(pipe, component).modules())
        for component in TARGETS
    ]


@pytest.mark.parametrize(("few_step", "safe"), [(True, True), (False, False)], ids=["safetensors", "bin"])
def test_save_unload_and_load(tmp_path: Path, few_step: bool, safe: bool) -> None:
    pipe = tiny_pipeline(few_step)
    before = frames_of(pipe)
    add_adapter(pipe)
    adapted = frames_of(pipe)
    assert not same(adapted, before)
    save_adapter(pipe, tmp_path, safe_serialization=safe)
    pipe.unload_lora_weights()
    assert has_adapter_layers(pipe) == [False, False]
    assert same(frames_of(pipe), before)
    pipe.load_lora_weights(tmp_path / f"pytorch_lora_weights.{'safetensors' if safe else 'bin'}")
    assert has_adapter_layers(pipe) == [True, True]
    assert same(frames_of(pipe), adapted)
    other = tiny_pipeline(few_step)
    other.load_lora_weights(tmp_path, adapter_name="other", low_cpu_mem_usage=True)
    assert other.get_active_adapters() == ["other"]
    assert same(frames_of(other), adapted)


def test_metadata_survives(tmp_path: Path) -> None:
    """An alpha other than the rank is in no weight: it is stored beside them."""
    pipe = tiny_pipeline()
    config = LoraConfig(r=2, lora_alpha=8, target_modules=TARGETS["unet"], init_lora_weights=False)
    pipe.unet.add_adapter(config)
    adapted = frames_of(pipe)
    HummingbirdPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(pipe.unet),
        unet_lora_adapter_metadata=pipe.unet.peft_config["default"].to_dict(),
    )
    other = tiny_pipeline()
    other.load_lora_weights(tmp_path)
    assert same(frames_of(other), adapted)


def test_weight_of_one_call() -> None:
    pipe = tiny_pipeline()
    before = frames_of(pipe)
    add_adapter(pipe)
    adapted = frames_of(pipe)
    assert same(frames_of(pipe, attention_kwargs={"scale": 0.0}), before)
    half = frames_of(pipe, attention_kwargs={"scale": 0.5})
    assert not same(half, adapted)
    assert not same(half, before)
    assert same(frames_of(pipe), adapted)
    pipe.set_adapters("default", 0.5)
    assert same(frames_of(pipe), half)


def test_weight_of_one_call_ends_with_a_failed_call() -> None:
    pipe = tiny_pipeline()
    add_adapter(pipe)
    adapted = frames_of(pipe)
    handle = pipe.text_encoder.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        frames_of(pipe, attention_kwargs={"scale": 0.5})
    handle.remove()
    assert same(frames_of(pipe), adapted)


@pytest.mark.parametrize("scale", [1.0, 0.8])
def test_fuse_and_unfuse(scale: float) -> None:
    pipe = tiny_pipeline()
    add_adapter(pipe)
    weights = pipe.unet.input_blocks[1][1].transformer_blocks[0].attn1.to_q.base_layer.weight
    before = weights.clone()
    expected = frames_of(pipe, attention_kwargs={"scale": scale})
    pipe.fuse_lora(lora_scale=scale)
    assert pipe.num_fused_loras == 1
    assert not torch.allclose(weights, before)
    assert same(frames_of(pipe), expected)
    pipe.unfuse_lora()
    assert pipe.num_fused_loras == 0
    torch.testing.assert_close(weights, before)
    assert same(frames_of(pipe), expected)  # the adapter keeps the weight that it was fused with


def test_several_adapters() -> None:
    pipe = tiny_pipeline()
    before = frames_of(pipe)
    add_adapter(pipe, "first", seed=1)
    assert pipe.get_active_adapters() == ["first"]
    first = frames_of(pipe)
    add_adapter(pipe, "second", seed=2)
    second = frames_of(pipe)
    pipe.set_adapters(["first", "second"])
    both = frames_of(pipe)
    pipe.set_adapters(["first", "second"], [0.5, 0.6])
    weighted = frames_of(pipe)
    outputs = [before, first, second, both, weighted]
    assert not any(same(outputs[i], outputs[j]) for i in range(5) for j in range(i))
    assert pipe.get_list_adapters() == {"unet": ["first", "second"], "text_encoder": ["first", "second"]}
    pipe.set_adapters(["first", "second"])
    pipe.fuse_lora(adapter_names=["second", "first"])
    assert pipe.num_fused_loras == 2
    assert same(frames_of(pipe), both)
    pipe.unfuse_lora()
    pipe.disable_lora()
    assert same(frames_of(pipe), before)
    pipe.enable_lora()
    pipe.delete_adapters("first")
    assert same(frames_of(pipe), second)
    with pytest.raises(ValueError, match="not in the list of present adapters"):
        pipe.set_adapters("first")
    pipe.delete_adapters("second")
    assert same(frames_of(pipe), before)


def test_weights_by_block() -> None:
    """Blocks go by the network's own names; those that are not named keep weight 1."""
    pipe = tiny_pipeline()
    add_adapter(pipe)
    adapted = frames_of(pipe)
    pipe.set_adapters("default", {"unet": {"input_blocks": 0.0, "output_blocks": 3.0}})
    blocks = {
        name.split(".")[0]: module.scaling["default"]
        for name, module in pipe.unet.named_modules()
        if isinstance(module, BaseTunerLayer)
    }
    assert blocks == {"input_blocks": 0.0, "output_blocks": 3.0, "middle_block": 1.0, "init_attn": 1.0}
    assert not same(frames_of(pipe), adapted)


def test_hot_swap(tmp_path: Path) -> None:
    """Another rank takes the place of the loaded adapter, in the U-Net; the text encoder cannot."""
    pipe = tiny_pipeline()
    outputs, ranks = [], (4, 7)
    for rank in ranks:
        config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS["unet"], init_lora_weights=False)
        pipe.unet.add_adapter(config)
        outputs.append(frames_of(pipe))
        layers = get_peft_model_state_dict(pipe.unet)
        HummingbirdPipeline.save_lora_weights(tmp_path / str(rank), unet_lora_layers=layers)
        pipe.unload_lora_weights()
    pipe.enable_lora_hotswap(target_rank=max(ranks))
    pipe.load_lora_weights(tmp_path / "4", adapter_name="swapped")
    assert same(frames_of(pipe), outputs[0])
    pipe.load_lora_weights(tmp_path / "7", adapter_name="swapped", hotswap=True)
    assert same(frames_of(pipe), outputs[1])
    with pytest.raises(ValueError, match="no existing adapter by that name"):
        pipe.load_lora_weights(tmp_path / "7", adapter_name="absent", hotswap=True)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_under_group_offload(tmp_path: Path, offload_type: str) -> None:
    pipe = tiny_pipeline()
    add_adapter(pipe)
    adapted = frames_of(pipe)
    save_adapter(pipe, tmp_path)
    pipe = tiny_pipeline()
    before = frames_of(pipe)
    where = {"onload_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
    pipe.unet.enable_group_offload(**where, offload_type=offload_type, num_blocks_per_group=1)
    for _ in range(2):
        pipe.load_lora_weights(tmp_path)
        assert _get_top_level_group_offload_hook(pipe.unet) is not None
        assert same(frames_of(pipe), adapted)
        pipe.unload_lora_weights()
        assert same(frames_of(pipe), before)


def test_files_without_adapter_weights_are_refused_or_change_nothing(tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    before = frames_of(pipe)
    pipe.load_lora_weights({"lora_of_another_model": torch.ones(2)})
    assert has_adapter_layers(pipe) == [False, False]
    assert same(frames_of(pipe), before)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        pipe.load_lora_weights({"weight": torch.ones(2)})
    with pytest.raises(ValueError, match="at least one"):
        HummingbirdPipeline.save_lora_weights(tmp_path)
