"""What diffusers asks of any model: files, memory, training, attention, compilation, adapters.

Each test states one check of diffusers' own model test suite in this package's words; ``docs/conformance.md``
lists which is which.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import compute_module_sizes
from diffusers.models.attention import AttentionModuleMixin
from diffusers.training_utils import EMAModel
from diffusers.utils import constants
from peft import LoraConfig
from safetensors.torch import load_file
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from hummingbird.models import UNetSpatioTemporalModel
from tests.models.tiny import tiny_inputs, tiny_unet

CPU = torch.device("cpu")
ONE_LEVEL = {"channel_mult": (1,), "attention_resolutions": (1,)}  # quick to compile
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def run(unet: torch.nn.Module, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return unet(**{**tiny_inputs(), **inputs}, return_dict=False)[0]


# -------------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("parallel", [False, True])
def test_sharded_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str | None, parallel: bool
) -> None:
    unet = tiny_unet()
    size_kb = compute_module_sizes(unet)[""] / 1024
    unet.save_pretrained(tmp_path, max_shard_size=f"{int(0.75 * size_kb)}KB", variant=variant)
    infix = "" if variant is None else f".{variant}"
    index = json.loads((tmp_path / f"diffusion_pytorch_model.safetensors.index{infix}.json").read_text())
    shards = set(index["weight_map"].values())
    assert shards == {path.name for path in tmp_path.glob("*.safetensors")}
    assert len(shards) == 2
    monkeypatch.setattr(constants, "HF_ENABLE_PARALLEL_LOADING", parallel)
    loaded = UNetSpatioTemporalModel.from_pretrained(tmp_path, variant=variant)
    assert torch.equal(run(loaded), run(unet))


@pytest.mark.logs_error("no file named diffusion_pytorch_model.safetensors")
def test_variants(tmp_path: Path) -> None:
    unet = tiny_unet()
    unet.save_pretrained(tmp_path, variant="fp16")
    assert torch.equal(run(UNetSpatioTemporalModel.from_pretrained(tmp_path, variant="fp16")), run(unet))
    with pytest.raises(OSError, match="no file named diffusion_pytorch_model"):
        UNetSpatioTemporalModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(tmp_path: Path, dtype: torch.dtype) -> None:
    unet = tiny_unet().to(dtype)
    unet.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (True, False):
        loaded = UNetSpatioTemporalModel.from_pretrained(
            tmp_path, dtype=dtype, low_cpu_mem_usage=low_cpu_mem_usage
        )
        assert {tensor.dtype for tensor in loaded.state_dict().values()} == {dtype}
    inputs = {name: tensor.to(dtype) for name, tensor in tiny_inputs().items() if tensor.is_floating_point()}
    assert torch.equal(run(loaded, **inputs), run(unet, **inputs))


def test_attributes() -> None:
    unet = tiny_unet()
    with pytest.warns(FutureWarning, match="config"):
        assert unet.model_channels == unet.config.model_channels
    with pytest.raises(AttributeError, match="'UNetSpatioTemporalModel' object has no attribute 'missing'"):
        _ = unet.missing


# -------------------------------------------------------------------------------------------------- memory


@pytest.mark.logs_error("no file named diffusion_pytorch_model.safetensors")
@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
def test_part_of_the_weights_on_disk(tmp_path: Path, safe: bool) -> None:
    """accelerate splits by ``_no_split_modules`` and loads each part for its call alone."""
    unet = tiny_unet()
    unet.save_pretrained(tmp_path, safe_serialization=safe)
    memory = {"cpu": int(0.5 * compute_module_sizes(unet)[""])}
    split = UNetSpatioTemporalModel.from_pretrained(
        tmp_path, device_map="auto", max_memory=memory, offload_folder=tmp_path / "offload"
    )
    assert set(split.hf_device_map.values()) == {"cpu", "disk"}
    assert {parameter.device.type for parameter in split.parameters()} == {"cpu", "meta"}
    torch.testing.assert_close(run(split), run(unet), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"offload_type": "block_level", "num_blocks_per_group": 1},
        {"offload_type": "block_level", "num_blocks_per_group": 3, "non_blocking": True},
        {"offload_type": "leaf_level"},
    ],
)
def test_group_offload_to_disk(tmp_path: Path, options: dict[str, Any]) -> None:
    unet = tiny_unet()
    expected = run(unet)
    unet.enable_group_offload(CPU, **options, offload_to_disk_path=str(tmp_path))
    stored = sum(len(load_file(path)) for path in tmp_path.glob("*.safetensors"))
    assert stored == len(list(unet.parameters()))
    hooked = [module for module in unet.modules() if hasattr(module, "_diffusers_hook")]
    assert hooked
    assert all(module._diffusers_hook.get_hook("group_offloading") is not None for module in hooked)
    torch.testing.assert_close(run(unet), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offload_with_layerwise_casting(offload_type: str) -> None:
    unet = tiny_unet()
    expected = run(unet)
    groups = 1 if offload_type == "block_level" else None
    unet.enable_group_offload(CPU, offload_type=offload_type, num_blocks_per_group=groups)
    unet.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    torch.testing.assert_close(run(unet), expected, atol=2e-2, rtol=0)


def test_layerwise_casting_saves_memory() -> None:
    sizes = []
    for storage, compute in (
        (torch.float32, torch.float32),
        (torch.float8_e4m3fn, torch.float32),
        (torch.float8_e4m3fn, torch.bfloat16),
    ):
        unet = tiny_unet().to(compute)
        unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=compute)
        floats = {k: v.to(compute) for k, v in tiny_inputs().items() if v.is_floating_point()}
        assert run(unet, **floats).isfinite().all()
        sizes.append(unet.get_memory_footprint())
    assert sizes[0] > 2 * sizes[1]
    assert sizes[1] > sizes[2]


# ------------------------------------------------------------------------------------------------ training


def loss_of(unet: UNetSpatioTemporalModel) -> torch.Tensor:
    inputs = tiny_inputs()
    floats = {k: v.to(unet.dtype) for k, v in inputs.items() if v.is_floating_point()}
    return F.mse_loss(unet(**{**inputs, **floats}).sample.float(), torch.ones_like(inputs["sample"]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_steps_lower_the_loss(checkpointing: bool) -> None:
    unet = tiny_unet().train()
    assert not unet.is_gradient_checkpointing
    if checkpointing:
        unet.enable_gradient_checkpointing()
        flags = [m.gradient_checkpointing for m in unet.modules() if hasattr(m, "gradient_checkpointing")]
        assert flags
        assert all(flags)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3)
    losses = []
    torch.manual_seed(0)
    for _ in range(4):
        loss = loss_of(unet)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unet.disable_gradient_checkpointing()
    assert not unet.is_gradient_checkpointing


def test_mixed_precision_training() -> None:
    unet = tiny_unet().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(unet)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in unet.parameters())


@pytest.mark.parametrize("storage", [torch.float16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_layerwise_casting_while_training(storage: torch.dtype) -> None:
    unet = tiny_unet().train()
    unet.enable_layerwise_casting(storage_dtype=storage, compute_dtype=torch.float32)
    with torch.autocast("cpu"):
        loss = loss_of(unet)
    loss.backward()
    assert unet.out[2].weight.grad.isfinite().all()
    assert unet.input_blocks[1][1].proj_in.weight.grad.any()


def test_moving_average_of_the_weights(tmp_path: Path) -> None:
    unet = tiny_unet()
    ema = EMAModel(unet.parameters(), decay=0.5, model_cls=UNetSpatioTemporalModel, model_config=unet.config)
    first = [parameter.clone() for parameter in unet.parameters()]
    for _ in range(2):  # the first step copies
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.add_(0.01)
        ema.step(unet.parameters())
    assert ema.optimization_step == 2
    decay = ema.cur_decay_value
    assert 0 < decay <= 0.5
    for start, average in zip(first, ema.shadow_params, strict=True):
        torch.testing.assert_close(average, start + 0.01 * (2 - decay))
    ema.save_pretrained(tmp_path)
    averaged = UNetSpatioTemporalModel.from_pretrained(tmp_path)
    ema.copy_to(unet.parameters())
    torch.testing.assert_close(run(averaged), run(unet))
    again = EMAModel.from_pretrained(str(tmp_path), model_cls=UNetSpatioTemporalModel)
    assert (again.optimization_step, again.decay) == (2, 0.5)


# ----------------------------------------------------------------------------------------------- attention


def test_fused_projections() -> None:
    unet = tiny_unet()
    expected = run(unet)
    layers = [module for module in unet.modules() if isinstance(module, AttentionModuleMixin)]
    unet.fuse_qkv_projections()
    for layer in layers:
        assert layer.fused_projections
        assert hasattr(layer, "to_kv") == layer.is_cross_attention
        assert hasattr(layer, "to_qkv") != layer.is_cross_attention
    for layer in layers:  # the fused layers are the ones in use
        for name in ("to_k", "to_v"):
            torch.nn.init.zeros_(getattr(layer, name).weight)
    torch.testing.assert_close(run(unet), expected, atol=1e-5, rtol=1e-5)
    unet.unfuse_qkv_projections()
    assert not any(layer.fused_projections for layer in layers)
    assert set(unet.state_dict()) == set(tiny_unet().state_dict())
    assert not torch.allclose(run(unet), expected)


def test_processors_for_every_layer() -> None:
    unet = tiny_unet()
    processors = {name: type(processor)() for name, processor in unet.attn_processors.items()}
    unet.set_attn_processor(dict(processors))
    assert unet.attn_processors == processors
    with pytest.raises(ValueError, match="number of processors"):
        unet.set_attn_processor(dict([processors.popitem()]))


# --------------------------------------------------------------------------------------------- compilation


@pytest.fixture
def compiler() -> Iterator[CompileCounter]:
    """Counts the graphs that are compiled, and runs them as they are."""
    torch.compiler.reset()
    yield CompileCounter()
    torch.compiler.reset()


def test_whole_network_compiles_once(compiler: CompileCounter) -> None:
    unet = tiny_unet(**ONE_LEVEL)
    expected = run(unet)
    compiled = torch.compile(unet, fullgraph=True, backend=compiler)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(2):
            torch.testing.assert_close(run(compiled), expected, atol=1e-5, rtol=1e-5)
    assert compiler.frame_count == 1


def test_repeated_blocks_compile_once_per_shape(compiler: CompileCounter) -> None:
    unet = tiny_unet(**ONE_LEVEL, num_res_blocks=2)
    expected = run(unet)
    unet.compile_repeated_blocks(fullgraph=True, backend=compiler)
    torch.testing.assert_close(run(unet), expected, atol=1e-5, rtol=1e-5)
    graphs = compiler.frame_count
    blocks = [module for module in unet.modules() if module._compiled_call_impl is not None]
    assert {type(block).__name__ for block in blocks} == set(unet._repeated_blocks)
    assert graphs < len(blocks)
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(unet)
        run(unet, timestep=torch.tensor([7, 9]), sample=tiny_inputs(seed=5)["sample"])
    assert compiler.frame_count == graphs


@pytest.mark.slow
@pytest.mark.skipif(
    "isolate_recompiles" not in inspect.signature(torch.compile).parameters, reason="needs a newer torch"
)
def test_each_block_can_have_a_graph_of_its_own(compiler: CompileCounter) -> None:
    unet = tiny_unet(**ONE_LEVEL)
    unet.compile_repeated_blocks(fullgraph=True, backend=compiler, isolate_recompiles=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        run(unet)
    assert compiler.frame_count == sum(m._compiled_call_impl is not None for m in unet.modules())


@pytest.mark.slow
def test_compiled_under_group_offload(compiler: CompileCounter) -> None:
    unet = tiny_unet(**ONE_LEVEL, has_middle_block=False, init_attention=False)
    expected = run(unet)
    unet.enable_group_offload(CPU, offload_type="block_level", num_blocks_per_group=1)
    unet.compile(backend=compiler)
    for _ in range(2):
        torch.testing.assert_close(run(unet), expected, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------ adapters


def adapter(rank: int = 4, targets: list[str] | None = None) -> LoraConfig:
    return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets or ATTENTION, init_lora_weights=False)


def test_adapter_files(tmp_path: Path) -> None:
    unet = tiny_unet()
    before = run(unet)
    unet.add_adapter(adapter())
    metadata = unet.peft_config["default"].to_dict()
    adapted = run(unet)
    assert not torch.allclose(adapted, before, atol=1e-3)
    with pytest.raises(ValueError, match="Adapter name other not found in the model"):
        unet.save_lora_adapter(tmp_path, adapter_name="other")
    unet.save_lora_adapter(tmp_path)
    stored = load_file(tmp_path / "pytorch_lora_weights.safetensors")
    assert len(stored) == 2 * len(ATTENTION) * len(unet.attn_processors)
    unet.unload_lora()
    torch.testing.assert_close(run(unet), before)
    unet.load_lora_adapter(tmp_path, prefix=None, use_safetensors=True)
    torch.testing.assert_close(run(unet), adapted, atol=1e-5, rtol=1e-5)
    loaded = unet.peft_config["default_0"].to_dict()
    assert {name for name in metadata if metadata[name] != loaded[name]} <= {"inference_mode"}


@pytest.mark.parametrize(
    ("ranks", "targets", "compiled"),
    [
        ((3, 5), ["to_q", "in_layers.2", "time_embed.0"], True),
        ((5, 3), ATTENTION, False),
        ((4, 4), ["proj_in", "conv1.2", "conv2.3"], False),
    ],
    ids=["compiled", "attention", "temporal layers"],
)
def test_hot_swap(
    tmp_path: Path, compiler: CompileCounter, ranks: tuple[int, int], targets: list[str], compiled: bool
) -> None:
    """Swapping compiles nothing new. Ranks may differ for linear and 2D layers; peft pads no others."""
    unet = tiny_unet(**ONE_LEVEL)
    expected = []
    for rank, name in zip(ranks, ("first", "second"), strict=True):
        torch.manual_seed(len(expected))
        unet.add_adapter(adapter(rank, targets), adapter_name=name)
        unet.set_adapter(name)
        expected.append(run(unet))
        unet.save_lora_adapter(tmp_path / name, adapter_name=name)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)
    unet = tiny_unet(**ONE_LEVEL)
    if ranks[0] != ranks[1]:
        unet.enable_lora_hotswap(target_rank=max(ranks))
    options = {"adapter_name": "swapped", "prefix": None, "use_safetensors": True}
    unet.load_lora_adapter(tmp_path / "first", **options)
    network = torch.compile(unet, backend=compiler, fullgraph=True) if compiled else unet
    torch.testing.assert_close(run(network), expected[0], atol=1e-4, rtol=1e-4)
    with torch._dynamo.config.patch(error_on_recompile=True):
        unet.load_lora_adapter(tmp_path / "second", hotswap=True, **options)
        torch.testing.assert_close(run(network), expected[1], atol=1e-4, rtol=1e-4)
    assert compiler.frame_count == compiled


def test_hot_swap_is_prepared_before_the_first_adapter() -> None:
    unet = tiny_unet()
    unet.add_adapter(adapter())
    with pytest.raises(RuntimeError, match="before loading the first adapter"):
        unet.enable_lora_hotswap(target_rank=8)
